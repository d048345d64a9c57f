"""HiFi++ (Andreev et al., arXiv 2203.13086): SpectralUNet -> HiFi upsampler -> WaveUNet -> SpectralMaskNet -> waveform.

The parts follow in signal order, then the two generators (from mel, from waveform).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.audio.mel import LogMel, mel_filterbank
from finallyse.audio.stft import istft, magnitude, stft
from finallyse.errors import UserError
from finallyse.models import models_registry
from finallyse.models.base import Generator, takes_arguments_of
from finallyse.models.hifigan import Upsampler, output_head
from finallyse.models.inputs import check_shape
from finallyse.models.norms import Norm, NormType, init_identity, norm_of, pass_through, silence

TimePadding = Literal["multiple", "power_of_two"]


# --- U-Nets over time or over time and frequency (section 3.2) --------------------------------------------------


class Residual(nn.Module):
    """x + conv(LReLU(x)). Shapes: [B, C, ...] -> [B, C, ...]."""

    def __init__(self, conv: nn.Module):
        super().__init__()
        self.net = nn.Sequential(nn.LeakyReLU(), conv)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(x)


class Upsampling(nn.Sequential):
    """Nearest upsampling and 1x1 convolution. The two commute, so the convolution runs first, on the smaller input."""

    def __init__(self, scale: int, conv: nn.Module):
        super().__init__(nn.Upsample(scale_factor=scale), conv)

    def forward(self, x: Tensor) -> Tensor:
        upsample, conv = self
        return upsample(conv(x))


class ConcatSkip(nn.Module):
    """Concatenates a net's output to its input: [B, C, ...] -> [B, 2 C, ...]."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.net(x)], 1)


