"""Independent random streams, each named by its purpose."""

from __future__ import annotations

from zlib import crc32

import numpy as np


def stream(*entropy: int, purpose: str) -> np.random.Generator:
    """The generator of (seed, epoch, index, ...) for one purpose, independent of those for all others.

    entropy: numbers >= 0.    purpose: e.g. "segment" or "noise#0".
    """
    return np.random.default_rng([*entropy, crc32(purpose.encode())])
