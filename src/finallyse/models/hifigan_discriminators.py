"""HiFi-GAN's discriminators (arXiv 2010.05646, section 2.3): multi-period and multi-scale."""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.audio.stft import reflect_pad
from finallyse.models import models_registry
from finallyse.models.base import Network
from finallyse.models.hifigan import LRELU_SLOPE
from finallyse.models.inputs import check_shape
from finallyse.models.norms import NormType, norm_of


class PeriodDiscriminator(nn.Module):
    """Looks at every `period`-th sample: wav [B, 1, T] -> logits [B, N], maps [B, C, T / period / 3^i, period]."""

    def __init__(self, period: int, widths: list[int]):
        super().__init__()
        norm = norm_of("weight")
        self.period = period
        channels = [1, *widths]
        strides = [3] * (len(widths) - 1) + [1]
        self.convs = nn.ModuleList(
            norm(nn.Conv2d(narrow, wide, (5, 1), (stride, 1), padding=(2, 0)))
            for (narrow, wide), stride in zip(itertools.pairwise(channels), strides, strict=True)
        )
        self.conv_post = norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wav: Tensor) -> tuple[Tensor, list[Tensor]]:
        wav = reflect_pad(wav, 0, -wav.shape[-1] % self.period)
        x = wav.unflatten(-1, (-1, self.period))
        feature_maps = []
        for conv in self.convs:
            x = F.leaky_relu_(conv(x), LRELU_SLOPE)
            feature_maps.append(x)
        x = self.conv_post(x)
        feature_maps.append(x)
        return x.flatten(1), feature_maps


@models_registry.register("mpd")
class MultiPeriodDiscriminator(Network):
    """One sub-discriminator per period. Shapes: wav [B, 1, T] -> logits, feature_maps: a list entry per period.

    Args:
        periods: period of each sub-discriminator, samples; coprime in the paper.
        widths: channels of the strided convolutions.

    Any T >= 1; padded by reflection to a multiple of the period. Raises UserError for another shape.
    """

    paper = "arXiv 2010.05646"

    def __init__(self, periods: list[int] = (2, 3, 5, 7, 11), widths: list[int] = (32, 128, 512, 1024, 1024)):
        super().__init__()
        self.discriminators = nn.ModuleList(PeriodDiscriminator(period, widths) for period in periods)

    def forward(self, wav: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        check_shape("mpd", wav, 1, "wav [B, 1, T]")
        outputs = [discriminator(wav) for discriminator in self.discriminators]
        return [logits for logits, _ in outputs], [maps for _, maps in outputs]


class ScaleDiscriminator(nn.Module):
    """Grouped strided convolutions: wav [B, 1, T] -> logits [B, N], feature maps [B, C, T down to T / 64]."""

    kernels, strides, groups = (15, 41, 41, 41, 41, 41, 5), (1, 2, 2, 4, 4, 1, 1), (1, 4, 16, 16, 16, 16, 1)

    def __init__(self, widths: list[int], norm_type: NormType):
        super().__init__()
        norm = norm_of(norm_type)
        channels = [1, *widths]
        self.convs = nn.ModuleList(
            norm(nn.Conv1d(narrow, wide, kernel, stride, padding=kernel // 2, groups=groups))
            for narrow, wide, kernel, stride, groups in zip(
                channels, channels[1:], self.kernels, self.strides, self.groups, strict=False
            )
        )
        self.conv_post = norm(nn.Conv1d(channels[-1], 1, 3, padding=1))

    def forward(self, wav: Tensor) -> tuple[Tensor, list[Tensor]]:
        x, feature_maps = wav, []
        for conv in self.convs:
            x = F.leaky_relu_(conv(x), LRELU_SLOPE)
            feature_maps.append(x)
        x = self.conv_post(x)
        feature_maps.append(x)
        return x.flatten(1), feature_maps


@models_registry.register("msd")
class MultiScaleDiscriminator(Network):
    """Three scale discriminators, the first spectral-normed; each but the first sees the waveform at half the rate.

    Args:
        same_scale: let all of them see the full rate (HiFi++, arXiv 2203.13086, section 3.5).
        widths: channels of the seven convolutions; multiples of 16.
        scales: number of discriminators.

    Shapes: wav [B, 1, T] -> logits, feature_maps: a list entry per scale. Any T >= 1. Raises UserError for another
    shape.
    """

    paper = "arXiv 2010.05646"

    def __init__(
        self, same_scale: bool = False, widths: list[int] = (128, 128, 256, 512, 1024, 1024, 1024), scales: int = 3
    ):
        super().__init__()
        self.same_scale = same_scale
        self.discriminators = nn.ModuleList(
            ScaleDiscriminator(widths, "weight" if i else "spectral") for i in range(scales)
        )

    def forward(self, wav: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        check_shape("msd", wav, 1, "wav [B, 1, T]")
        logits, feature_maps = [], []
        for i, discriminator in enumerate(self.discriminators):
            if i and not self.same_scale:
                wav = F.avg_pool1d(wav, 4, 2, padding=2)
            output = discriminator(wav)
            logits.append(output[0])
            feature_maps.append(output[1])
        return logits, feature_maps
