"""Multi-scale STFT discriminator (EnCodec, arXiv 2210.13438, section 3.4), the discriminator of FINALLY."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.audio.stft import stft
from finallyse.models import models_registry
from finallyse.models.base import Network
from finallyse.models.inputs import check_shape
from finallyse.models.norms import norm_of

LRELU_SLOPE = 0.2


class SameConv2d(nn.Module):
    """Convolution `conv` over [B, C, frames, bins] that keeps the frames and divides the bins by its stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel: tuple, stride=(1, 1), dilation=(1, 1), norm=None):
        super().__init__()
        padding = tuple((k - 1) * d // 2 for k, d in zip(kernel, dilation, strict=True))
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation)
        self.conv = conv if norm is None else norm(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class STFTDiscriminator(nn.Module):
    """Complex STFT -> 2-d convolutions: wav [B, 1, T] -> logits [B, 1, frames, bins / 8], feature maps likewise.

    The STFT is not centred: (T - n_fft) // hop + 1 frames; a clip shorter than n_fft is padded with zeros to one frame.
    """

    def __init__(self, filters: int, n_fft: int, hop_length: int, win_length: int):
        super().__init__()
        norm = norm_of("weight")
        self.n_fft, self.hop_length, self.win_length = n_fft, hop_length, win_length
        self.convs = nn.ModuleList(
            [
                SameConv2d(2, filters, (3, 9)),
                *(SameConv2d(filters, filters, (3, 9), (1, 2), (dilation, 1), norm) for dilation in (1, 2, 4)),
                SameConv2d(filters, filters, (3, 3), norm=norm),
            ]
        )
        self.conv_post = SameConv2d(filters, 1, (3, 3), norm=norm)

    def forward(self, wav: Tensor) -> tuple[Tensor, list[Tensor]]:
        spectrum = stft(wav.squeeze(1), self.n_fft, self.hop_length, self.win_length, center=False, normalized=True)
        x = torch.view_as_real(spectrum).permute(0, 3, 2, 1).contiguous()  # [B, re and im, frames, bins]
        feature_maps = []
        for conv in self.convs:
            x = F.leaky_relu_(conv(x), LRELU_SLOPE)
            feature_maps.append(x)
        return self.conv_post(x), feature_maps


@models_registry.register("ms-stft_disc")
class MultiScaleSTFTDiscriminator(Network):
    """One STFT discriminator per window size; the default windows are those for 48 kHz (16 kHz: 2048 down to 128).

    Args:
        filters: channels of the convolutions.
        n_ffts, hop_lengths, win_lengths: length, hop and window of each STFT, samples.

    Shapes: wav [B, 1, T] -> logits, feature_maps: a list entry per window size. Any T >= 1. Raises UserError for
    another shape.
    """

    paper = "arXiv 2210.13438"
    input_rate = 48000

    def __init__(
        self,
        filters: int = 64,
        n_ffts: list[int] = (4096, 2048, 1024, 512, 256),
        hop_lengths: list[int] = (1024, 512, 256, 128, 64),
        win_lengths: list[int] = (4096, 2048, 1024, 512, 256),
    ):
        super().__init__()
        self.discriminators = nn.ModuleList(
            STFTDiscriminator(filters, *sizes) for sizes in zip(n_ffts, hop_lengths, win_lengths, strict=True)
        )

    def forward(self, wav: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        check_shape("ms-stft_disc", wav, 1, "wav [B, 1, T]")
        outputs = [discriminator(wav) for discriminator in self.discriminators]
        return [logits for logits, _ in outputs], [maps for _, maps in outputs]
