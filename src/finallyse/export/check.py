"""Comparison of an exported graph with PyTorch, on signals like speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from finallyse.inference.enhancer import Enhancer

SECONDS = (1.3, 3.1)  # about; rounded up to the network's alignment


def speech_like(samples: int, rate: int) -> np.ndarray:
    """A voice of harmonics with formants and syllables, consonants of noise, and a noisy room: float32 [samples]."""
    rng = np.random.default_rng(samples)
    time = np.arange(samples) / rate
    pitch = 140 * 2 ** (0.25 * np.sin(2 * np.pi * 0.4 * time) + 0.02 * np.sin(2 * np.pi * 5 * time))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = np.zeros(samples)
    for harmonic in range(1, int(0.45 * rate / 170)):
        frequency = harmonic * pitch
        formants = [500 + 250 * np.sin(2 * np.pi * 1.7 * time), 1500 + 600 * np.cos(2 * np.pi * 1.1 * time), 2700]
        gain = sum(np.exp(-np.square((frequency - centre) / 220)) for centre in formants) + 0.02
        voice += gain / harmonic**0.7 * np.cos(harmonic * phase + rng.uniform(0, 2 * np.pi))
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * time) + 0.3, 0, None)
    hiss = np.diff(rng.standard_normal(samples + 1)) * np.clip(-np.sin(2 * np.pi * 3.1 * time) - 0.7, 0, None)
    wav = voice * syllables + 0.6 * hiss + 0.05 * rng.standard_normal(samples)
    return (0.5 * wav / np.abs(wav).max()).astype(np.float32)


def compare_generator(path: Path, enhancer: Enhancer) -> tuple[float, float]:
    """The largest difference over two lengths, of which the longer one is a batch of two: dB of the output's power,
    and absolute."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = []
    for batch, seconds in enumerate(SECONDS, 1):
        size = enhancer.generator.alignment
        samples = -(-int(seconds * enhancer.input_rate) // size) * size
        wav = np.stack([speech_like(samples + index, enhancer.input_rate)[:samples] for index in range(batch)])
        given = {"wav": wav[:, None]}
        if enhancer.wavlm is not None:
            given["ssl"] = enhancer.hidden_state(wav)
        expected = enhancer.generate(wav, given.get("ssl"))
        worst.append(difference(session.run(None, given)[0][:, 0], expected))
    return tuple(map(max, zip(*worst, strict=True)))


def compare_wavlm(path: Path, enhancer: Enhancer) -> tuple[float, float]:
    """The same of WavLM's features."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    worst = []
    for batch, seconds in enumerate(SECONDS, 1):
        samples = int(seconds * enhancer.input_rate)
        wav = np.stack([speech_like(samples + index, enhancer.input_rate)[:samples] for index in range(batch)])
        expected = enhancer.hidden_state(wav)
        worst.append(difference(session.run(None, {"wav": wav})[0], expected))
    return tuple(map(max, zip(*worst, strict=True)))


def difference(found: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Power of the difference in dB of `expected`'s, and its largest magnitude."""
    error = found.astype(np.float64) - expected
    power = max(np.square(expected.astype(np.float64)).mean(), 1e-30)
    return float(10 * np.log10(np.square(error).mean() / power + 1e-30)), float(np.abs(error).max())
