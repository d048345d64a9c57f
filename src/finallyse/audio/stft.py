"""Short-time Fourier transforms of waveforms, in float32 even under autocast, with windows built once.

All functions are differentiable. Lengths are in samples, spectra are [B, bins, frames] complex64.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from finallyse.precision import full_precision

_windows: dict[tuple, Tensor] = {}


def hann_window(length: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Periodic Hann window [length], built once per (length, device, dtype)."""
    key = (length, device, dtype)
    if key not in _windows:
        with torch.inference_mode(False):  # an inference tensor could not be used in a later training step
            _windows[key] = torch.hann_window(length, dtype=torch.float64).to(device, dtype)
    return _windows[key]


def reflect_pad(wav: Tensor, left: int, right: int) -> Tensor:
    """Reflect the last axis by `left` and `right` samples without repeating the edge sample.

    Clips shorter than the padding are reflected to and fro, as numpy.pad(mode="reflect") does, so that any length of
    at least one sample is accepted; a single sample is repeated.
    """
    length = wav.shape[-1]
    if max(left, right) < length:
        if wav.dim() == 1:
            return F.pad(wav[None], (left, right), mode="reflect")[0]
        return F.pad(wav, (left, right), mode="reflect")
    period = max(2 * (length - 1), 1)
    index = torch.arange(-left, length + right, device=wav.device).remainder(period)
    return wav[..., torch.where(index < length, index, period - index)]


def stft(
    wav: Tensor, n_fft: int, hop: int, win: int | None = None, *, center: bool, normalized: bool = False
) -> Tensor:
    """Spectrum of wav [B, T]: complex64 [B, n_fft // 2 + 1, frames] with a Hann window of `win` samples.

    Args:
        center: the clip is reflected by n_fft / 2 on both sides, so that frame k is centred on sample k * hop and there
            are T // hop + 1 frames. Otherwise frame k starts at sample k * hop; a clip shorter than one frame is
            zero-padded.
        normalized: divided by the root of the window's energy.
    """
    win = n_fft if win is None else win
    with full_precision(wav):
        wav = wav.float()
        if center:
            wav = reflect_pad(wav, n_fft // 2, n_fft // 2)
        elif wav.shape[-1] < n_fft:
            wav = F.pad(wav, (0, n_fft - wav.shape[-1]))
        window = hann_window(win, wav.device, wav.dtype)
        spectrum = torch.stft(wav, n_fft, hop, win, window, center=False, return_complex=True)
        if normalized:
            # the window's energy is sum(hann^2) = 3/8 win
            spectrum = spectrum * (0.375 * win) ** -0.5
        return spectrum


def istft(spectrum: Tensor, n_fft: int, hop: int, length: int) -> Tensor:
    """Waveform [B, length] of a spectrum [B, n_fft // 2 + 1, frames]: the inverse of `stft(n_fft, hop, center=True)`.

    hop divides n_fft. Unlike torch.istft it never waits for the GPU (that one reads back whether the windows overlap).
    """
    frames, overlap = spectrum.shape[-1], n_fft // hop
    with full_precision(spectrum):
        window = hann_window(n_fft, spectrum.device, torch.float32)
        pieces = torch.fft.irfft(spectrum.transpose(1, 2), n_fft) * window
        wav = _overlap_add(pieces.unflatten(-1, (overlap, hop)))
        energy = _overlap_add(window.square().view(1, 1, overlap, hop).expand(1, frames, -1, -1))
        kept = slice(n_fft // 2, n_fft // 2 + length)
        return wav[:, kept] / energy[:, kept]


def _overlap_add(pieces: Tensor) -> Tensor:
    """Frames in parts of a hop [B, frames, overlap, hop], each frame one hop after the other -> [B, T]."""
    overlap = pieces.shape[2]
    shifted = (F.pad(pieces[:, :, i], (0, 0, i, overlap - 1 - i)) for i in range(overlap))
    return functools.reduce(torch.add, shifted).flatten(1)


def magnitude(spectrum: Tensor, floor: float = 1e-9) -> Tensor:
    """sqrt(re^2 + im^2 + floor) of a complex spectrum; `floor` keeps the gradient finite on silence."""
    return (spectrum.real.square() + spectrum.imag.square() + floor).sqrt()
