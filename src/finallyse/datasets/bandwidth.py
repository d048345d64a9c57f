"""Speech and a low-passed copy of it, for bandwidth extension."""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
import scipy  # its `signal`, half a second to import, is loaded by its first use

from finallyse.augmentations.base import fit
from finallyse.datasets import datasets_registry
from finallyse.datasets.base import PEAK, ManifestDataset, Task, peak_normalised, tensor
from finallyse.errors import UserError


@datasets_registry.register("vctk")
class BandwidthDataset(ManifestDataset):
    """Speech as target, low-passed at `input_freq` as input (HiFi++, arXiv 2203.13086, section 4.1).

    Args:
        manifest: CSV of prepared speech, or a list of them; one that is listed twice is used twice per epoch.
        input_freq: highest frequency of the input, Hz; 2 * input_freq must divide sample_rate.
        segment: samples per item; null: whole recordings.
        lowpass: `polyphase` (resample to 2 * input_freq and back), `decimate` (downsample with scipy's decimate
            instead, a Chebyshev filter run forwards and backwards), or `random`, one of the two for each item.
        sample_rate: sample rate of the manifest's recordings, Hz.
        peak: peak to which input and target are each normalised.
        seed: seed of segments and of the random low-pass.

    Items: input_wav [T], wav [T], name. Recordings shorter than `segment` are padded with zeros.
    """

    @classmethod
    def task_of(cls, input_freq: int, **args) -> Task:
        return Task(f"bandwidth extension from {input_freq} Hz", "Band-limited", f"the input, cut at {input_freq} Hz")

    def __init__(
        self,
        manifest: str | list[str],
        input_freq: int,
        segment: int | None = 8192,
        lowpass: Literal["random", "polyphase", "decimate"] = "random",
        sample_rate: int = 16000,
        peak: float = PEAK,
        seed: int = 0,
    ):
        super().__init__(manifest, sample_rate, segment, seed)
        if input_freq < 1 or sample_rate % (2 * input_freq):
            raise UserError(f"vctk: input_freq={input_freq}: twice it must divide sample_rate={sample_rate}")
        if lowpass not in ("random", "polyphase", "decimate"):
            raise UserError(f"vctk: unknown lowpass {lowpass!r}; known: random, polyphase, decimate")
        self.factor, self.lowpass, self.peak = sample_rate // (2 * input_freq), lowpass, peak

    @classmethod
    def level_of(cls, peak: float = PEAK, **_others) -> dict[str, float]:
        return {"peak": peak}

    def item(self, epoch: int, index: int) -> dict:
        path = self.manifest.path(index)
        wav = self.read(path, *self.place(epoch, index), self.segment)
        lowpass = self.lowpass
        if lowpass == "random":
            lowpass = ("polyphase", "decimate")[self.rng(epoch, index, "lowpass").integers(2)]
        return {
            "input_wav": tensor(peak_normalised(without_highs(wav, self.factor, lowpass), self.peak), path),
            "wav": tensor(peak_normalised(wav, self.peak), path),
            "name": self.manifest.name(index),
        }


def without_highs(wav: np.ndarray, factor: int, lowpass: str) -> np.ndarray:
    """Downsample by `factor` and upsample again: float32 [T] -> [T]."""
    if factor == 1:
        return wav
    if lowpass == "decimate":
        # The forward-backward filter needs a minimum number of samples.
        low = scipy.signal.sosfiltfilt(_chebyshev(factor), fit(wav, max(len(wav), 64)))[::factor]
    else:
        low = scipy.signal.resample_poly(wav, 1, factor, window=_kaiser(factor))
    return fit(scipy.signal.resample_poly(low.astype(np.float32), factor, 1, window=_kaiser(factor)), len(wav))


@functools.cache
def _kaiser(factor: int) -> np.ndarray:
    """The filter of scipy.signal.resample_poly, which would redesign it at each call."""
    return scipy.signal.firwin(20 * factor + 1, 1 / factor, window=("kaiser", 5.0)).astype(np.float32)


@functools.cache
def _chebyshev(factor: int) -> np.ndarray:
    """The filter of scipy.signal.decimate, which would redesign it at each call."""
    return scipy.signal.cheby1(8, 0.05, 0.8 / factor, output="sos")
