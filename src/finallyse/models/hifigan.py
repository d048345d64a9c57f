"""HiFi-GAN's generator (Kong et al., arXiv 2010.05646, section 2.2)."""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.models import models_registry
from finallyse.models.base import Generator
from finallyse.models.inputs import check_shape
from finallyse.models.norms import Norm, NormType, norm_of
from finallyse.precision import full_precision

LRELU_SLOPE = 0.1


def _conv(norm: Norm, channels: int, kernel_size: int, dilation: int) -> nn.Module:
    """A convolution that keeps the length."""
    padding = (kernel_size - 1) * dilation // 2
    return norm(nn.Conv1d(channels, channels, kernel_size, dilation=dilation, padding=padding))


class ResBlock1(nn.Module):
    """For each dilation: LReLU, dilated convolution, LReLU, convolution, add. Shapes: [B, C, T] -> [B, C, T]."""

    def __init__(self, channels: int, kernel_size: int, dilations: list[int], norm_type: NormType = "weight"):
        super().__init__()
        norm = norm_of(norm_type)
        self.convs1 = nn.ModuleList(_conv(norm, channels, kernel_size, dilation) for dilation in dilations)
        self.convs2 = nn.ModuleList(_conv(norm, channels, kernel_size, 1) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv1, conv2 in zip(self.convs1, self.convs2, strict=True):
            y = conv1(F.leaky_relu(x, LRELU_SLOPE))
            x = x + conv2(F.leaky_relu_(y, LRELU_SLOPE))
        return x


class ResBlock2(nn.Module):
    """For each dilation: LReLU, dilated convolution, add. Shapes: [B, C, T] -> [B, C, T]."""

    def __init__(self, channels: int, kernel_size: int, dilations: list[int], norm_type: NormType = "weight"):
        super().__init__()
        norm = norm_of(norm_type)
        self.convs = nn.ModuleList(_conv(norm, channels, kernel_size, dilation) for dilation in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, LRELU_SLOPE))
        return x


class Upsampler(nn.Module):
    """HiFi-GAN's body: conv_pre, then transposed convolutions, each followed by the mean of its residual blocks.

    Shapes: [B, in_channels, F] -> [B, out_channels, F * prod(upsample_rates)], out_channels = initial_channel / 2^ups.
    """

    def __init__(
        self,
        in_channels: int,
        resblock: Literal["1", "2"],
        upsample_rates: list[int],
        upsample_kernel_sizes: list[int],
        upsample_initial_channel: int,
        resblock_kernel_sizes: list[int],
        resblock_dilation_sizes: list[list[int]],
        conv_pre_kernel_size: int,
        norm_type: NormType = "weight",
    ):
        super().__init__()
        norm = norm_of(norm_type)
        block = {"1": ResBlock1, "2": ResBlock2}[str(resblock)]
        channels = [upsample_initial_channel // 2**i for i in range(len(upsample_rates) + 1)]
        self.conv_pre = norm(
            nn.Conv1d(in_channels, channels[0], conv_pre_kernel_size, padding=conv_pre_kernel_size // 2)
        )
        self.ups = nn.ModuleList(
            norm(nn.ConvTranspose1d(wide, narrow, kernel, rate, padding=(kernel - rate) // 2))
            for wide, narrow, kernel, rate in zip(
                channels[:-1], channels[1:], upsample_kernel_sizes, upsample_rates, strict=True
            )
        )
        self.resblocks = nn.ModuleList(
            block(narrow, kernel, dilations, norm_type)
            for narrow in channels[1:]
            for kernel, dilations in zip(resblock_kernel_sizes, resblock_dilation_sizes, strict=True)
        )
        self.blocks_per_up = len(resblock_kernel_sizes)
        self.out_channels = channels[-1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu_(x, LRELU_SLOPE))
            blocks = self.resblocks[i * self.blocks_per_up : (i + 1) * self.blocks_per_up]
            x = functools.reduce(torch.add, (block(x) for block in blocks)) / self.blocks_per_up
        return F.leaky_relu_(x)  # PyTorch's default slope, 0.01, as published


@models_registry.register("hifigan_gen")
class HiFiGANGenerator(Upsampler, Generator):
    """HiFi-GAN: log-mel -> waveform at 16 kHz. The defaults are V1; V2 has upsample_initial_channel 128.

    Args:
        resblock: "1": residual blocks with two convolutions per dilation; "2": with one, as in V3.
        upsample_rates: factor of each transposed convolution; their product is the hop of the mel.
        upsample_kernel_sizes: kernel size of each transposed convolution, samples.
        upsample_initial_channel: channels before the first transposed convolution; each of them halves the channels.
        resblock_kernel_sizes: kernel size of each parallel residual block; their outputs are averaged.
        resblock_dilation_sizes: dilations of each residual block.

    Shapes: mel [B, 80, F] -> wav [B, 1, F * prod(upsample_rates)], any F >= 1.
    Raises UserError for an input of another shape.
    """

    paper = "arXiv 2010.05646"
    input_kind = "mel"

    def __init__(
        self,
        resblock: Literal["1", "2"] = "1",
        upsample_rates: list[int] = (8, 8, 2, 2),
        upsample_kernel_sizes: list[int] = (16, 16, 4, 4),
        upsample_initial_channel: int = 512,
        resblock_kernel_sizes: list[int] = (3, 7, 11),
        resblock_dilation_sizes: list[list[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
    ):
        super().__init__(
            in_channels=80,
            resblock=resblock,
            upsample_rates=upsample_rates,
            upsample_kernel_sizes=upsample_kernel_sizes,
            upsample_initial_channel=upsample_initial_channel,
            resblock_kernel_sizes=resblock_kernel_sizes,
            resblock_dilation_sizes=resblock_dilation_sizes,
            conv_pre_kernel_size=7,
        )
        self.conv_post = norm_of("weight")(nn.Conv1d(self.out_channels, 1, 7, padding=3))
        self.hop = math.prod(upsample_rates)

    @property
    def alignment(self) -> int:
        return self.hop

    def forward(self, mel: Tensor) -> Tensor:
        check_shape("hifigan_gen", mel, 80, "a log-mel spectrogram [B, 80, F]")
        return output_head(self.conv_post, super().forward(mel))


def output_head(conv: nn.Module, x: Tensor) -> Tensor:
    """Last convolution and tanh, in float32 even under autocast: 8 bits of mantissa would be audible as noise."""
    with full_precision(x):
        return torch.tanh(conv(x.float()))
