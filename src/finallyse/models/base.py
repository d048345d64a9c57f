"""What every generator says of itself, so that trainers, the enhancer and tables need not know it by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from torch import nn

InputKind = Literal["mel", "wav", "wav+ssl"]


class Generator(nn.Module):
    """Base class of the generators: `wav = generator(mel)`, `generator(wav)` or `generator(wav, ssl)` by `input_kind`.

    Attributes:
        paper: what to cite.
        input_kind: "mel": log-mel [B, 80, F]; "wav": waveform [B, 1, T]; "wav+ssl": that and WavLM's features of the
            same clip [B, ssl_dim, N].
        input_rate, output_rate: sample rates of the waveforms in and out (of a mel: of what it was made from), Hz.
        alignment: samples of the input whose multiples keep every stride and padding of the network in step. Long
            recordings are cut on them, so that a window's output is what the whole recording's would be there.
        ssl_dim: channels of the features, where it takes them.

    A subclass without `input_kind` or `alignment` is a TypeError where it is defined.
    """

    paper: ClassVar[str]
    input_kind: ClassVar[InputKind]
    input_rate: int = 16000
    output_rate: int = 16000
    alignment: int | property
    ssl_dim: int

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if getattr(cls, "input_kind", None) not in get_args(InputKind):
            raise TypeError(f"{cls.__name__}.input_kind: must be one of {', '.join(get_args(InputKind))}")
        if not hasattr(cls, "alignment"):
            raise TypeError(f"{cls.__name__}.alignment: is needed, a number of samples or a property that computes it")


def takes_arguments_of(base: type[Generator], **defaults: Any) -> Callable[[Callable], Callable]:
    """Decorator of an `__init__(self, *, own, ..., **inherited)` that also takes all arguments of `base`.

    `inherited` then holds every one of them, at its default where it is not given. The class's signature lists them
    all: the schema of the configuration is generated from it.

    Args:
        base: whose arguments; its own signature stays.
        defaults: of those arguments whose default differs.
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

        del complete.__wrapped__  # whose signature is only half of it
        complete.__signature__ = signature
        complete.__annotations__ = get_type_hints(inspect.unwrap(base.__init__)) | get_type_hints(init)
        complete.__annotations__.pop("inherited", None)
        return complete

    return decorate
