"""Additive noise."""

from __future__ import annotations

import numpy as np
import scipy.fft

from finallyse.audio.io import read
from finallyse.audio.resample import resample
from finallyse.augmentations import augmentations_registry
from finallyse.augmentations.base import Augmentation, fit, interval
from finallyse.corpora.manifest import Manifest
from finallyse.errors import UserError

FRAME = 0.02  # seconds
ACTIVE = 1e-4  # a frame is active from this share of the loudest frame's power: -40 dB
SPEED_STEPS = 20  # speeds are multiples of a twentieth: resampling by small ratios is fast
CROSSFADE = 0.02  # seconds over which the end of a looped noise fades into its beginning


@augmentations_registry.register("noise")
class Noise(Augmentation):
    """Adds a noise from a manifest, at a signal-to-noise ratio.

    Args:
        manifest: CSV of prepared noises at the rate of the signal, or a list of them.
        snr_db: [min, max] signal-to-noise ratio, dB.
        mix: [min, max] number of noises summed, each at up to 6 dB below the sum of those before it. Several recordings
            of speech make babble.
        speed: [min, max] factor of each noise's speed and pitch, between 0.5 and 2, in steps of 0.05.
        tilt_db: [min, max] slope added to each noise's spectrum, dB per octave, between -12 and 12.

    The ratio is that of the mean power of active speech (frames of 20 ms within 40 dB of the loudest one) to the mean
    power of the noise excerpt. The excerpt begins at a random position in the file; a noise shorter than the signal is
    looped from a random point, with crossfades of 20 ms. Channels are mixed to mono. If the signal or the excerpt is
    digital silence, nothing is added: the ratio is undefined.
    """

    name = "noise"

    def __init__(
        self,
        manifest: str | list[str],
        snr_db: list[float] = (10, 20),
        mix: list[int] = (1, 1),
        speed: list[float] = (1, 1),
        tilt_db: list[float] = (0, 0),
    ):
        self.manifest = Manifest(manifest)
        self.snr_db = interval(snr_db, "noise: snr_db", -100, 200)
        self.mix = tuple(map(int, interval(mix, "noise: mix", 1, 32)))
        self.speed = interval(speed, "noise: speed", 0.5, 2)
        self.tilt_db = interval(tilt_db, "noise: tilt_db", -12, 12)

    def draw(self, rng: np.random.Generator) -> dict:
        """`file` and its number of `samples`; `start`, as a share of the possible start positions; `snr_db`.

        If they vary: `speed`, `tilt_db`, and `others`, further excerpts with their `level_db`.
        """
        drawn = self._excerpt(rng) | {"snr_db": float(rng.uniform(*self.snr_db))}
        drawn |= self._changes(rng)
        if self.mix != (1, 1):
            others = range(int(rng.integers(self.mix[0], self.mix[1] + 1)) - 1)
            drawn["others"] = [
                self._excerpt(rng) | self._changes(rng) | {"level_db": -6 * float(rng.random())} for _ in others
            ]
        return drawn

    def _excerpt(self, rng: np.random.Generator) -> dict:
        index = int(rng.integers(len(self.manifest)))
        return {
            "file": str(self.manifest.path(index)),
            "samples": int(self.manifest.samples[index]),
            "start": float(rng.random()),
        }

    def _changes(self, rng: np.random.Generator) -> dict:
        ranges = {"speed": (self.speed, (1, 1)), "tilt_db": (self.tilt_db, (0, 0))}
        return {name: float(rng.uniform(*limits)) for name, (limits, none) in ranges.items() if limits != none}

    def _apply(self, wav: np.ndarray, sample_rate: int, params: dict) -> np.ndarray:
        check_rate(self.manifest, sample_rate)
        noise = changed_excerpt(params, len(wav), sample_rate)
        for other in params.get("others", ()):
            added = changed_excerpt(other, len(wav), sample_rate)
            power, added_power = (float(np.mean(x**2, dtype=np.float64)) for x in (noise, added))
            if power and added_power:
                noise = noise + added * np.float32(np.sqrt(power / added_power) * 10 ** (other["level_db"] / 20))
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


def changed_excerpt(params: dict, length: int, sample_rate: int) -> np.ndarray:
    """An excerpt as drawn, with its `speed` and `tilt_db` if any: float32 [length]."""
    speed = round(params.get("speed", 1.0) * SPEED_STEPS)
    heard = -(-length * speed // SPEED_STEPS)  # samples of the file
    noise = excerpt(params["file"], params["samples"], params["start"], heard, sample_rate)
    if speed != SPEED_STEPS:
        noise = fit(resample(noise, speed, SPEED_STEPS), length)
    if tilt := params.get("tilt_db", 0.0):
        noise = tilted(noise, sample_rate, tilt)
    return noise


def tilted(wav: np.ndarray, sample_rate: int, tilt_db: float) -> np.ndarray:
    """Add a slope of `tilt_db` dB per octave to the spectrum of float32 [T], flat below 50 Hz."""
    frequencies = np.maximum(scipy.fft.rfftfreq(size := scipy.fft.next_fast_len(len(wav)), 1 / sample_rate), 50.0)
    gains = 10 ** (tilt_db / 20 * np.log2(frequencies / 1000.0))
    return scipy.fft.irfft(scipy.fft.rfft(wav, size) * gains.astype(np.float32), size)[: len(wav)]


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
