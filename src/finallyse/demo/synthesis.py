"""Noises, rooms and microphones computed from fixed seeds, for the demo's corpora.

They replace recordings so that the whole chain runs without a download; they are not meant for real training.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ROOM_SIDES_M = {"small": (2.0, 6.0), "medium": (6.0, 15.0), "large": (15.0, 30.0)}
NOISES = ("white", "pink", "brown", "wind", "hum", "babble")


def noise(kind: str, seconds: float, rate: int, rng: np.random.Generator, voices: Sequence[np.ndarray]) -> np.ndarray:
    """A noise of RMS 0.05: float32 [T] at `rate`.

    Args:
        kind: white, pink, brown: with a spectrum that falls by 0, 3, 6 dB per octave; wind: brown in gusts; hum: the
            mains and its harmonics over a little pink noise; babble: many of `voices` (float [T] at `rate`) at once.
    """
    length = round(seconds * rate)
    if kind in ("white", "pink", "brown"):
        wav = _coloured(length, rate, rng, {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind])
    elif kind == "wind":
        gusts = _coloured(length, rate, rng, 1.5, highest_hz=2.0)
        wav = _coloured(length, rate, rng, 1.0) * np.exp(np.clip(gusts / gusts.std(), -2, 2))
    elif kind == "hum":
        time = np.arange(length) / rate
        mains = rng.choice([50.0, 60.0])
        wav = 0.1 * _coloured(length, rate, rng, 0.5)
        for harmonic in range(1, 16):
            wav += rng.uniform(0.2, 1.0) / harmonic * np.sin(2 * np.pi * (mains * harmonic * time + rng.uniform()))
    elif kind == "babble":
        wav = np.zeros(length)
        for index in rng.permutation(len(voices))[:8]:
            voice = np.resize(voices[index], length)
            wav += np.roll(voice, rng.integers(length)) / max(np.sqrt(np.square(voice).mean()), 1e-4)
    else:
        raise ValueError(f"unknown noise {kind!r}")
    wav = wav * (0.05 / np.sqrt(np.square(wav).mean()))
    return (wav / max(1.0, np.abs(wav).max() / 0.95)).astype(np.float32)


def _coloured(length: int, rate: int, rng: np.random.Generator, slope: float, highest_hz: float | None = None):
    """Noise whose amplitude falls with frequency to the power of `slope`, unit RMS: float64 [T]."""
    size = 1 << (length - 1).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(size))
    frequency = np.fft.rfftfreq(size, 1 / rate)
    gain = np.maximum(frequency, 20.0) ** -slope if highest_hz is None else (frequency <= highest_hz) * 1.0
    gain[0] = 0.0
    wav = np.fft.irfft(spectrum * gain)[:length]
    return wav / wav.std()


def room_responses(size: str, count: int, rate: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Impulse responses of one box-shaped room, by the image source method: float32 [T], peak 0.9, at most a second.

    Args:
        size: small, medium, large (sides of ROOM_SIDES_M).
        count: number of pairs of a source and a microphone.
    """
    import pyroomacoustics

    pyroomacoustics.constants.set("num_threads", 1)  # a fixed order of summation, for reproducible bits
    low, high = ROOM_SIDES_M[size]
    sides = np.array([rng.uniform(low, high), rng.uniform(low, high), rng.uniform(2.4, 3.0 + low / 4)])
    walls = pyroomacoustics.Material(float(rng.uniform(0.15, 0.45)))
    responses = []
    for _ in range(count):
        room = pyroomacoustics.ShoeBox(sides, fs=rate, materials=walls, max_order=17)
        room.add_source(sides * rng.uniform(0.15, 0.85, 3))
        room.add_microphone(sides * rng.uniform(0.15, 0.85, 3))
        room.compute_rir()
        response = np.asarray(room.rir[0][0][:rate], dtype=np.float64)
        responses.append((0.9 * response / np.abs(response).max()).astype(np.float32))
    return responses


def microphone_response(taps: int, rate: int, rng: np.random.Generator) -> np.ndarray:
    """A minimum-phase filter like an old microphone's: float32 [taps], peak 0.9.

    Low and high frequencies are attenuated, with a few resonances in between.
    """
    size = 8 * taps
    frequency = np.fft.rfftfreq(size, 1 / rate)
    octave = np.log2(np.maximum(frequency, 1.0))
    low, high = np.log2(rng.uniform(40, 250)), np.log2(rng.uniform(5_000, 14_000))
    gain_db = -6 * rng.uniform(1, 3) * np.maximum(0, low - octave) - 6 * rng.uniform(1, 4) * np.maximum(
        0, octave - high
    )
    for _ in range(rng.integers(2, 6)):
        centre, width = np.log2(rng.uniform(150, 9_000)), rng.uniform(0.15, 0.8)
        gain_db += rng.uniform(-8, 8) * np.exp(-0.5 * np.square((octave - centre) / width))
    # The minimum phase is the Hilbert transform of the log gain: fold the real cepstrum onto its causal half.
    log_gain = np.maximum(gain_db, -80) * np.log(10) / 20
    cepstrum = np.fft.irfft(log_gain)
    cepstrum[1 : size // 2] *= 2
    cepstrum[size // 2 + 1 :] = 0
    response = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)))[:taps]
    response[taps // 2 :] *= np.hanning(2 * (taps - taps // 2))[taps - taps // 2 :]
    return (0.9 * response / np.abs(response).max()).astype(np.float32)
