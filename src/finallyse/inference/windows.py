"""Splitting long signals into overlapping windows, and seamless joining of their outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

# Context on either side of the part of a window that is kept, or more for a network that says it reaches further. With
# random weights, 0.5 s from a window's edge the published networks are within -100 dB of the output for the whole
# signal (tests/test_enhance.py checks small ones).
CONTEXT_S = 1.28
WINDOW_S = 20.48
GRID = 4096  # samples: windows begin at multiples of it
FADE_S = 0.064

Window = tuple[int, int]


def plan(length: int, size: int, context: int, grid: int) -> list[Window]:
    """Overlapping windows [start, stop) that cover `length` samples.

    Every window starts at a multiple of `grid`, and its length equals that of the whole signal modulo `grid`. Networks
    whose strides and paddings divide `grid` then see the same samples at the same phase, and pad by the same amount, in
    a window as in the whole signal: away from a window's edges their output is the same.

    Args:
        size: maximum length of a window (up to the grid); all have the same length, and no more than necessary.
        context: minimum overlap of neighbouring windows on either side of the join.
    """
    rest = length % grid
    shared = -(-2 * context // grid) * grid
    longest_stride = size // grid * grid - shared
    if longest_stride < grid:
        raise ValueError(f"windows of {size} samples leave nothing between contexts of {context} on a grid of {grid}")
    if length <= size // grid * grid + rest:
        return [(0, length)]
    count = -(-(length - rest - shared) // longest_stride)
    stride = -(-(length - rest - shared) // (count * grid)) * grid
    size = stride + shared + rest
    starts = [*range(0, length - size, stride), length - size]
    return [(start, start + size) for start in starts]


def join(windows: Sequence[Window], pieces: Iterable[np.ndarray], fade: int) -> Iterator[np.ndarray]:
    """Join the outputs of `windows`, cross-fading over `fade` samples in the middle of each overlap.

    Args:
        pieces: [..., stop - start] arrays in the windows' order, read one at a time.

    Yields:
        Consecutive [..., n] arrays.
    """
    middles = [(left[1] + right[0]) // 2 for left, right in itertools.pairwise(windows)]
    half = fade // 2
    begin, tail = windows[0][0], None
    for index, ((start, stop), piece) in enumerate(zip(windows, pieces, strict=True)):
        if tail is not None:
            rising = ((np.arange(2 * half) + 0.5) / (2 * half)).astype(piece.dtype)
            own = piece[..., begin - start : begin - start + 2 * half]
            yield tail + (own - tail) * rising
            begin += 2 * half
        if index == len(middles):
            yield piece[..., begin - start : stop - start]
            return
        end = middles[index] - half
        yield piece[..., begin - start : end - start]
        tail = piece[..., end - start : end - start + 2 * half].copy()
        begin = end


def length_at(samples: int, from_rate: int, to_rate: int) -> int:
    """Samples at another rate, rounded half up, at least 1."""
    return max(1, (2 * samples * to_rate + from_rate) // (2 * from_rate))


def fit(wav: np.ndarray, length: int) -> np.ndarray:
    """Cut or pad the end with zeros: [..., T] -> [..., length]. Resamplers may be a sample short or long."""
    missing = length - wav.shape[-1]
    if missing <= 0:
        return wav[..., :length]
    return np.pad(wav, [(0, 0)] * (wav.ndim - 1) + [(0, missing)])
