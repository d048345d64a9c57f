"""LMOS: distance in the feature space of WavLM's convolutional encoder (FINALLY, arXiv 2410.05920, section 3.2)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.audio.stft import magnitude, stft
from finallyse.losses import losses_registry
from finallyse.losses.resampling import to_16k
from finallyse.models.wavlm import statistics
from finallyse.precision import full_precision


@losses_registry.register("lmos")
class LMOSLoss(nn.Module):
    """feature_weight * mean squared error of WavLM's convolutional features + L1 of STFT magnitudes.

    WavLM sees both clips resampled to 16 kHz, the STFT at their own rate, so that frequencies above 8 kHz count.

    Args:
        feature_weight: weight of the feature term.
        features: "normed" compares features after WavLM's layer norm, "raw" before it.
        normalise: "target" first subtracts the target's mean from both clips and divides both by the target's standard
            deviation, since WavLM was trained on audio of unit variance. Normalising each clip by itself would hide an
            output that is too quiet; WavLM's layer norms nearly hide it anyway, the STFT of the same clips does not.
            "none" leaves them as they are, as in the original code, and as for a WavLM without normalisation
            (`normalize` false).
        n_fft, hop: length and hop of the STFT, samples.

    wav, wav_hat: [B, 1, T] at sample_rate; wavlm: a `finallyse.models.wavlm.WavLM`.
    """

    label = "LMOS"
    needs = ("wav", "wav_hat", "sample_rate", "wavlm")
    sees_level = True  # its STFT magnitudes do

    def __init__(
        self,
        feature_weight: float = 100.0,
        features: Literal["normed", "raw"] = "normed",
        normalise: Literal["target", "none"] = "target",
        n_fft: int = 1024,
        hop: int = 256,
    ):
        super().__init__()
        self.feature_weight, self.layer_norm = feature_weight, features == "normed"
        self.normalise = normalise == "target"
        self.n_fft, self.hop = n_fft, hop

    def forward(self, wav: Tensor, wav_hat: Tensor, sample_rate: int, wavlm: nn.Module) -> Tensor:
        with full_precision(wav_hat):
            wav, wav_hat = wav.float().squeeze(1), wav_hat.float().squeeze(1)
            if self.normalise and wavlm.normalize:
                mean, scale = statistics(wav)
                wav, wav_hat = (wav - mean) * scale, (wav_hat - mean) * scale
            with torch.no_grad():
                want = wavlm.conv_features(to_16k(wav, sample_rate), layer_norm=self.layer_norm)
                want_magnitude = magnitude(stft(wav, self.n_fft, self.hop, center=True))
            got = wavlm.conv_features(to_16k(wav_hat, sample_rate), layer_norm=self.layer_norm)
            got_magnitude = magnitude(stft(wav_hat, self.n_fft, self.hop, center=True))
            return self.feature_weight * F.mse_loss(got, want) + F.l1_loss(got_magnitude, want_magnitude)
