"""Losses by their published names.

Each is a module that returns a float32 scalar; its `needs` lists the inputs to pass, by keyword:

    loss = losses_registry["l1_mel_loss"](**args)
    value = loss(**{name: inputs[name] for name in loss.needs})

`label` is its name in reports. `sees_level` says whether it depends on the level of wav_hat: at least one of a
generator's losses must.

Waveforms are [B, 1, T]; wav is the target, wav_hat the generated waveform. Lower is better for all losses.
"""

from finallyse.registry import Registry

losses_registry = Registry("loss")

# Each module registers its losses in `losses_registry`, which must be defined first.
from finallyse.losses import adversarial, lmos, mel, pesq, utmos, waveform  # noqa: E402, F401

__all__ = ["losses_registry"]
