"""Rooms and microphones: convolution with a measured or simulated impulse response."""

from __future__ import annotations

import numpy as np
import scipy  # its `signal`, half a second to import, is loaded by its first use

from finallyse.audio.io import read
from finallyse.augmentations import augmentations_registry
from finallyse.augmentations.base import Augmentation, fit, inner, realign
from finallyse.augmentations.noise import check_rate
from finallyse.corpora.manifest import Manifest
from finallyse.errors import UserError


@augmentations_registry.register("impulse_response")
class ImpulseResponse(Augmentation):
    """Convolves with an impulse response from a manifest: a room's or a microphone's.

    Args:
        manifest: CSV of prepared impulse responses at the rate of the signal, or a list of them; the column `offset` is
            the sample of the direct path, which is aligned with the original signal.

    The remaining delay of a microphone's filter is measured on the signal and undone (`realign`). The power of the
    signal is kept. Only the first channel is used. A response of zeros is an error: preparation excludes such files.
    """

    name = "impulse_response"

    def __init__(self, manifest: str | list[str]):
        self.manifest = Manifest(manifest)

    def draw(self, rng: np.random.Generator) -> dict:
        """`file` and its `offset`, the sample of its direct path."""
        index = int(rng.integers(len(self.manifest)))
        return {"file": str(self.manifest.path(index)), "offset": int(self.manifest.offsets[index])}

    def _apply(self, wav: np.ndarray, sample_rate: int, params: dict) -> np.ndarray:
        check_rate(self.manifest, sample_rate)
        response = read(params["file"])[0]
        response = response if response.ndim == 1 else response[:, 0]
        if not response.any():
            raise UserError(f"{params['file']}: an impulse response of zeros; prepare its corpus again")
        wet = fit(scipy.signal.oaconvolve(wav, np.ascontiguousarray(response))[params["offset"] :], len(wav))
        wet = realign(wet, wav, sample_rate)
        power, wet_power = (inner(x, x) for x in (wav, wet))
        return wet * np.float32(np.sqrt(power / wet_power)) if wet_power > 0 else wet
