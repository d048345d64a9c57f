"""FINALLY's generator (Babaev et al., arXiv 2410.05920, section 3.3): HiFi++ conditioned on WavLM; its 48 kHz head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.models import models_registry
from finallyse.models.base import takes_arguments_of
from finallyse.models.hifigan import LRELU_SLOPE, ResBlock1, output_head
from finallyse.models.hifipp import A2AHiFiPlusPlusGenerator, MultiScaleResnet
from finallyse.models.inputs import check_shape
from finallyse.models.norms import NormType, norm_of, set_weight, silence


class UpsampleWaveUNet(nn.Module):
    """The head for a higher rate: 1-d U-Net, LReLU, transposed convolution to one channel, tanh (float32 at the end).

    Shapes: [B, in_width, T] -> wav [B, 1, factor * T].
    """

    def __init__(
        self, in_width: int, block_widths: list[int], block_depth: int, features: int, factor: int, norm_type: NormType
    ):
        super().__init__()
        self.waveunet = MultiScaleResnet(block_widths, block_depth, in_width, features, norm_type=norm_type)
        self.upsample_block = nn.Sequential(norm_of(norm_type)(nn.ConvTranspose1d(features, 1, factor, factor)))

    def start_as_repetition(self) -> None:
        """Initialise the head to repeat each sample of channel 0 `factor` times."""
        (upsample,) = self.upsample_block
        self.waveunet.pass_through({(0, 0): 1.0, (1, 0): -1.0})
        weight = upsample.weight.detach().clone()
        # x and -x, since LReLU attenuates one half of the values of each: LReLU(x) - LReLU(-x) = (1 + slope) x
        weight[0], weight[1] = 1 / (1 + LRELU_SLOPE), -1 / (1 + LRELU_SLOPE)
        set_weight(upsample, weight)
        silence(upsample, slice(2, None))
        with torch.no_grad():
            upsample.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu_(self.waveunet(x), LRELU_SLOPE)
        return output_head(self.upsample_block, x)


@models_registry.register("finally_gen")
class FinallyGenerator(A2AHiFiPlusPlusGenerator):
    """FINALLY: waveform and WavLM features -> clean waveform at 16 kHz, or at 48 kHz with the upsampling head.

    wav -> log-mel -> SpectralUNet -> prepend WavLM's last hidden state -> pre_upsampler_processing -> upsampler
    -> WaveUNet -> SpectralMaskNet -> conv_post and tanh, or UpsampleWaveUNet.

    Args:
        ssl_dim: channels of the features (WavLM-large: 1024).
        identity_start: as in `a2a_hifi++_gen`; the untrained head repeats each sample.
        use_upsamplewaveunet: include the head for the higher rate; conv_post is then kept for compatibility with
            checkpoints, unused and frozen.
        upsamplewaveunet_block_widths: channels of the levels of the head's U-Net, outermost first.
        upsamplewaveunet_block_depth: residual units before and after each inner level of the head's U-Net.
        upsamplewaveunet_upsample_factor: factor by which the head raises the rate.
        upsamplewaveunet_upsampler_features: channels between the head's U-Net and its transposed convolution.

    All others as in `a2a_hifi++_gen`.

    Shapes: wav [B, 1, T] at 16 kHz, ssl [B, ssl_dim, N] of the same clip -> wav [B, 1, T] or [B, 1, 3 T], any T >= 1,
    N >= 1. The features are interpolated to the clip's ceil(T / 256) frames by nearest neighbour, for any N.
    Raises UserError for another shape.
    """

    paper = "arXiv 2410.05920"
    input_kind = "wav+ssl"
    variants = ({}, {"use_upsamplewaveunet": True})

    @takes_arguments_of(
        A2AHiFiPlusPlusGenerator,
        hifi_upsample_initial_channel=512,
        hifi_input_channels=512,
        spectralunet_block_widths=(16, 32, 64, 128, 256),
        spectralunet_block_depth=4,
        spectralunet_out_channels=512,
        waveunet_block_widths=(128, 128, 256, 512),
        spectralmasknet_block_widths=(64, 128, 256, 512),
        spectralmasknet_block_depth=1,
    )
    def __init__(
        self,
        *,
        use_upsamplewaveunet: bool = False,
        upsamplewaveunet_block_widths: list[int] = (128, 128, 128, 128, 256),
        upsamplewaveunet_block_depth: int = 3,
        upsamplewaveunet_upsample_factor: int = 3,
        upsamplewaveunet_upsampler_features: int = 512,
        ssl_dim: int = 1024,
        **inherited,
    ):
        super().__init__(**inherited)
        self.ssl_dim = ssl_dim
        norm_type = inherited["norm_type"]
        norm = norm_of(norm_type)
        width = ssl_dim + (inherited["spectralunet_out_channels"] if self.spectralunet is not None else 80)
        self.pre_upsampler_processing = nn.Sequential(
            ResBlock1(width, 3, [1, 3, 5], norm_type),
            nn.LeakyReLU(LRELU_SLOPE),
            norm(nn.Conv1d(width, inherited["hifi_input_channels"], 1)),
        )
        self.upsamplewaveunet = None
        self.output_rate = self.input_rate
        if use_upsamplewaveunet:
            self.upsamplewaveunet = UpsampleWaveUNet(
                self.hifi.out_channels,
                upsamplewaveunet_block_widths,
                upsamplewaveunet_block_depth,
                upsamplewaveunet_upsampler_features,
                upsamplewaveunet_upsample_factor,
                norm_type,
            )
            self.output_rate = self.input_rate * upsamplewaveunet_upsample_factor
            self.conv_post.requires_grad_(False)
            if inherited["identity_start"]:
                self.upsamplewaveunet.start_as_repetition()

    @property
    def alignment(self) -> int:
        head = self.upsamplewaveunet
        return super().alignment if head is None else math.lcm(super().alignment, head.waveunet.multiple)

    def forward(self, wav: Tensor, ssl: Tensor) -> Tensor:
        check_shape("finally_gen", wav, 1, "wav [B, 1, T] at 16 kHz")
        check_shape("finally_gen", ssl, self.ssl_dim, f"ssl features [B, {self.ssl_dim}, N]")
        length = wav.shape[-1]
        padded = F.pad(wav, (0, -length % self.crop))
        x = self.spectral_features(self.mel(padded))
        x = torch.cat([self.align(ssl, length, x.shape[-1]).to(x.dtype), x], 1)
        x = self.hifi(self.pre_upsampler_processing(x))
        x = self.refine(x, padded)
        if self.upsamplewaveunet is None:
            return output_head(self.conv_post, x)[..., :length]
        return self.upsamplewaveunet(x)[..., : length * (self.output_rate // self.input_rate)]

    def align(self, ssl: Tensor, samples: int, frames: int) -> Tensor:
        """Features [B, D, N] -> [B, D, frames]: interpolated to the clip's frames, the last one repeated beyond."""
        held = -(-samples // self.hop)
        ssl = F.interpolate(ssl, size=held, mode="nearest")
        return ssl if held == frames else F.pad(ssl, (0, frames - held), mode="replicate")
