"""Changing the sample rate."""

from __future__ import annotations

import numpy as np
import soxr


def resample(wav: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Band-limited, linear-phase resampling (soxr, very high quality), without delay.

    Args:
        wav: float [..., T].
        from_rate, to_rate: Hz.

    Returns:
        float32 [..., T'] with T' = T * to_rate / from_rate, rounded.
    """
    wav = np.asarray(wav, dtype=np.float32)
    if from_rate == to_rate:
        return wav
    if wav.ndim == 1:
        return soxr.resample(wav, from_rate, to_rate, quality="VHQ")
    rows = wav.reshape(-1, wav.shape[-1])
    out = np.stack([soxr.resample(row, from_rate, to_rate, quality="VHQ") for row in rows])
    return out.reshape(*wav.shape[:-1], out.shape[-1])
