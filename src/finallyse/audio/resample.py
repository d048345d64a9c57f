"""Changing the sample rate."""

from __future__ import annotations

import functools

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


class Resampler:
    """Resamples one signal that comes in blocks; the outputs together are those of `resample` in one go.

    Args:
        from_rate, to_rate: Hz.
        channels: number of channels of the blocks.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int):
        self._stream = None
        if from_rate != to_rate:
            self._stream = soxr.ResampleStream(from_rate, to_rate, channels, dtype="float32", quality="VHQ")

    def __call__(self, block: np.ndarray, last: bool = False) -> np.ndarray:
        """float32 [C, n] -> float32 [C, n'], what is ready; with the `last` block, which may be empty, the rest."""
        if self._stream is None:
            return block
        return self._stream.resample_chunk(np.ascontiguousarray(block.T), last=last).reshape(-1, len(block)).T


@functools.cache
def delay(from_rate: int, to_rate: int) -> float:
    """How far the output of a `Resampler` is behind its input at most, s; found by running one on silence."""
    resampler, step = Resampler(from_rate, to_rate, 1), max(1, from_rate // 1000)
    given, got, most = 0, 0, 0.0
    while given < 2 * from_rate:
        got += resampler(np.zeros((1, step), np.float32)).shape[1]
        given += step
        most = max(most, given / from_rate - got / to_rate)
    return most
