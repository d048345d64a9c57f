"""What tests share: the embedded speech, and one thread per process so that figures do not depend on the machine."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def speech() -> list[Path]:
    """The clips of the embedded corpus, sorted by name."""
    clips = sorted((ROOT / "resources" / "demo" / "speech").glob("*.flac"))
    assert clips, "resources/demo/speech holds no clips"
    return clips


def _read_at(paths: list[Path], rate: int, seconds: float) -> np.ndarray:
    from finallyse.audio.io import read
    from finallyse.audio.resample import resample

    pieces, samples = [], 0
    for path in paths:
        wav, clip_rate = read(path)
        pieces.append(resample(wav.reshape(-1), clip_rate, rate))
        samples += pieces[-1].shape[-1]
        if samples >= seconds * rate:
            break
    return np.concatenate(pieces)[: int(seconds * rate)].astype(np.float32)


@pytest.fixture(scope="session")
def speech_16k(speech: list[Path]) -> np.ndarray:
    """Four seconds of speech, float32 [64000] at 16 kHz."""
    return _read_at(speech, 16_000, 4.0)


@pytest.fixture(scope="session")
def speech_48k(speech: list[Path]) -> np.ndarray:
    """Four seconds of speech, float32 [192000] at 48 kHz."""
    return _read_at(speech, 48_000, 4.0)
