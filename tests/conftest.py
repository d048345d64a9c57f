"""What tests share: the embedded speech, and one thread per process so that results do not depend on the machine."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest

from finallyse import plugins
from finallyse.registry import REGISTRIES
from support import ROOT
from support.speech import clips, read_speech

# A shell without job control has what it runs in the background ignore Ctrl-C, and what that starts inherits it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_plugins_afterwards(monkeypatch):
    """Parts of plugins that a test loads are not there in the next one, nor in the processes that it starts."""
    monkeypatch.delenv(plugins.INHERITED, raising=False)
    yield
    for parts in plugins._loaded.values():
        for kind, names in parts.items():
            for name in names:
                del REGISTRIES[kind]._classes[name]
    plugins._loaded.clear()
    os.environ.pop(plugins.INHERITED, None)
    for name in [name for name in sys.modules if name.startswith("finallyse_plugin_")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def speech() -> list[Path]:
    """The clips of the embedded corpus, sorted by name."""
    return clips()


@pytest.fixture(scope="session")
def speech_16k() -> np.ndarray:
    """Four seconds of speech, float32 [64000] at 16 kHz."""
    return read_speech(16_000, 4.0)


@pytest.fixture(scope="session")
def speech_48k() -> np.ndarray:
    """Four seconds of speech, float32 [192000] at 48 kHz."""
    return read_speech(48_000, 4.0)
