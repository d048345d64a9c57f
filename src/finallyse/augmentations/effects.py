"""FFmpeg effects, run in-process as filter graphs: acrusher, crystalizer, vibrato, flanger."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from finallyse.augmentations import augmentations_registry
from finallyse.augmentations.base import Augmentation, fit, interval, realign


def run_filter(wav: np.ndarray, sample_rate: int, name: str, **options: float) -> np.ndarray:
    """Pass float32 [T] through an FFmpeg audio filter; returns float32 [T'] as it comes out."""
    import av  # 40 MB of shared libraries; not every process that can draw parameters also applies them

    graph = av.filter.Graph()
    graph.threads = 1
    time_base = Fraction(1, sample_rate)
    source = graph.add_abuffer(format="flt", sample_rate=sample_rate, layout="mono", time_base=time_base)
    effect = graph.add(name, ":".join(f"{key}={value!r}" for key, value in options.items()))
    # Filters that work in double precision output it unless single precision is requested.
    narrow = graph.add("aformat", "sample_fmts=flt")
    sink = graph.add("abuffersink")
    graph.link_nodes(source, effect, narrow, sink).configure()

    frame = av.AudioFrame.from_ndarray(wav[None], format="flt", layout="mono")
    frame.sample_rate, frame.time_base, frame.pts = sample_rate, time_base, 0
    source.push(frame)
    source.push(None)
    blocks = []
    while True:
        try:
            blocks.append(sink.pull().to_ndarray().reshape(-1))
        except av.EOFError:
            return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


@augmentations_registry.register("acrusher")
class Acrusher(Augmentation):
    """Bit crusher: coarse quantisation of amplitudes.

    Args:
        bits: [min, max] resolution, between 1 and 64.
        mix: share of the original mixed in; FFmpeg's default is 0.5.

    Each output sample depends on one input sample: there is no delay.
    """

    name = "acrusher"

    def __init__(self, bits: list[float] = (1, 9), mix: float = 0.5):
        self.bits = interval(bits, "acrusher: bits", 1, 64)
        self.mix = interval([mix, 1], "acrusher: mix", 0, 1)[0]

    def draw(self, rng: np.random.Generator) -> dict:
        """`bits`."""
        return {"bits": float(rng.uniform(*self.bits))}

    def _apply(self, wav: np.ndarray, sample_rate: int, params: dict) -> np.ndarray:
        return run_filter(wav, sample_rate, "acrusher", bits=params["bits"], mix=self.mix)


@augmentations_registry.register("crystalizer")
class Crystalizer(Augmentation):
    """Sharpens: adds the difference of neighbouring samples, and clips at full scale.

    Args:
        intensity: [min, max] factor of the difference, between -10 and 10.

    Low frequencies are up to `intensity` samples early; the overall shift is undone (`realign`).
    """

    name = "crystalizer"

    def __init__(self, intensity: list[float] = (1, 4)):
        self.intensity = interval(intensity, "crystalizer: intensity", -10, 10)

    def draw(self, rng: np.random.Generator) -> dict:
        """`intensity`."""
        return {"intensity": float(rng.uniform(*self.intensity))}

    def _apply(self, wav: np.ndarray, sample_rate: int, params: dict) -> np.ndarray:
        return realign(run_filter(wav, sample_rate, "crystalizer", i=params["intensity"]), wav, sample_rate)


@augmentations_registry.register("vibrato")
class Vibrato(Augmentation):
    """Pitch modulation by a sinusoidally varying delay.

    Args:
        frequency_hz: [min, max] frequency of the sine, Hz.
        depth: FFmpeg's depth, between 0 and 1; the delay varies by up to `depth` * 2.5 ms either way, 20 samples at
            16 kHz with FFmpeg's default of 0.5.

    The delay's mean over the clip (about 60 samples at 16 kHz) is removed. The effect runs over silence before the
    clip, since its buffer is not clean at first, and so that the sine can have any phase when the clip begins.
    """

    name = "vibrato"

    def __init__(self, frequency_hz: list[float] = (5, 8), depth: float = 0.5):
        self.frequency_hz = interval(frequency_hz, "vibrato: frequency_hz", 0.1, 20_000)
        self.depth = interval([depth, 1], "vibrato: depth", 0, 1)[0]

    def draw(self, rng: np.random.Generator) -> dict:
        """`frequency_hz`; `phase` of the sine at the clip's beginning, in turns."""
        return {"frequency_hz": float(rng.uniform(*self.frequency_hz)), "phase": float(rng.random())}

    def _apply(self, wav: np.ndarray, sample_rate: int, params: dict) -> np.ndarray:
        frequency = params["frequency_hz"]
        buffer = round(0.005 * sample_rate + 0.5)  # FFmpeg's delay line, samples
        before = buffer + round(params["phase"] * sample_rate / frequency)
        padded = np.pad(wav, (before, buffer))
        out = run_filter(padded, sample_rate, "vibrato", f=frequency, d=self.depth)
        # af_vibrato.c: the delay is the buffer less a sine between 0 and depth * (buffer - 1) that begins at its least.
        sway = self.depth * (buffer - 1) / 2
        heard = before + buffer - sway + np.arange(len(wav))  # output time of each sample, up to the modulation
        delay = buffer - sway * float(np.mean(1 - np.cos(2 * np.pi * frequency * heard / sample_rate)))
        return fit(out[before + round(delay) :], len(wav))


@augmentations_registry.register("flanger")
class Flanger(Augmentation):
    """Adds a copy with a slowly varying delay.

    Args:
        depth: [min, max] modulation depth of the delay, ms, between 0 and 10.
        speed_hz: modulation frequency, Hz; FFmpeg's default is 0.5.

    The direct sound is not delayed, but a copy less than a millisecond later merges with it: the overall shift is
    undone (`realign`). The effect runs over silence before the clip, so that the modulation can have any phase.
    """

    name = "flanger"

    def __init__(self, depth: list[float] = (1, 8), speed_hz: float = 0.5):
        self.depth = interval(depth, "flanger: depth", 0, 10)
        self.speed_hz = interval([speed_hz, 10], "flanger: speed_hz", 0.1, 10)[0]

    def draw(self, rng: np.random.Generator) -> dict:
        """`depth_ms`; `phase` of the modulation at the clip's beginning, in turns."""
        return {"depth_ms": float(rng.uniform(*self.depth)), "phase": float(rng.random())}

    def _apply(self, wav: np.ndarray, sample_rate: int, params: dict) -> np.ndarray:
        before = round(params["phase"] * sample_rate / self.speed_hz)
        out = run_filter(
            np.pad(wav, (before, 0)), sample_rate, "flanger", depth=params["depth_ms"], speed=self.speed_hz
        )
        return realign(fit(out[before:], len(wav)), wav, sample_rate)
