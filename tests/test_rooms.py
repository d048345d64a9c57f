"""Simulated rooms: reproducible, as reverberant as asked for, usable as a corpus."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile as sf

from finallyse.corpora.prepare import prepare
from finallyse.corpora.rooms import room_response, simulate_rooms
from finallyse.errors import UserError


def decay_s(response: np.ndarray, rate: int) -> float:
    """Reverberation time by Schroeder's backward integration, from the decay between -5 and -25 dB."""
    energy = np.cumsum(response[::-1].astype(np.float64) ** 2)[::-1]
    level = 10 * np.log10(energy / energy[0] + 1e-12)
    return 3 * (np.argmax(level < -25) - np.argmax(level < -5)) / rate


def test_rooms_are_reproducible_and_existing_ones_are_kept(tmp_path):
    simulate_rooms(tmp_path / "a", 3, 16000, (0.2, 0.5), seed=7)
    simulate_rooms(tmp_path / "b", 2, 16000, (0.2, 0.5), seed=7)
    for name in ("room0000.wav", "room0001.wav"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "room0002.wav").read_bytes() != (tmp_path / "a" / "room0000.wav").read_bytes()
    kept = (tmp_path / "b" / "room0000.wav").stat().st_mtime_ns
    simulate_rooms(tmp_path / "b", 3, 16000, (0.2, 0.5), seed=7)
    assert (tmp_path / "b" / "room0000.wav").stat().st_mtime_ns == kept
    assert (tmp_path / "b" / "room0002.wav").read_bytes() == (tmp_path / "a" / "room0002.wav").read_bytes()


def test_rooms_of_other_settings_are_replaced(tmp_path):
    simulate_rooms(tmp_path, 3, 16000, (0.2, 0.5), seed=7)
    first = (tmp_path / "room0000.wav").read_bytes()
    simulate_rooms(tmp_path, 2, 16000, (0.2, 0.5), seed=8)
    assert sorted(path.name for path in tmp_path.glob("*.wav")) == ["room0000.wav", "room0001.wav"]
    assert (tmp_path / "room0000.wav").read_bytes() != first
    simulate_rooms(tmp_path, 1, 16000, (0.2, 0.5), seed=7)
    assert [path.read_bytes() for path in tmp_path.glob("*.wav")] == [first]


def test_a_reverberation_time_that_no_room_has_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"rooms\.rt60_s: no room is as dry as \[0\.001, 0\.002\] s"):
        simulate_rooms(tmp_path, 1, 16000, (0.001, 0.002), seed=0)


def test_rooms_reverberate_as_asked():
    dry, wet = (
        np.median([decay_s(room_response(np.random.default_rng(n), 16000, (rt60, rt60)), 16000) for n in range(8)])
        for rt60 in (0.2, 0.6)
    )
    assert 0.1 < dry < 0.3 and 0.4 < wet < 0.9


def test_rooms_are_a_corpus(tmp_path):
    simulate_rooms(tmp_path / "rooms", 4, 16000, (0.1, 0.8), seed=0)
    assert prepare("simulated-rooms", tmp_path / "rooms", tmp_path / "out", 16000) == {"train": 3, "validation": 1}
    response, rate = sf.read(next((tmp_path / "out" / "wav").glob("*.wav")))
    assert rate == 16000 and abs(np.sum(response**2) - 1) < 1e-3
