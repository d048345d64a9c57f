"""Base class of the augmentations: random parameters, checks, errors with their source, alignment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finallyse.errors import UserError


class AugmentationError(UserError):
    """An augmentation failed: its name, its parameters and the file."""


class Augmentation:
    """Draws plain parameters from a random number generator, and applies them to a signal.

    `apply` keeps the length, and the alignment to within one sample at 16 kHz (1/16 ms). A subclass implements `draw`
    and `_apply`.
    """

    name: str

    def draw(self, rng: np.random.Generator) -> dict:
        """Parameters of one application: a dict of numbers and strings, a pure function of the generator's state."""
        raise NotImplementedError

    def _apply(self, wav: np.ndarray, sample_rate: int, params: dict) -> np.ndarray:
        raise NotImplementedError

    def apply(self, wav: np.ndarray, sample_rate: int, params: dict, source: str = "") -> np.ndarray:
        """Degrade a signal.

        wav: float32 [T], T >= 1, finite.    sample_rate: Hz.    params: from `draw`.    source: named in errors.
        Returns float32 [T], a new array. Raises AugmentationError.
        """
        try:
            wav = np.ascontiguousarray(wav, dtype=np.float32)
            if wav.ndim != 1 or len(wav) == 0 or not np.isfinite(wav).all():
                raise UserError(f"it takes a finite signal of shape [T], T >= 1, and was given shape {list(wav.shape)}")
            out = self._apply(wav, sample_rate, params)
            if out.shape != wav.shape or not np.isfinite(out).all():
                raise UserError(f"its result of shape {list(out.shape)} is not a finite signal of the input's length")
        except Exception as error:
            of = f" of {source}" if source else ""
            raise AugmentationError(f"augmentation {self.name!r}{of} with {params} failed: {error}") from error
        return out.astype(np.float32, copy=False)


def interval(values: Sequence[float], what: str, low: float, high: float) -> tuple[float, float]:
    """`values` as (least, greatest) within [low, high]; a UserError names `what` otherwise."""
    values = tuple(map(float, values))
    if len(values) != 2 or not low <= values[0] <= values[1] <= high:
        raise UserError(f"{what} must be [least, greatest] within [{low:g}, {high:g}], not {list(values)}")
    return values


def fit(wav: np.ndarray, length: int) -> np.ndarray:
    """Cut or pad with zeros, at the end, to `length` samples."""
    return wav[:length] if len(wav) >= length else np.pad(wav, (0, length - len(wav)))


def shift(wav: np.ndarray, lag: int) -> np.ndarray:
    """Move a signal `lag` samples earlier (later if negative); zeros fill the gap."""
    if lag == 0:
        return wav
    out = np.zeros_like(wav)
    if abs(lag) < len(wav):
        out[max(0, -lag) : len(wav) - max(0, lag)] = wav[max(0, lag) : len(wav) - max(0, -lag)]
    return out


def inner(a: np.ndarray, b: np.ndarray) -> float:
    """The inner product of two signals. Unlike np.dot it is single-threaded, as loader processes require."""
    return float(np.einsum("t,t->", a, b))


def realign(wav: np.ndarray, reference: np.ndarray, sample_rate: int) -> np.ndarray:
    """Undo a remaining delay: shift by the peak of the cross-correlation within half a millisecond.

    For effects whose delay depends on the signal: filters that delay low and high frequencies differently, echoes that
    merge with the direct sound. If the correlation still rises at the end of that range (strong reflections long after
    the direct sound), nothing is shifted. wav, reference: float32 [T].
    """
    reach = min(sample_rate // 2000, len(wav) - 1)
    best, best_lag = -np.inf, 0
    for lag in sorted(range(-reach, reach + 1), key=abs):  # of equal peaks the one that moves least
        overlap = len(wav) - abs(lag)
        delayed, original = max(0, lag), max(0, -lag)
        peak = inner(wav[delayed : delayed + overlap], reference[original : original + overlap])
        if peak > best:
            best, best_lag = peak, lag
    return wav if abs(best_lag) == reach else shift(wav, best_lag)
