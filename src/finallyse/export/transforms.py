"""Fourier transforms, of 1024 points by default, in operators that every ONNX runtime has and runs fast: convolutions.

ONNX has the operators DFT and STFT, but a runtime may lack them, and ONNX Runtime takes three times as long for them as
for this; as one matrix product, a transform takes seven times as long (benchmarks/export.py). A frame's transform is
factored once, as in the fast Fourier transform, with n = 32 a + b and k = p + 32 q:

    X[p + 32 q] = sum_b e^(-2 pi i b q / 32)  ( e^(-2 pi i b p / 1024) sum_a e^(-2 pi i a p / 32) window[n] x[n] )

The brackets are a convolution over the rows of 32 samples, one group for each b, in which the frames (four per hop of
8 rows), the window and the factors in front of the inner sum are contained; the outer sum is a second convolution of
width one. For a real signal the rows p = 0 to 16 suffice: the others are conjugates. That is a tenth of the arithmetic
of the matrix product. Spectra stay in the order of p and q, [.., 17, 32, real or imaginary, frames], which
`natural` and `factored` are the indices to leave and to enter. A transform of another multiple of 128 points has as
many columns q, and fewer or more rows: one of 512 has p = 0 to 8. The hop is a quarter of it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.audio.mel import LogMel, mel_filterbank
from finallyse.models.complex_mask import ComplexMaskGenerator
from finallyse.models.hifipp import SpectralMaskNet

SIZE, HOP, ROW = 1024, 256, 32


def _half(size: int) -> int:
    """Number of the values of p that are computed."""
    return size // ROW // 2 + 1


def _bins(size: int) -> np.ndarray:
    """The frequency [17, 32] of each computed value, from 0 to 1023."""
    return np.arange(_half(size))[:, None] + size // ROW * np.arange(ROW)[None, :]


def natural(size: int = SIZE) -> np.ndarray:
    """Where the bins 0 to 512 are among the computed values [17 * 32]; some of them as the conjugate."""
    folded = factored(size)
    return np.array([int(np.flatnonzero(folded == k)[0]) for k in range(size // 2 + 1)])


def factored(size: int = SIZE) -> np.ndarray:
    """Which of the bins 0 to 512 each computed value [17 * 32] has the magnitude of."""
    return np.minimum(_bins(size), size - _bins(size)).ravel()


def _window(size: int) -> np.ndarray:
    """Periodic Hann window, float64 [32 a, 32 b]."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).reshape(-1, ROW)


def _inner(size: int) -> np.ndarray:
    """Factors of the inner sum without the window, complex128 [b, p, a]."""
    rows = size // ROW
    a, b, p = np.arange(rows), np.arange(ROW), np.arange(_half(size))
    return np.exp(-2j * np.pi * (np.outer(p, a)[None] / rows + np.outer(b, p)[:, :, None] / size))


def _outer() -> np.ndarray:
    """The outer sum on pairs (real, imaginary), float64 [32 q, 2, 32 b, 2]."""
    turn = np.exp(-2j * np.pi * np.outer(np.arange(ROW), np.arange(ROW)) / ROW)
    pairs = np.array([[turn.real, -turn.imag], [turn.imag, turn.real]])
    return pairs.transpose(2, 0, 3, 1)


def _parameter(values: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(values, np.float32)), requires_grad=False)


