"""Losses by their published names.

Each is a module whose `needs` names the inputs that it is called with, by keyword, and that returns a float32 scalar:

    loss = losses_registry["l1_mel_loss"](**args)
    value = loss(**{name: inputs[name] for name in loss.needs})

`label` is what a report calls it. `sees_level` says whether it tells the right level of wav_hat from another: some
loss of a generator must.

Waveforms are [B, 1, T]; wav is the target, wav_hat what was generated. Lower is better for all of them.
"""

from finallyse.registry import Registry

losses_registry = Registry("loss")

# Each module files its losses under `losses_registry`, which therefore stands above.
from finallyse.losses import adversarial, lmos, mel, pesq, utmos, waveform  # noqa: E402, F401

__all__ = ["losses_registry"]
