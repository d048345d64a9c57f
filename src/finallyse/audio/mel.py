"""Log-mel spectrograms as HiFi-GAN defines them (arXiv 2010.05646, section 3; the front end of every network here)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from finallyse.audio.stft import magnitude, reflect_pad, stft
from finallyse.errors import UserError
from finallyse.precision import full_precision

_filterbanks: dict[tuple, Tensor] = {}


def hz_to_mel(frequency: np.ndarray | float) -> np.ndarray:
    """Slaney's mel scale: linear below 1 kHz (15 mel), logarithmic above (27 mel per factor 6.4)."""
    frequency = np.asarray(frequency, dtype=np.float64)
    logarithmic = 15.0 + 27.0 * np.log(np.maximum(frequency, 1000.0) / 1000.0) / np.log(6.4)
    return np.where(frequency < 1000.0, frequency * 3.0 / 200.0, logarithmic)


def mel_to_hz(mel: np.ndarray | float) -> np.ndarray:
    """Inverse of `hz_to_mel`."""
    mel = np.asarray(mel, dtype=np.float64)
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((np.maximum(mel, 15.0) - 15.0) * np.log(6.4) / 27.0))


def mel_filterbank(sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> np.ndarray:
    """Triangular filters of unit area (Slaney's norm), float64 [n_mels, n_fft // 2 + 1]; librosa's default."""
    edges = mel_to_hz(np.linspace(hz_to_mel(fmin), hz_to_mel(fmax), n_mels + 2))
    bins = np.fft.rfftfreq(n_fft, 1.0 / sample_rate)
    rising = (bins - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins) / np.diff(edges)[1:, None]
    return np.maximum(0.0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))[:, None]


def _filterbank(
    sample_rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """`mel_filterbank` as a tensor, built once per (parameters, device, dtype)."""
    key = (sample_rate, n_fft, n_mels, fmin, fmax, device, dtype)
    if key not in _filterbanks:
        with torch.inference_mode(False):  # an inference tensor could not be used in a later training step
            _filterbanks[key] = torch.from_numpy(mel_filterbank(*key[:5])).to(device, dtype)
    return _filterbanks[key]


class LogMel:
    """log(max(mel magnitudes, 1e-5)) of waveforms; differentiable, float32 even under autocast.

    Args:
        sample_rate: of the waveforms, Hz.
        n_fft, hop, win: of the STFT, samples; (n_fft - hop) / 2 samples are reflected on both sides, no centring.
        n_mels: number of bands.
        fmin, fmax: edges of the filterbank, Hz; fmax None means half the sample rate.

    Shapes: wav [B, T] or [B, 1, T] -> [B, n_mels, T // hop]; a clip shorter than one hop is zero-padded to one.
    The window and filterbank are built once per device and parameters.

    Raises UserError for a waveform of another shape.
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_fft: int = 1024,
        hop: int = 256,
        win: int = 1024,
        n_mels: int = 80,
        fmin: float = 0.0,
        fmax: float | None = 8000.0,
    ):
        self.sample_rate, self.n_fft, self.hop, self.win, self.n_mels = sample_rate, n_fft, hop, win, n_mels
        self.fmin, self.fmax = float(fmin), float(sample_rate / 2 if fmax is None else fmax)
        if not 0 <= self.fmin < self.fmax <= sample_rate / 2:
            raise UserError(
                f"mel bands from {fmin} to {fmax} Hz do not fit {sample_rate} Hz audio; keep 0 <= fmin < fmax"
            )

    def __call__(self, wav: Tensor) -> Tensor:
        if wav.dim() == 3 and wav.shape[1] == 1:
            wav = wav.squeeze(1)
        if wav.dim() != 2 or wav.shape[-1] == 0:
            raise UserError(f"a mel spectrogram takes wav [B, T] or [B, 1, T] with T >= 1, not {list(wav.shape)}")
        with full_precision(wav):
            wav = wav.float()
            if wav.shape[-1] < self.hop:
                wav = torch.nn.functional.pad(wav, (0, self.hop - wav.shape[-1]))
            pad = (self.n_fft - self.hop) // 2
            spectrum = stft(reflect_pad(wav, pad, pad), self.n_fft, self.hop, self.win, center=False)
            bands = _filterbank(
                self.sample_rate, self.n_fft, self.n_mels, self.fmin, self.fmax, wav.device, torch.float32
            )
            return torch.matmul(bands, magnitude(spectrum)).clamp(min=1e-5).log()

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in vars(self).items())
        return f"LogMel({settings})"
