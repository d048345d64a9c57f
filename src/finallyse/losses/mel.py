"""L1 distance of log-mel spectrograms (HiFi-GAN, arXiv 2010.05646, section 2.4)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.audio.mel import LogMel
from finallyse.errors import UserError
from finallyse.losses import losses_registry


@losses_registry.register("l1_mel_loss")
class L1MelLoss(nn.Module):
    """mean(|log-mel of wav_hat - log-mel of the target|).

    Args:
        target: "wav" computes the target's spectrogram from its waveform, "mel_for_loss" takes it from the dataset,
            which must use the same settings.
        n_fft, hop, win: length, hop and window of the spectrogram's STFT, samples.
        n_mels: number of mel bands of the spectrogram.
        fmin, fmax: lowest and highest frequency of the spectrogram, Hz; fmax null: half the sample rate.

    wav, wav_hat: [B, 1, T] at sample_rate; mel_for_loss: [B, n_mels, T // hop]. Raises UserError if lengths differ.
    """

    sees_level = True

    label = "mel L1"

    def __init__(
        self,
        target: Literal["wav", "mel_for_loss"] = "wav",
        n_fft: int = 1024,
        hop: int = 256,
        win: int = 1024,
        n_mels: int = 80,
        fmin: float = 0.0,
        fmax: float | None = None,
    ):
        super().__init__()
        self.target = target
        self.settings = dict(n_fft=n_fft, hop=hop, win=win, n_mels=n_mels, fmin=fmin, fmax=fmax)
        self.needs = (target, "wav_hat", "sample_rate")

    def forward(
        self, wav_hat: Tensor, sample_rate: int, wav: Tensor | None = None, mel_for_loss: Tensor | None = None
    ) -> Tensor:
        mel = LogMel(sample_rate, **self.settings)
        want = mel_for_loss.float() if self.target == "mel_for_loss" else mel(wav)
        got = mel(wav_hat)
        if want.shape != got.shape:
            raise UserError(f"l1_mel_loss: target {list(want.shape)} and output {list(got.shape)} differ in length")
        return F.l1_loss(got, want)
