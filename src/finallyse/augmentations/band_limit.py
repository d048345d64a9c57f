"""Recordings without high or low frequencies: telephones, cheap microphones, old codecs."""

from __future__ import annotations

import numpy as np
import scipy  # its `signal`, half a second to import, is loaded by its first use

from finallyse.augmentations import augmentations_registry
from finallyse.augmentations.base import Augmentation, interval
from finallyse.errors import UserError


@augmentations_registry.register("band_limit")
class BandLimit(Augmentation):
    """Removes what is above one frequency and, optionally, below another: Butterworth filters without delay.

    Args:
        lowpass_hz: [min, max] upper limit of the band; above half the sample rate nothing is removed.
        highpass_hz: [min, max] lower limit of the band; null: nothing is removed.
        order: [min, max] order of the filters, which act forwards and backwards: 12 dB per octave for each.
    """

    name = "band_limit"

    def __init__(
        self,
        lowpass_hz: list[float] = (3400, 7000),
        highpass_hz: list[float] | None = None,
        order: list[int] = (2, 8),
    ):
        self.lowpass_hz = interval(lowpass_hz, "band_limit: lowpass_hz", 100, 96_000)
        self.highpass_hz = highpass_hz and interval(highpass_hz, "band_limit: highpass_hz", 1, 96_000)
        self.order = tuple(map(int, interval(order, "band_limit: order", 1, 12)))
        if self.highpass_hz and self.highpass_hz[1] >= self.lowpass_hz[0]:
            raise UserError(
                f"band_limit: highpass_hz={list(self.highpass_hz)} must lie below lowpass_hz={list(self.lowpass_hz)}"
            )

    def draw(self, rng: np.random.Generator) -> dict:
        """`lowpass_hz`, `order` and, if there is one, `highpass_hz`."""
        drawn = {
            "lowpass_hz": float(rng.uniform(*self.lowpass_hz)),
            "order": int(rng.integers(self.order[0], self.order[1] + 1)),
        }
        return drawn | ({"highpass_hz": float(rng.uniform(*self.highpass_hz))} if self.highpass_hz else {})

    def _apply(self, wav: np.ndarray, sample_rate: int, params: dict) -> np.ndarray:
        for kind, key in (("lowpass", "lowpass_hz"), ("highpass", "highpass_hz")):
            if key in params and params[key] < sample_rate / 2:
                sections = scipy.signal.butter(params["order"], params[key], kind, fs=sample_rate, output="sos")
                padding = min(len(wav) - 1, 3 * (2 * len(sections) + 1))
                wav = scipy.signal.sosfiltfilt(sections, wav, padlen=padding).astype(np.float32)
        return wav
