"""What users give: signals and sample rates, checked. Needs NumPy only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from finallyse.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

MOST_CHANNELS = 64  # beyond, an array with more channels than samples is taken for a mistake


def as_floats(wav: ArrayLike | Tensor) -> np.ndarray:
    """A user's signal as float32 in [-1, 1]; UserError if it cannot be one."""
    if hasattr(wav, "detach"):  # a tensor; of bfloat16, NumPy knows none
        wav = wav.detach().cpu()
        wav = wav.float().numpy() if wav.is_floating_point() else wav.numpy()
    wav = np.asarray(wav)
    if wav.ndim not in (1, 2) or wav.size == 0:
        raise UserError(f"wav must be [T] or [C, T] with at least one sample, not {list(wav.shape)}")
    if wav.ndim == 2 and len(wav) > MOST_CHANNELS and len(wav) > wav.shape[1]:
        raise UserError(f"wav must be [C, T], and {list(wav.shape)} looks like [T, C]: give wav.T")
    if wav.dtype == np.uint8:
        wav = (wav.astype(np.float32) - 128) / 128
    elif wav.dtype in (np.int16, np.int32):
        wav = wav / np.float64(2 ** (8 * wav.itemsize - 1))
    elif wav.dtype.kind != "f":
        raise UserError(f"wav must be of floats in [-1, 1], or of integers of 8, 16 or 32 bits, not {wav.dtype}")
    wav = wav.astype(np.float32, copy=False)
    if not np.isfinite(wav).all():
        raise UserError("wav contains samples that are not finite numbers")
    return wav


def whole_rate(name: str, rate: float) -> int:
    """A user's sample rate in Hz; UserError, which names the argument, if it is not a positive whole number."""
    if not (rate >= 1 and float(rate).is_integer()):
        raise UserError(f"{name} must be a positive whole number of Hz, not {rate}")
    return int(rate)
