"""Additive noise."""

from __future__ import annotations

import numpy as np

from finallyse.audio.io import read
from finallyse.augmentations import augmentations_registry
from finallyse.augmentations.base import Augmentation, interval
from finallyse.corpora.manifest import Manifest
from finallyse.errors import UserError

FRAME = 0.02  # seconds
ACTIVE = 1e-4  # a frame is active from this share of the loudest frame's power: -40 dB
CROSSFADE = 0.02  # seconds over which the end of a looped noise fades into its beginning


@augmentations_registry.register("noise")
class Noise(Augmentation):
    """Adds a noise from a manifest, at a signal-to-noise ratio.

    Args:
        manifest: CSV of prepared noises at the rate of the signal.
        snr_db: [min, max] signal-to-noise ratio, dB.

    The ratio is that of the mean power of active speech (frames of 20 ms within 40 dB of the loudest one) to the mean
    power of the noise excerpt. The excerpt begins at a random position in the file; a noise shorter than the signal is
    looped from a random point, with crossfades of 20 ms. Channels are mixed to mono. If the signal or the excerpt is
    digital silence, nothing is added: the ratio is undefined.
    """

    name = "noise"

    def __init__(self, manifest: str, snr_db: list[float] = (10, 20)):
        self.manifest = Manifest(manifest)
        self.snr_db = interval(snr_db, "noise: snr_db", -100, 200)

    def draw(self, rng: np.random.Generator) -> dict:
        """`file` and its number of `samples`; `start`, as a share of the possible start positions; `snr_db`."""
        index = int(rng.integers(len(self.manifest)))
        return {
            "file": str(self.manifest.path(index)),
            "samples": int(self.manifest.samples[index]),
            "start": float(rng.random()),
            "snr_db": float(rng.uniform(*self.snr_db)),
        }

    def _apply(self, wav: np.ndarray, sample_rate: int, params: dict) -> np.ndarray:
        check_rate(self.manifest, sample_rate)
        noise = excerpt(params["file"], params["samples"], params["start"], len(wav), sample_rate)
        speech_power, noise_power = active_power(wav, sample_rate), float(np.mean(noise**2, dtype=np.float64))
        if speech_power == 0 or noise_power == 0:
            return wav.copy()
        gain = np.sqrt(speech_power / noise_power) * 10 ** (-params["snr_db"] / 20)
        return wav + noise * np.float32(gain)


def check_rate(manifest: Manifest, sample_rate: int) -> None:
    """Noises and impulse responses must be prepared at the rate of the signal; they are not resampled in training."""
    if manifest.rate != sample_rate:
        raise UserError(
            f"{manifest.file}: holds {manifest.rate} Hz recordings and is used at {sample_rate} Hz; "
            f"name the manifest prepared at {sample_rate} Hz"
        )


def active_power(wav: np.ndarray, sample_rate: int) -> float:
    """Mean power of the frames that hold speech; wav [T]."""
    frame = max(1, round(FRAME * sample_rate))
    if len(wav) <= frame:
        return float(np.mean(wav**2, dtype=np.float64))
    frames = wav[: len(wav) // frame * frame].reshape(-1, frame)
    power = np.einsum("ft,ft->f", frames, frames, dtype=np.float64) / frame
    return float(power[power >= ACTIVE * power.max()].mean())


def excerpt(path: str, samples: int, start: float, length: int, sample_rate: int) -> np.ndarray:
    """`length` samples of a noise, float32 [length].

    samples: number of samples in the file.    start: as a share in [0, 1) of the possible start positions.
    """
    if samples >= length:
        return _mono(read(path, int(start * (samples - length + 1)), length)[0])
    period = _loop(_mono(read(path, 0, samples)[0]), round(CROSSFADE * sample_rate))
    return np.resize(np.roll(period, -int(start * len(period))), length)


def _mono(wav: np.ndarray) -> np.ndarray:
    """[T] or [T, C] -> [T]"""
    return wav if wav.ndim == 1 else wav.mean(axis=1, dtype=np.float32)


def _loop(noise: np.ndarray, crossfade: int) -> np.ndarray:
    """One period of an endlessly repeated noise: its end fades into its beginning, at constant power."""
    crossfade = min(crossfade, len(noise) // 4)
    if crossfade == 0:
        return noise
    angle = np.linspace(0, np.pi / 2, crossfade + 2, dtype=np.float32)[1:-1]
    period = noise[:-crossfade].copy()
    period[:crossfade] = period[:crossfade] * np.sin(angle) + noise[-crossfade:] * np.cos(angle)
    return period
