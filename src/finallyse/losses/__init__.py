"""Losses by their published names.

Each is a module that returns a float32 scalar; its `needs` lists the inputs to pass, by keyword:

    loss = losses_registry["l1_mel_loss"](**args)
    value = loss(**{name: inputs[name] for name in loss.needs})

`label` is its name in reports. `sees_level` says whether it depends on the level of wav_hat: at least one of a
generator's losses must.

Waveforms are [B, 1, T]; wav is the target, wav_hat the generated waveform. Lower is better for all losses.
"""

import inspect
from collections.abc import Iterator

from torch import nn

from finallyse.registry import Registry, attributes, methods


def _contract(cls: type) -> Iterator[str]:
    yield from methods(cls, nn.Module, "forward")
    yield from attributes(cls, label=str, sees_level=bool)
    needs = getattr(cls, "needs", None)  # of some, by their arguments
    takes = inspect.signature(cls.forward).parameters
    if isinstance(needs, tuple | list) and not set(needs) <= takes.keys():
        yield f"needs {', '.join(needs)}, but forward() takes {', '.join(list(takes)[1:]) or 'nothing'}"


losses_registry = Registry("loss", _contract)

# Each module registers its losses in `losses_registry`, which must be defined first.
from finallyse.losses import adversarial, lmos, mel, pesq, utmos, waveform  # noqa: E402, F401

__all__ = ["losses_registry"]