class MultiScaleResnet(nn.Module):
    """U-Net: each level has residual units, a strided convolution down, the next level, and the reverse on the way up.

    Args:
        block_widths: channels of the levels, outermost first.
        block_depth: residual units before and after each inner level.
        scale_factor: stride between levels.

    Shapes: [B, in_width, T] -> [B, out_width, T], any T: padded with zeros to `multiple` = scale_factor^(levels - 1).
    """

    conv, kernel = nn.Conv1d, 5

    def __init__(
        self,
        block_widths: list[int],
        block_depth: int,
        in_width: int,
        out_width: int,
        scale_factor: int = 4,
        norm_type: NormType = "weight",
    ):
        super().__init__()
        norm = norm_of(norm_type)
        self.multiple = scale_factor ** (len(block_widths) - 1)
        net = self._residuals(block_widths[-1], block_depth, norm)
        for width, inner_width in reversed(list(itertools.pairwise(block_widths))):
            level = nn.Sequential(
                self._residuals(width, block_depth, norm),
                norm(self.conv(width, inner_width, scale_factor, scale_factor)),
                net,
                Upsampling(scale_factor, norm(self.conv(inner_width, width, 1))),
                self._residuals(width, block_depth, norm),
            )
            net = nn.Sequential(ConcatSkip(level), norm(self.conv(2 * width, width, 1)))
        padding = self.kernel // 2
        self.net = nn.Sequential(
            norm(self.conv(in_width, block_widths[0], self.kernel, padding=padding)),
            net,
            norm(self.conv(block_widths[0], out_width, self.kernel, padding=padding)),
        )

    def pass_through(self, gains: Mapping[tuple[int, int], float]) -> None:
        """Make some output channels copies of input channels: (output, input) -> factor, bypassing all inner levels.

        On the way, the copy of output channel i is in channel i.
        """
        first, (_, merge), last = self.net
        pass_through(first, gains)
        copies = {(to, to): 1.0 for to, _ in gains}
        pass_through(merge, copies)
        pass_through(last, copies)

    def _residuals(self, width: int, depth: int, norm: Norm) -> nn.Sequential:
        padding = self.kernel // 2
        return nn.Sequential(
            *(Residual(norm(self.conv(width, width, self.kernel, padding=padding))) for _ in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        return self.net(F.pad(x, (0, -length % self.multiple)))[..., :length]


class MultiScaleResnet2d(MultiScaleResnet):
    """The same over time and frequency, 3x3. Shapes: [B, in_width, bins, frames] -> [B, out_width, bins, frames].

    Frames must be a multiple of `multiple`: the callers pad them differently. The frequency axis is padded with
    16 - bins % 16 bins of zeros (16 if bins is a multiple of 16, as published), cropped afterwards.
    """

    conv, kernel = nn.Conv2d, 3

    def forward(self, x: Tensor) -> Tensor:
        bins = x.shape[2]
        step = max(16, self.multiple)
        if x.device.type == "cpu":  # on which convolutions of few channels are faster in this layout
            x = x.contiguous(memory_format=torch.channels_last)
        return self.net(F.pad(x, (0, 0, 0, step - bins % step)))[:, :, :bins]


# --- SpectralUNet (section 3.2.1) -------------------------------------------------------------------------------------


def mel_interpolation(sample_rate: int = 16000, n_fft: int = 1024, n_mels: int = 80, fmax: float = 8000.0) -> Tensor:
    """Matrix [n_fft // 2 + 1, n_mels] that interpolates mel bands linearly to STFT bins.

    Band i has weight 1 where the support of band i + 1 begins, falling to 0 at the next band's and the previous one's.
    """
    support = mel_filterbank(sample_rate, n_fft, n_mels, 0.0, fmax) > 0
    first = support.argmax(1)
    knots = np.append(first, len(support[-1]) - support[-1, ::-1].argmax())
    matrix = np.zeros((n_mels + 1, support.shape[1] + 1))  # a row before the first band and a bin after the last
    for i, (start, end) in enumerate(itertools.pairwise(knots)):
        matrix[i, start : end + 1] = np.linspace(1, 0, end - start + 1)
        matrix[i + 1, start : end + 1] = np.linspace(0, 1, end - start + 1)
    return torch.from_numpy(matrix[1:, :-1].T.copy()).float()


class SpectralUNet(nn.Module):
    """Cleans a log-mel spectrogram on the linear frequency axis with a 2-d U-Net.

    The mel bands are mapped to 513 bins twice, by a fixed interpolation and by a learned 1x1 convolution, and stacked
    with a positional channel that encodes the frequency.

    Shapes: mel [B, 80, F] -> [B, out_channels, F], any F. Frames are padded with zeros and cropped afterwards:
    time_padding "multiple" pads to a multiple of the U-Net's stride (16 by default), "power_of_two" to the next power
    of two, as published. See `HiFiPlusPlusGenerator` for the effect.
    """

    bins = 513

    def __init__(
        self,
        block_widths: list[int],
        block_depth: int,
        positional_encoding: bool,
        out_channels: int,
        norm_type: NormType,
        time_padding: TimePadding,
    ):
        super().__init__()
        norm = norm_of(norm_type)
        self.time_padding = time_padding
        self.learnable_mel2linspec = norm(nn.Conv1d(80, self.bins, 1))
        self.net = MultiScaleResnet2d(
            block_widths,
            block_depth,
            in_width=3 if positional_encoding else 2,
            out_width=block_widths[0],
            scale_factor=2,
            norm_type=norm_type,
        )
        self.post_conv_2d = nn.Sequential(norm(nn.Conv2d(block_widths[0], 1, 1)))
        self.post_conv_1d = nn.Sequential(norm(nn.Conv1d(self.bins, out_channels, 1)))
        self.register_buffer("mel2linspec", mel_interpolation(), persistent=False)
        position = torch.linspace(0, 1, self.bins)[None, None, :, None] if positional_encoding else None
        self.register_buffer("position", position, persistent=False)

    def padded_frames(self, frames: int) -> int:
        """The number of frames that the U-Net works on."""
        if self.time_padding == "power_of_two":
            frames = 1 << (frames - 1).bit_length()
        return math.ceil(frames / self.net.multiple) * self.net.multiple

    def forward(self, mel: Tensor) -> Tensor:
        frames = mel.shape[-1]
        mel = F.pad(mel, (0, self.padded_frames(frames) - frames))
        fixed = torch.matmul(self.mel2linspec, mel).unsqueeze(1)
        learned = self.learnable_mel2linspec(mel).unsqueeze(1)
        channels = [fixed, learned]
        if self.position is not None:
            channels.insert(1, self.position.expand_as(fixed))
        x = self.net(torch.cat(channels, 1))
        x = self.post_conv_2d(x).squeeze(1)
        return self.post_conv_1d(x)[..., :frames]


# --- SpectralMaskNet (section 3.2.3) ----------------------------------------------------------------------------------


class SpectralMaskNet(nn.Module):
    """Multiplies each channel's STFT by a mask that a 2-d U-Net predicts from the magnitudes of all channels.

    Bin 0 and frame 0 pass unchanged. The U-Net sees the magnitudes to the power of `compression`. The transforms and
    the multiplication are float32 even under autocast.

    Shapes: waveform features [B, C, T] -> [B, C, T], any T.
    """

    n_fft, hop = 1024, 256
    floor = 1e-4

    def __init__(
        self, channels: int, block_widths: list[int], block_depth: int, norm_type: NormType, compression: float = 1.0
    ):
        super().__init__()
        self.compression = compression
        self.net = MultiScaleResnet2d(
            block_widths, block_depth, in_width=channels, out_width=channels, scale_factor=2, norm_type=norm_type
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, length = x.shape
        spectrum = stft(x.flatten(0, 1), self.n_fft, self.hop, center=True)
        mask = self.mask(magnitude(spectrum[:, 1:, 1:]).unflatten(0, (batch, channels)))
        mask = F.pad(mask.flatten(0, 1), (1, 0, 1, 0), value=1.0)
        return istft(spectrum * mask, self.n_fft, self.hop, length).unflatten(0, (batch, channels))

    def mask(self, magnitudes: Tensor) -> Tensor:
        """Positive factors of the shape of the magnitudes [B, C, bins, frames]; most of the padding is on the left."""
        frames = magnitudes.shape[-1]
        padding = -frames % max(8, self.net.multiple)
        right = padding // 2
        left = padding - right
        if self.compression != 1:
            magnitudes = (magnitudes + self.floor) ** self.compression  # the floor bounds the gradient of silence
        x = self.net(F.pad(magnitudes, (left, right)))
        return F.softplus(x[..., left : left + frames].float())


# --- the generators ---------------------------------------------------------------------------------------------------


@models_registry.register("hifi++_gen")
class HiFiPlusPlusGenerator(Generator):
    """HiFi++ from log-mel: mel -> SpectralUNet -> upsampler -> WaveUNet -> SpectralMaskNet -> conv_post -> tanh.

    Args:
        hifi_resblock, hifi_upsample_rates, hifi_upsample_kernel_sizes, hifi_upsample_initial_channel,
            hifi_resblock_kernel_sizes, hifi_resblock_dilation_sizes: upsampler argument, as in `hifigan_gen`.
        hifi_input_channels: input channels of the upsampler; with a SpectralUNet, its `spectralunet_out_channels`.
        hifi_conv_pre_kernel_size: kernel size of the upsampler's first convolution, frames.
        use_spectralunet, use_waveunet, use_spectralmasknet: include this U-Net.
        spectralunet_block_widths, waveunet_block_widths, spectralmasknet_block_widths: channels of the levels of this
            U-Net, outermost first.
        spectralunet_block_depth, waveunet_block_depth, spectralmasknet_block_depth: residual units before and after
            each inner level of this U-Net.
        spectralunet_positional_encoding: give the SpectralUNet the position of each bin, 0 to 1, as an extra channel.
        spectralunet_out_channels: output channels of the SpectralUNet.
        spectralmasknet_compression: exponent of the magnitudes that the SpectralMaskNet sees, in (0, 1]; published: 1.
            Below 1, quiet and loud parts of a spectrum are of similar size, from which it learns faster.
        norm_type: norm of the weights of all convolutions: "weight" or "spectral".
        use_skip_connect: add the input of each of the last two U-Nets to its output through a 1x1 convolution
            (initialised to the identity; kept, unused and frozen, if that U-Net is missing).
        waveunet_before_spectralmasknet: whether the WaveUNet comes first.
        time_padding: "multiple" (default) pads the SpectralUNet's frames with zeros to a multiple of 16, "power_of_two"
            to the next power of two, as published: for checkpoints trained and measured that way. They are equal if the
            number of frames is a power of two, as in the recipes' segments of 8192 samples. Otherwise the published
            padding makes the output depend on the clip's length and costs up to twice the work. Measured on 5 s of
            speech, 312 frames padded to 320 or 512, random weights (benchmarks/models.py): the two differ by 16 to 19 %
            RMS in the last 16 frames, by more than 0.1 % in the last 74 to 83, not before; "multiple" takes 0.42 to
            0.63 of the time.

    Shapes: mel [B, 80, F] -> wav [B, 1, 256 F], any F >= 1. Raises UserError for an input of another shape.
    """

    paper = "arXiv 2203.13086"
    input_kind = "mel"

    def __init__(
        self,
        hifi_resblock: Literal["1", "2"] = "1",
        hifi_upsample_rates: list[int] = (8, 8, 2, 2),
        hifi_upsample_kernel_sizes: list[int] = (16, 16, 4, 4),
        hifi_upsample_initial_channel: int = 128,
        hifi_resblock_kernel_sizes: list[int] = (3, 7, 11),
        hifi_resblock_dilation_sizes: list[list[int]] = ((1, 3, 5), (1, 3, 5), (1, 3, 5)),
        hifi_input_channels: int = 128,
        hifi_conv_pre_kernel_size: int = 1,
        use_spectralunet: bool = True,
        spectralunet_block_widths: list[int] = (8, 16, 24, 32, 64),
        spectralunet_block_depth: int = 5,
        spectralunet_positional_encoding: bool = True,
        spectralunet_out_channels: int = 128,
        use_waveunet: bool = True,
        waveunet_block_widths: list[int] = (10, 20, 40, 80),
        waveunet_block_depth: int = 4,
        use_spectralmasknet: bool = True,
        spectralmasknet_block_widths: list[int] = (8, 12, 24, 32),
        spectralmasknet_block_depth: int = 4,
        spectralmasknet_compression: float = 1.0,
        norm_type: Literal["weight", "spectral"] = "weight",
        use_skip_connect: bool = True,
        waveunet_before_spectralmasknet: bool = True,
        time_padding: Literal["multiple", "power_of_two"] = "multiple",
    ):
        super().__init__()
        if not 0 < spectralmasknet_compression <= 1:
            raise UserError(f"spectralmasknet_compression={spectralmasknet_compression} must lie in (0, 1]")
        norm = norm_of(norm_type)
        self.waveunet_before_spectralmasknet = waveunet_before_spectralmasknet
        self.hifi = Upsampler(
            in_channels=hifi_input_channels,
            resblock=hifi_resblock,
            upsample_rates=hifi_upsample_rates,
            upsample_kernel_sizes=hifi_upsample_kernel_sizes,
            upsample_initial_channel=hifi_upsample_initial_channel,
            resblock_kernel_sizes=hifi_resblock_kernel_sizes,
            resblock_dilation_sizes=hifi_resblock_dilation_sizes,
            conv_pre_kernel_size=hifi_conv_pre_kernel_size,
            norm_type=norm_type,
        )
        self.hop = math.prod(hifi_upsample_rates)
        channels = self.hifi.out_channels
        self.spectralunet = self.waveunet = self.spectralmasknet = None
        self.waveunet_skip_connect = self.spectralmasknet_skip_connect = None
        if use_spectralunet:
            self.spectralunet = SpectralUNet(
                spectralunet_block_widths,
                spectralunet_block_depth,
                spectralunet_positional_encoding,
                spectralunet_out_channels,
                norm_type,
                time_padding,
            )
        if use_waveunet:
            self.waveunet = MultiScaleResnet(
                waveunet_block_widths, waveunet_block_depth, in_width=channels, out_width=channels, norm_type=norm_type
            )
        if use_spectralmasknet:
            self.spectralmasknet = SpectralMaskNet(
                channels,
                spectralmasknet_block_widths,
                spectralmasknet_block_depth,
                norm_type,
                spectralmasknet_compression,
            )
        if use_skip_connect:  # both, as in published checkpoints, even if one of the nets is missing
            self.waveunet_skip_connect = init_identity(norm(nn.Conv1d(channels, channels, 1)))
            self.waveunet_skip_connect.requires_grad_(use_waveunet)
            self.spectralmasknet_skip_connect = init_identity(norm(nn.Conv1d(channels, channels, 1)))
            self.spectralmasknet_skip_connect.requires_grad_(use_spectralmasknet)
        self.conv_post = norm(nn.Conv1d(channels, 1, 7, padding=3))

    @property
    def alignment(self) -> int:
        sizes = [self.hop]
        if self.spectralunet is not None:
            sizes.append(self.hop * self.spectralunet.net.multiple)
        if self.waveunet is not None:
            sizes.append(self.waveunet.multiple)
        if self.spectralmasknet is not None:
            sizes.append(SpectralMaskNet.hop * max(8, self.spectralmasknet.net.multiple))
        return math.lcm(*sizes)

    def forward(self, mel: Tensor) -> Tensor:
        check_shape("hifi++_gen", mel, 80, "a log-mel spectrogram [B, 80, F]")
        x = self.hifi(self.spectral_features(mel))
        return output_head(self.conv_post, self.refine(x))

    def spectral_features(self, mel: Tensor) -> Tensor:
        """mel [B, 80, F] -> [B, spectralunet_out_channels, F] (the mel itself without a SpectralUNet)."""
        return mel if self.spectralunet is None else self.spectralunet(mel)

    def refine(self, x: Tensor, wav: Tensor | None = None) -> Tensor:
        """WaveUNet and SpectralMaskNet in their order: [B, C, T] (and wav [B, 1, T]) -> [B, C, T]."""
        if self.waveunet_before_spectralmasknet:
            return self.apply_spectralmasknet(self.apply_waveunet(x, wav))
        return self.apply_waveunet(self.apply_spectralmasknet(x), wav)

    def apply_waveunet(self, x: Tensor, wav: Tensor | None = None) -> Tensor:
        return _with_skip(self.waveunet, self.waveunet_skip_connect, x)

    def apply_spectralmasknet(self, x: Tensor) -> Tensor:
        return _with_skip(self.spectralmasknet, self.spectralmasknet_skip_connect, x)


def _with_skip(net: nn.Module | None, skip: nn.Module | None, x: Tensor) -> Tensor:
    """net(x) + skip(x); x itself without a net."""
    if net is None:
        return x
    return net(x) if skip is None else net(x) + skip(x)


@models_registry.register("a2a_hifi++_gen")
class A2AHiFiPlusPlusGenerator(HiFiPlusPlusGenerator):
    """HiFi++ from waveform (enhancement, bandwidth extension): the input's log-mel is processed as in `hifi++_gen`, and
    the WaveUNet sees the upsampler's output and the input waveform.

    Args:
        waveunet_input: input of the WaveUNet: "waveform", "hifi" (the upsampler's output) or "both".
        identity_start: initialise the network to output tanh(wav): channel 0 passes the waveform through, and initially
            the nets add nothing to it and mask nothing. Published networks start from noise.

    All others as in `hifi++_gen`.

    Shapes: wav [B, 1, T] -> wav [B, 1, T], 16 kHz, any T >= 1: padded with zeros to a multiple of 1024 samples (the
    published network drops the remainder) and cropped again. Raises UserError for another shape.
    """

    input_kind = "wav"
    crop = 1024  # samples

    @takes_arguments_of(HiFiPlusPlusGenerator)
    def __init__(
        self,
        *,
        waveunet_input: Literal["waveform", "hifi", "both"] = "both",
        identity_start: bool = False,
        **inherited,
    ):
        super().__init__(**inherited)
        self.waveunet_input = waveunet_input
        self.mel = LogMel()
        channels = self.hifi.out_channels
        seen = {"waveform": 1, "hifi": 0, "both": 1 + channels}[waveunet_input]
        norm = norm_of(inherited["norm_type"])
        self.waveunet_conv_pre = norm(nn.Conv1d(seen, channels, 1)) if seen and self.waveunet is not None else None
        if identity_start:
            self._start_as_identity()

    @property
    def alignment(self) -> int:
        return math.lcm(super().alignment, self.crop)

    def _start_as_identity(self) -> None:
        if self.waveunet_conv_pre is None or self.waveunet_skip_connect is None:
            raise UserError(
                "identity_start needs use_waveunet, use_skip_connect and waveunet_input: both or waveform, "
                "by which the waveform reaches the output"
            )
        waveform = self.waveunet_conv_pre.weight.shape[1] - 1  # it is the last channel
        pass_through(self.waveunet_conv_pre, {(0, waveform): 1.0})
        pass_through(self.conv_post, {(0, 0): 1.0})
        last = self.waveunet.net[-1]
        silence(last, 0)
        with torch.no_grad():
            last.bias[0] = 0.0
        if self.spectralmasknet is not None:
            last = self.spectralmasknet.net.net[-1]
            silence(last, 0)
            silence(self.spectralmasknet_skip_connect, 0)  # so that the mask can remove all of it
            with torch.no_grad():
                last.bias[0] = math.log(math.expm1(1.0))  # softplus of it is 1

    def forward(self, wav: Tensor) -> Tensor:
        check_shape("a2a_hifi++_gen", wav, 1, "wav [B, 1, T] at 16 kHz")
        length = wav.shape[-1]
        wav = F.pad(wav, (0, -length % self.crop))
        x = self.hifi(self.spectral_features(self.mel(wav)))
        return output_head(self.conv_post, self.refine(x, wav))[..., :length]

    def apply_waveunet(self, x: Tensor, wav: Tensor | None = None) -> Tensor:
        if self.waveunet_conv_pre is not None:
            seen = wav if self.waveunet_input == "waveform" else torch.cat([x, wav], 1)
            x = self.waveunet_conv_pre(seen)
        return super().apply_waveunet(x)
