"""A complex ratio mask (Williamson et al., IEEE/ACM TASLP 24(3), 2016) for speech enhancement on any machine.

A convolutional encoder and decoder over frequency around a net over time, as in Tan and Wang's convolutional recurrent
network (Interspeech 2018); over time dilated convolutions in residual blocks, as in Conv-TasNet (arXiv 1809.07454),
whose reach is bounded, instead of a recurrent net.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.audio.stft import istft, stft
from finallyse.errors import UserError
from finallyse.models import models_registry
from finallyse.models.base import Generator
from finallyse.models.inputs import check_shape

SLOPE = 0.1  # of the leaky ReLUs


class DilatedBlock(nn.Module):
    """x + a convolution over three frames, `dilation` apart, in fewer channels: [B, frames, width] -> the same.

    Args:
        width: channels of x.
        hidden: channels within the block.
        dilation: distance of the three frames.
        looks_ahead: whether the last of them is after the current frame; otherwise that is the last one.
    """

    def __init__(self, width: int, hidden: int, dilation: int, looks_ahead: bool):
        super().__init__()
        self.dilation, self.looks_ahead = dilation, looks_ahead
        self.norm = nn.LayerNorm(width)
        self.squeeze = nn.Linear(width, hidden)
        self.over_time = nn.Linear(3 * hidden, hidden)
        self.expand = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        frames, dilation = x.shape[1], self.dilation
        y = F.leaky_relu(self.squeeze(self.norm(x)), SLOPE)
        ahead = dilation if self.looks_ahead else 0
        y = F.pad(y, (0, 0, 2 * dilation - ahead, ahead))
        y = torch.cat([y[:, start : start + frames] for start in (0, dilation, 2 * dilation)], -1)
        return x + self.expand(F.leaky_relu(self.over_time(y), SLOPE))


class FrequencyConv(nn.Conv2d):
    """A convolution over three neighbouring bands: [N, C, 1, bands] -> [N, C', 1, bands / stride]."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1):
        super().__init__(channels, out_channels, (1, 3), stride=(1, stride), padding=(0, 1))


def spread(x: Tensor) -> Tensor:
    """Two bands from every band: [N, 2 C, 1, bands] -> [N, C, 1, 2 bands], the first half of the channels first."""
    count, channels, _, bands = x.shape
    return x.permute(0, 2, 3, 1).reshape(count, 1, 2 * bands, channels // 2).permute(0, 3, 1, 2)


def means_of_last(x: Tensor, counts: list[int]) -> list[Tensor]:
    """Means over the current and earlier frames, as far as there are any: [B, frames, bins] -> the same per count.

    Args:
        counts: numbers of frames, rising powers of two.
    """
    total, count, means = x, torch.ones_like(x[:1, :, :1]), []
    for step in (2**i for i in range(max(counts, default=1).bit_length() - 1)):
        total, count = (each + F.pad(each, (0, 0, step, 0))[:, : each.shape[1]] for each in (total, count))
        if 2 * step in counts:
            means.append(total / count)
    return means


@models_registry.register("complex_mask_gen")
class ComplexMaskGenerator(Generator):
    """Multiplies the spectrum of the waveform by a complex mask of magnitude below 2: it removes, and hardly adds.

    The network sees real and imaginary part and magnitude of each bin, the magnitude to the power of 0.3, and means of
    the last magnitudes, which tell steady noise from speech at the full resolution. It starts as the identity.

    Args:
        patch: bins that the first layer joins to a band.
        channels: channels of the encoder's layers; each layer but the first halves the number of bands.
        width: channels of the net over time, per frame.
        hidden: channels within its blocks.
        dilations: distance of the three frames that each block combines, in frames.
        blocks_ahead: the first so many blocks see as far ahead as back; the others see only back.
        means: numbers of frames, rising powers of two, of the means. By default a frame depends on 180 earlier and 7
            later ones (2.88 s and 0.112 s).
        n_fft: window of the spectrum, samples, a multiple of 128; the hop is a quarter of it, by default 16 ms.

    Shapes: wav [B, 1, T] -> wav [B, 1, T], 16 kHz, any T >= 1. Raises UserError for another shape, and for arguments
    out of range.
    """

    paper = "arXiv 1809.07454"
    input_kind = "wav"
    power = 0.3
    floor = 1e-7  # of the power of a bin: bounds the gradient of silence
    gain = 2.0  # the mask's magnitude is less
    repeats = 27  # of a stream: a fifth of one core

    def __init__(
        self,
        patch: int = 4,
        channels: list[int] = (16, 24, 32, 48),
        width: int = 192,
        hidden: int = 64,
        dilations: list[int] = (1, 2, 4, 8, 16, 1, 2, 4, 8, 16),
        blocks_ahead: int = 3,
        means: list[int] = (4, 16, 64),
        n_fft: int = 1024,
    ):
        super().__init__()
        if n_fft < 128 or n_fft % 128:
            raise UserError(f"complex_mask_gen: n_fft={n_fft} must be a multiple of 128 samples, at least 128")
        self.n_fft, self.hop = n_fft, n_fft // 4
        self.bins = n_fft // 2  # all but that of 0 Hz, which is removed
        if patch < 1 or not channels or self.bins % (patch << (len(channels) - 1)):
            raise UserError(
                f"complex_mask_gen: patch={patch} with {len(channels)} layers: patch times 2 for every layer but the "
                f"first must divide {self.bins} bins"
            )
        if not dilations or min(dilations) < 1:
            raise UserError(f"complex_mask_gen: dilations={list(dilations)} must be numbers of frames, at least one")
        if not 0 <= blocks_ahead <= len(dilations):
            raise UserError(
                f"complex_mask_gen: blocks_ahead={blocks_ahead} must be at most {len(dilations)}, all blocks"
            )
        if min(*channels, width, hidden) < 1:
            raise UserError(
                f"complex_mask_gen: channels={list(channels)}, width={width} and hidden={hidden} must be at least 1"
            )
        if any(count < 2 or count & (count - 1) for count in means) or list(means) != sorted(set(means)):
            raise UserError(f"complex_mask_gen: means={list(means)} must be rising powers of two")
        self.patch, self.means = patch, list(means)
        # What all blocks see, and half a window; the other half, of the synthesis, is measured to be below -60 dB.
        ahead = sum(dilations[:blocks_ahead])
        self.reach_ahead = self.hop * ahead + n_fft // 2
        back = ahead + 2 * sum(dilations[blocks_ahead:]) + max(means, default=1) - 1
        self.reach_back = self.hop * back + n_fft // 2
        layers = list(itertools.pairwise(channels))
        bands = self.bins // (patch << len(layers))  # of the innermost layer
        self.encoder = nn.ModuleList(
            [
                FrequencyConv((3 + len(means)) * patch, channels[0]),
                *(FrequencyConv(outer, inner, 2) for outer, inner in layers),
            ]
        )
        self.squeeze = nn.Linear(bands * channels[-1], width)
        self.over_time = nn.Sequential(
            *(DilatedBlock(width, hidden, dilation, i < blocks_ahead) for i, dilation in enumerate(dilations))
        )
        self.expand = nn.Linear(width, bands * channels[-1])
        self.skips = nn.ModuleList(nn.Conv2d(count, count, 1) for count in reversed(channels))
        self.decoder = nn.ModuleList(FrequencyConv(inner, 2 * outer) for outer, inner in reversed(layers))
        self.last = FrequencyConv(channels[0], 2 * patch)
        self._start_as_identity()

    @property
    def alignment(self) -> int:
        return self.n_fft

    def _start_as_identity(self) -> None:
        nn.init.zeros_(self.last.weight)
        real = (1 - self.gain**-2) ** -0.5  # which `mask` makes 1
        with torch.no_grad():
            self.last.bias.copy_(torch.tensor([real, 0.0]).repeat(self.patch))

    def forward(self, wav: Tensor) -> Tensor:
        check_shape("complex_mask_gen", wav, 1, "wav [B, 1, T] at 16 kHz")
        spectrum = stft(wav[:, 0], self.n_fft, self.hop, center=True).transpose(1, 2)[..., 1:]
        masked = spectrum * torch.view_as_complex(self.mask(torch.view_as_real(spectrum)))
        return istft(F.pad(masked, (1, 0)).transpose(1, 2), self.n_fft, self.hop, wav.shape[-1]).unsqueeze(1)

    def mask(self, spectrum: Tensor) -> Tensor:
        """The mask for the bins of a spectrum: float [B, frames, bins, real and imaginary part] -> the same shape."""
        batch, frames = spectrum.shape[:2]
        real, imaginary = spectrum.unbind(-1)
        power = real.square() + imaginary.square() + self.floor
        magnitude = power.pow(self.power / 2)
        factor = magnitude * power.rsqrt()
        seen = [real * factor, imaginary * factor, magnitude, *means_of_last(magnitude, self.means)]
        x = torch.stack(seen, -1).reshape(batch * frames, 1, self.bins // self.patch, -1).permute(0, 3, 1, 2)
        outputs = []
        for conv in self.encoder:
            x = F.leaky_relu(conv(x), SLOPE)
            outputs.append(x)
        inner = x.permute(0, 2, 3, 1)
        flat = self.over_time(self.squeeze(inner.reshape(batch, frames, -1)))
        x = F.leaky_relu(self.expand(flat), SLOPE).reshape(inner.shape).permute(0, 3, 1, 2)
        for conv, skip, output in zip(self.decoder, self.skips[:-1], reversed(outputs[1:]), strict=True):
            x = F.leaky_relu(spread(conv(x + skip(output))), SLOPE)
        x = self.last(x + self.skips[-1](outputs[0]))
        real, imaginary = x.permute(0, 2, 3, 1).reshape(batch, frames, self.bins, 2).float().unbind(-1)
        factor = (1 + (real.square() + imaginary.square()) / self.gain**2).rsqrt()
        return torch.stack([real * factor, imaginary * factor], -1)