class Analysis(nn.Module):
    """Spectra of frames under a Hann window: wav [N, 256 (frames + 3)] -> [N, 17, 32, 2, frames]."""

    def __init__(self, size: int = SIZE):
        super().__init__()
        self.half, self.rows_per_hop = _half(size), size // 4 // ROW
        kernel = _inner(size) * _window(size).T[:, None, :]
        self.inner = _parameter(np.stack([kernel.real, kernel.imag], 2).reshape(-1, 1, size // ROW))
        self.outer = _parameter(_outer().reshape(2 * ROW, 2 * ROW, 1))

    def forward(self, wav: Tensor) -> Tensor:
        count = wav.shape[0]
        rows = wav.reshape(count, -1, ROW).transpose(1, 2)
        inner = F.conv1d(rows, self.inner, stride=self.rows_per_hop, groups=ROW)
        inner = inner.reshape(count, ROW, self.half, 2, -1).transpose(1, 2)
        outer = F.conv1d(inner.reshape(count * self.half, 2 * ROW, -1), self.outer)
        return outer.reshape(count, self.half, ROW, 2, -1)


class Synthesis(nn.Module):
    """The inverse: spectra [N, 17, 32, 2, frames] of wav [N, length] reflected at both ends -> [N, length]."""

    def __init__(self, size: int = SIZE):
        super().__init__()
        self.size, self.hop, self.half = size, size // 4, _half(size)
        # The transposed sums; p of 1 to 15 also stand for their conjugates.
        weight = np.where(np.isin(np.arange(self.half), (0, self.half - 1)), 1.0, 2.0) / size
        kernel = _inner(size) * _window(size).T[:, None, :] * weight[None, :, None]
        self.inner = _parameter(np.stack([kernel.real, kernel.imag], 2).reshape(-1, 1, size // ROW))
        self.outer = _parameter(_outer().transpose(2, 3, 0, 1).reshape(2 * ROW, 2 * ROW, 1))
        # Sum of the squared windows, which is constant but where the frames before the first and after the last one
        # are missing: in the first hop and in the last.
        energy = np.square(_window(size)).reshape(-1, self.hop)
        self.energy = float(energy.sum(0)[0])
        self.missing_first, self.missing_last = _parameter(energy[3]), _parameter(energy[0])

    def forward(self, spectra: Tensor, length: int) -> Tensor:
        count = spectra.shape[0]
        outer = F.conv1d(spectra.reshape(count * self.half, 2 * ROW, -1), self.outer)
        outer = outer.reshape(count, self.half, ROW, 2, -1).transpose(1, 2)
        flat = outer.reshape(count, 2 * self.half * ROW, -1)
        rows = F.conv_transpose1d(flat, self.inner, stride=self.hop // ROW, groups=ROW)
        wav = rows.transpose(1, 2).reshape(count, -1)
        rest = length - self.hop
        energy = self.energy - F.pad(self.missing_first, (0, rest)) - F.pad(self.missing_last, (rest, 0))
        return wav[:, self.size // 2 : self.size // 2 + length] / energy


def reflect(wav: Tensor, by: int) -> Tensor:
    """`finallyse.audio.stft.reflect_pad` of wav [N, T] on both sides, by at most 2 T - 2, without a choice by T."""
    last = wav.shape[-1] - 1
    index = torch.arange(-by, wav.shape[-1] + by, device=wav.device).abs()
    return wav[:, (last - (last - index).abs()).abs()]


class ExportedLogMel(nn.Module):
    """`LogMel` at its defaults: wav [N, T] or [N, 1, T] -> [N, 80, T / 256], T a multiple of 256."""

    def __init__(self, mel: LogMel):
        super().__init__()
        assert (mel.n_fft, mel.win, mel.hop) == (SIZE, SIZE, HOP)
        self.analysis = Analysis()
        bands = mel_filterbank(mel.sample_rate, mel.n_fft, mel.n_mels, mel.fmin, mel.fmax)
        spread = np.zeros((len(bands), _half(SIZE) * ROW))
        spread[:, natural()] = bands
        self.bands = _parameter(spread)

    def forward(self, wav: Tensor) -> Tensor:
        spectra = self.analysis(reflect(wav.flatten(1), (SIZE - HOP) // 2))
        return torch.matmul(self.bands, _magnitudes(spectra)).clamp(min=1e-5).log()


class ExportedMaskNet(nn.Module):
    """`SpectralMaskNet` on features [B, C, T], T a multiple of 256, above 512."""

    def __init__(self, net: SpectralMaskNet):
        super().__init__()
        assert (net.n_fft, net.hop) == (SIZE, HOP)
        self.net, self.analysis, self.synthesis = net, Analysis(), Synthesis()
        self.register_buffer("natural", torch.from_numpy(natural()[1:]), persistent=False)
        self.register_buffer("factored", torch.from_numpy(factored()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, length = x.shape
        spectra = self.analysis(F.pad(x, (SIZE // 2, SIZE // 2), mode="reflect").flatten(0, 1))
        seen = _magnitudes(spectra)[:, :, 1:].index_select(1, self.natural)
        mask = self.net.mask(seen.reshape(batch, channels, SIZE // 2, -1))
        mask = F.pad(mask.flatten(0, 1), (1, 0, 1, 0), value=1.0).index_select(1, self.factored)
        spectra = spectra * mask.reshape(batch * channels, _half(SIZE), ROW, 1, -1)
        return self.synthesis(spectra, length).reshape(batch, channels, length)


class ExportedComplexMask(nn.Module):
    """`ComplexMaskGenerator` on wav [B, 1, T], T a multiple of the hop, above two of them."""

    def __init__(self, generator: ComplexMaskGenerator):
        super().__init__()
        size = generator.n_fft
        self.generator, self.analysis, self.synthesis = generator, Analysis(size), Synthesis(size)
        self.register_buffer("natural", torch.from_numpy(natural(size)[1:]), persistent=False)
        self.register_buffer("factored", torch.from_numpy(factored(size)), persistent=False)
        # Some of the computed values are those of bins above half the size, conjugates of the ones below.
        sign = np.where(_bins(size).ravel() > size // 2, -1.0, 1.0)
        self.conjugate = _parameter(np.stack([np.ones_like(sign), sign], 1)[:, :, None])

    def forward(self, wav: Tensor) -> Tensor:
        by = self.generator.n_fft // 2
        spectra = self.analysis(F.pad(wav, (by, by), mode="reflect").flatten(0, 1)).flatten(1, 2)
        seen = (spectra * self.conjugate).index_select(1, self.natural).permute(0, 3, 1, 2)
        mask = F.pad(self.generator.mask(seen).permute(0, 2, 3, 1), (0, 0, 0, 0, 1, 0))  # nothing of 0 Hz passes
        mask = mask.index_select(1, self.factored) * self.conjugate
        (real, imag), (mask_real, mask_imag) = spectra.unbind(2), mask.unbind(2)
        masked = torch.stack([real * mask_real - imag * mask_imag, real * mask_imag + imag * mask_real], 2)
        return self.synthesis(
            masked.reshape(-1, self.analysis.half, ROW, 2, masked.shape[-1]), wav.shape[-1]
        ).unsqueeze(1)


def _magnitudes(spectra: Tensor) -> Tensor:
    """`finallyse.audio.stft.magnitude` of computed values [N, 17, 32, 2, frames] -> [N, 17 * 32, frames]."""
    return (spectra.square().sum(3) + 1e-9).sqrt().flatten(1, 2)
