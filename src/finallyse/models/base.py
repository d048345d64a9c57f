"""Base classes of the networks: attributes that let trainers, the enhancer and tables treat them alike."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from torch import nn

InputKind = Literal["mel", "wav", "wav+ssl"]


class Network(nn.Module):
    """Base class of all networks: a discriminator is `logits, feature_maps = network(wav)`, see `Generator` for others.

    Attributes:
        paper: the paper to cite.
        input_rate: sample rate of the input waveforms that the default arguments are meant for, Hz.
        variants: arguments of its forms that the recipes use.
    """

    paper: ClassVar[str]
    input_rate: int = 16000
    variants: ClassVar[tuple[dict[str, Any], ...]] = ({},)


class Generator(Network):
    """Base class of the generators: `wav = generator(mel)`, `generator(wav)` or `generator(wav, ssl)` by `input_kind`.

    Attributes:
        input_kind: "mel": log-mel [B, 80, F]; "wav": waveform [B, 1, T]; "wav+ssl": a waveform and WavLM's features of
            the same clip [B, ssl_dim, N].
        input_rate, output_rate: sample rates of the input and output waveforms, Hz (for a mel: of its waveform).
        alignment: number of input samples whose multiples are aligned with every stride and padding of the network.
            Long recordings are cut at such multiples, so that a window's output equals that part of the whole output.
        reach_back, reach_ahead: how many input samples before and after a moment its output there depends on by more
            than -60 dB, which `finallyse.inference.stream.reach` measures. A stream gives it so many.
        repeats: how often a stream computes each sample, on the average, unless it is told otherwise. A fast network
            can afford more, which lowers the latency.
        ssl_dim: channels of the features, if it takes any.
        hop: samples per frame of the mel, if it takes one.

    Defining a subclass without `input_kind` or `alignment` raises a TypeError.
    """

    input_kind: ClassVar[InputKind]
    output_rate: int = 16000
    alignment: int | property
    reach_back: int | property = 12288  # measured with a HiFi++: three cells of 16 frames, on which its U-Nets work
    reach_ahead: int | property = 12288
    repeats: int = 7
    ssl_dim: int
    hop: int

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if getattr(cls, "input_kind", None) not in get_args(InputKind):
            raise TypeError(f"{cls.__name__}.input_kind: must be one of {', '.join(get_args(InputKind))}")
        if not hasattr(cls, "alignment"):
            raise TypeError(f"{cls.__name__}.alignment: is needed, a number of samples or a property that computes it")


def takes_arguments_of(base: type[Generator], **defaults: Any) -> Callable[[Callable], Callable]:
    """Decorate an `__init__(self, *, own, ..., **inherited)` to also accept all arguments of `base`.

    `inherited` then contains every one of them, defaults included. The class's signature lists them all, since the
    configuration schema is generated from it.

    Args:
        base: class whose arguments are accepted; its own signature is unchanged.
        defaults: defaults that differ from those of `base`.
    """

    def decorate(init: Callable) -> Callable:
        of_base = dict(inspect.signature(base).parameters)
        own = {n: p for n, p in inspect.signature(init).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
        for name, value in defaults.items():
            of_base[name] = of_base[name].replace(default=value)
        keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (of_base | own).values()]
        signature = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY), *keywords])

        @functools.wraps(init)
        def complete(self, **arguments):
            bound = signature.bind(self, **arguments)
            bound.apply_defaults()
            init(self, **bound.kwargs)

        del complete.__wrapped__  # it has only part of the signature
        complete.__signature__ = signature
        complete.__annotations__ = get_type_hints(inspect.unwrap(base.__init__)) | get_type_hints(init)
        complete.__annotations__.pop("inherited", None)
        return complete

    return decorate
