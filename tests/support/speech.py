"""The embedded speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from finallyse.audio.io import read
from finallyse.audio.resample import resample
from support import ROOT

SPEECH = ROOT / "resources" / "demo" / "speech"


def clips(folder: Path = SPEECH) -> list[Path]:
    """The clips of a folder, sorted by name."""
    found = sorted(folder.rglob("*.flac"))
    assert found, f"{folder}: contains no .flac files"
    return found


def read_speech(rate: int, seconds: float | None = None, folder: Path = SPEECH) -> np.ndarray:
    """`seconds` of the concatenated clips, repeated as needed, float32 [T]; None: all clips once."""
    samples = None if seconds is None else round(seconds * rate)
    pieces: list[np.ndarray] = []
    for path in clips(folder):
        wav, clip_rate = read(path)
        pieces.append(resample(wav, clip_rate, rate))
        if samples is not None and sum(map(len, pieces)) >= samples:
            break
    wav = np.concatenate(pieces)
    return wav if samples is None else np.resize(wav, samples)
