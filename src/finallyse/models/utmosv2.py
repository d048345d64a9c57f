"""UTMOSv2 (Baba et al., arXiv 2409.09305): predicts the mean opinion score that listeners would give to speech.

The fusion network of the paper's third stage, for inference and for gradients with respect to the waveform. Layers
are named as in the published checkpoint, those of the image classifiers as in timm.

    wav [B, T] at 16 kHz --3 s--------------> wav2vec2-base -> attention --------------------------\
                         --2 x 1.4 s, mixed-> 4 log-mel images -> 4 EfficientNetV2-S -> attention --> linear -> MOS [B]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from finallyse.audio.mel import mel_filterbank
from finallyse.audio.stft import stft
from finallyse.errors import UserError
from finallyse.models.tensors import load_strictly, load_tensors
from finallyse.precision import full_precision

SAMPLE_RATE = 16000
FILE = "fold0_s42_best_model.pth"
SOURCE = "huggingface.co/sarulab-speech/UTMOSv2"

SPEECH = 48000  # samples that wav2vec2 sees: 3 s
FRAME = 22400  # samples that a spectrogram shows: 1.4 s
MIXUP = 0.4  # both parameters of the beta distribution of the mixing weights
DATASETS = 10  # corpora of opinion scores that the network distinguishes
SARULAB = 1  # the default corpus, whose listeners it predicts
# tf_efficientnetv2_s (arXiv 2104.00298, table 4): kind of block, repeats, stride of the first, expansion, channels
STAGES = (
    ("conv", 2, 1, 1, 24),
    ("fused", 4, 2, 4, 48),
    ("fused", 4, 2, 4, 64),
    ("inverted", 6, 2, 4, 128),
    ("inverted", 9, 1, 6, 160),
    ("inverted", 15, 2, 6, 256),
)


@dataclass
class Crops:
    """Where a batch is cut (first samples) and how its spectrograms are mixed.

    speech: [B]; frames: [B, frames]; partners: [B, frames, spectrograms], mixed with weight 1 - shares of that shape.
    """

    speech: np.ndarray
    frames: np.ndarray
    partners: np.ndarray
    shares: np.ndarray


class UTMOSv2(nn.Module):
    """wav [B, T >= 1] at 16 kHz -> predicted mean opinion score [B], about 1 to 5; float32, differentiable.

    Frozen and always in eval mode. Clips that are too short for a crop are repeated. Memory grows with the batch:
    about 8 images of 512 x 512 points for each clip.

    Args: the published sizes are the defaults.
        windows: samples of the Hann window of each spectrogram.
        frames: crops of 1.4 s.
        n_fft, hop: of the STFT, samples.
        bands: mel bands, 0 to 8 kHz, and columns to which the time axis is resized.
        stages, stem, head: of the image classifiers (`EfficientNetV2`).
        wav2vec2: what differs from wav2vec2-base, by the names of `transformers.Wav2Vec2Config`.
    """

    def __init__(
        self,
        windows: Sequence[int] = (4096, 2048, 1024, 512),
        frames: int = 2,
        n_fft: int = 4096,
        hop: int = 32,
        bands: int = 512,
        stages: Sequence[tuple[str, int, int, int, int]] = STAGES,
        stem: int = 24,
        head: int = 1280,
        wav2vec2: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.frames, self.spectrograms = frames, len(windows)
        self.to_images = MelImages(windows, n_fft, hop, bands)
        self.ssl = SpeechBranch(wav2vec2 or {})
        self.spec_long = ImageBranch(len(windows), stages, stem, head)
        # each branch was trained with its own corpus code; here it is zero, but its weights are kept
        self.fc = nn.Linear(self.ssl.dim + DATASETS + self.spec_long.dim + DATASETS + DATASETS, 1)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> UTMOSv2:
        """Never trained: stays in eval mode regardless of the parent module."""
        return super().train(False)

    def fold(self) -> UTMOSv2:
        """Bake the norms of the image classifiers into their convolutions, for inference: the same score with less
        memory and time. Returns itself; its state_dict no longer matches the checkpoint."""
        for part in self.spec_long.modules():
            for conv, norm in getattr(part, "normed", ()):
                setattr(part, conv, fuse_conv_bn_eval(getattr(part, conv), getattr(part, norm)))
                setattr(part, norm, nn.Identity())
        return self

    def draw(self, rng: np.random.RandomState, batch: int, samples: int) -> Crops:
        """Random crops and mixing weights for clips of `samples` samples at 16 kHz.

        The order of draws is that of the published package, so that its `numpy.random.seed(s)` and a RandomState(s)
        here give the same crops of a clip.
        """
        crops = Crops(
            speech=np.empty(batch, np.int64),
            frames=np.empty((batch, self.frames), np.int64),
            partners=np.empty((batch, self.frames, self.spectrograms), np.int64),
            shares=np.empty((batch, self.frames, self.spectrograms), np.float32),
        )
        for i in range(batch):
            crops.speech[i] = rng.randint(0, _starts(samples, SPEECH))
            for j in range(self.frames):
                crops.frames[i, j] = rng.randint(0, _starts(samples, FRAME))
                for k in range(self.spectrograms):
                    crops.partners[i, j, k] = rng.randint(0, _starts(samples, FRAME))
                    crops.shares[i, j, k] = rng.beta(MIXUP, MIXUP)
        return crops

    def forward(self, wav: Tensor, crops: Crops) -> Tensor:
        if wav.dim() != 2 or 0 in wav.shape:
            raise UserError(f"UTMOSv2 takes wav [B, T], none of them empty, not {list(wav.shape)}")
        with full_precision(wav):
            wav = wav.float()
            speech = self.ssl(_cut(wav, crops.speech, SPEECH))
            images = self.to_images(_cut(wav, crops.frames, FRAME)[:, :, None])
            partners = self.to_images(_cut(wav, crops.partners, FRAME))
            shares = torch.from_numpy(crops.shares).to(wav.device)[..., None, None]
            pictures = self.spec_long(shares * images + (1.0 - shares) * partners)
            no_code = speech.new_zeros(len(wav), DATASETS)
            code = no_code.clone()
            code[:, SARULAB] = 1.0
            return self.fc(torch.cat([speech, no_code, pictures, no_code, code], 1)).squeeze(1)


def _starts(samples: int, length: int) -> int:
    """The number of possible start samples of a crop; a clip no longer than the crop is repeated beyond its length."""
    return (samples if samples > length else (length // samples + 1) * samples) - length


def _cut(wav: Tensor, starts: np.ndarray, length: int) -> Tensor:
    """wav [B, T], endlessly repeated, and starts [B, ...] -> [B, ..., length]."""
    starts = torch.from_numpy(starts).to(wav.device)
    index = (starts[..., None] + torch.arange(length, device=wav.device)) % wav.shape[1]
    return wav.gather(1, index.flatten(1)).view(index.shape)


class MelImages(nn.Module):
    """Crops [B, F, windows or 1, 22400] -> log-mel images [B, F, windows, bands, bands] in [0, 1]: dB below the loudest
    point of each, cut off at -80 dB, time resized to `bands` columns."""

    def __init__(self, windows: Sequence[int], n_fft: int, hop: int, bands: int):
        super().__init__()
        self.windows, self.n_fft, self.hop = tuple(windows), n_fft, hop
        filters = mel_filterbank(SAMPLE_RATE, n_fft, bands, 0.0, SAMPLE_RATE / 2)
        columns = 1 + FRAME // hop
        # torchvision's bilinear resize with antialiasing, written as a matrix so that its gradient is deterministic
        eye = torch.eye(columns, device="cpu")[None, None]
        resize = F.interpolate(eye, (columns, bands), mode="bilinear", antialias=True)[0, 0]
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)
        self.register_buffer("resize", resize, persistent=False)

    def forward(self, crops: Tensor) -> Tensor:
        crops = crops.expand(-1, -1, len(self.windows), -1)
        return torch.stack([self.image(crops[:, :, k], window) for k, window in enumerate(self.windows)], 2)

    def image(self, crops: Tensor, window: int) -> Tensor:
        """[B, F, 22400] -> [B, F, bands, bands]."""
        padded = F.pad(crops.flatten(0, 1), (self.n_fft // 2, self.n_fft // 2))
        spectrum = stft(padded, self.n_fft, self.hop, window, center=False)
        power = self.filters @ (spectrum.real.square() + spectrum.imag.square())
        level = 10.0 * power.clamp(min=1e-10).log10()
        level = level - level.amax((1, 2), keepdim=True)
        return ((level.clamp(min=-80.0) + 80.0) / 80.0 @ self.resize).unflatten(0, crops.shape[:2])


class SpeechBranch(nn.Module):
    """Crops [B, 48000] -> [B, 1536]: learned mixture of all layers of wav2vec2-base, attention over frames, mean of the
    attention's output and maximum of its input."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__()
        from finallyse.audio.torchaudio_shim import torchaudio  # noqa: F401  transformers imports torchaudio

        # isort: split
        from transformers import Wav2Vec2Config, Wav2Vec2Model

        # plain attention: the gradient of fused attention is not deterministic on a GPU, and 149 frames do not need it
        config = Wav2Vec2Config(**settings, attn_implementation="eager")
        self.encoder = nn.ModuleDict({"model": Wav2Vec2Model(config)})
        self.weights = nn.Parameter(torch.full((config.num_hidden_layers + 1,), 1.0 / (config.num_hidden_layers + 1)))
        self.attn = nn.ModuleList([nn.MultiheadAttention(config.hidden_size, 8, batch_first=True)])
        self.dim = 2 * config.hidden_size

    def forward(self, wav: Tensor) -> Tensor:
        wav = wav - wav.mean(1, keepdim=True)
        wav = wav / (wav.square().mean(1, keepdim=True) + 1e-7).sqrt()
        layers = self.encoder["model"](wav, output_hidden_states=True).hidden_states
        x = sum(weight * layer for weight, layer in zip(self.weights, layers, strict=True))
        return torch.cat([_attended(self.attn[0], x).mean(1), x.amax(1)], 1)


class ImageBranch(nn.Module):
    """Images [B, F, K, H, H] -> [B, 4 * head]: one classifier for each of the K kinds of spectrogram, their maps in a
    learned mixture, the mean and maximum over time, attention over the rows (bands), then as `SpeechBranch`."""

    def __init__(self, kinds: int, stages: Sequence[tuple[str, int, int, int, int]], stem: int, head: int):
        super().__init__()
        self.backbones = nn.ModuleList(EfficientNetV2(stages, stem, head) for _ in range(kinds))
        self.weights = nn.Parameter(torch.full((kinds,), 1.0 / kinds))
        self.attn = nn.MultiheadAttention(2 * head, 8, batch_first=True)
        self.dim = 4 * head

    def forward(self, images: Tensor) -> Tensor:
        batch = images.shape[0]
        maps = sum(
            weight * backbone(images[:, :, k].flatten(0, 1).unsqueeze(1))
            for k, (weight, backbone) in enumerate(zip(self.weights, self.backbones, strict=True))
        ).unflatten(0, (batch, -1))  # [B, F, head, rows, columns]
        x = torch.cat([maps.mean((1, 4)), maps.amax((1, 4))], 1).transpose(1, 2)  # [B, rows, 2 * head]
        return torch.cat([_attended(self.attn, x).mean(1), x.amax(1)], 1)


def _attended(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """Self-attention of x [B, N, D]; requesting the weights selects the plain form here too."""
    return attention(x, x, x, need_weights=True)[0]


# --- EfficientNetV2 (Tan and Le, arXiv 2104.00298), as converted from TensorFlow --------------------------------------


class EfficientNetV2(nn.Module):
    """Grey image [B, 1, H, W] -> [B, head, H / 32, W / 32] (rounded up): the classifier without its last layer."""

    normed = (("conv_stem", "bn1"), ("conv_head", "bn2"))

    def __init__(self, stages: Sequence[tuple[str, int, int, int, int]], stem: int, head: int):
        super().__init__()
        self.conv_stem = SameConv2d(3, stem, 3, 2)
        self.bn1 = _norm(stem)
        self.blocks = nn.Sequential()
        channels = stem
        for kind, repeats, stride, expansion, width in stages:
            stage = nn.Sequential()
            for i in range(repeats):
                stage.append(BLOCKS[kind](channels, width, stride if i == 0 else 1, expansion))
                channels = width
            self.blocks.append(stage)
        self.conv_head = SameConv2d(channels, head, 1)
        self.bn2 = _norm(head)

    def forward(self, image: Tensor) -> Tensor:
        x = self.conv_stem(image.expand(-1, 3, -1, -1))
        x = self.blocks(F.silu(self.bn1(x)))
        return F.silu(self.bn2(self.conv_head(x)))


class SameConv2d(nn.Conv2d):
    """Convolution without bias padded as TensorFlow does: to ceil(size / stride), an odd zero right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads = []
        for size in (x.shape[3], x.shape[2]):
            pad = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [pad // 2, pad - pad // 2]
        return super().forward(F.pad(x, pads) if any(pads) else x)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Adds its input to its branch where their shapes agree: [B, C, H, W] -> [B, C', H / stride, W / stride]."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.skip else self.branch(x)

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class ConvBlock(Block):
    """3 x 3 convolution."""

    normed = (("conv", "bn1"),)

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__(inputs, outputs, stride)
        self.conv = SameConv2d(inputs, outputs, 3, stride)
        self.bn1 = _norm(outputs)

    def branch(self, x: Tensor) -> Tensor:
        return F.silu(self.bn1(self.conv(x)))


class FusedBlock(Block):
    """3 x 3 convolution to `expansion` times the channels, then 1 x 1."""

    normed = (("conv_exp", "bn1"), ("conv_pwl", "bn2"))

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__(inputs, outputs, stride)
        self.conv_exp = SameConv2d(inputs, expansion * inputs, 3, stride)
        self.bn1 = _norm(expansion * inputs)
        self.conv_pwl = SameConv2d(expansion * inputs, outputs, 1)
        self.bn2 = _norm(outputs)

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pwl(F.silu(self.bn1(self.conv_exp(x)))))


class InvertedBlock(Block):
    """1 x 1 convolution to `expansion` times the channels, 3 x 3 by channel, squeeze and excitation, then 1 x 1."""

    normed = (("conv_pw", "bn1"), ("conv_dw", "bn2"), ("conv_pwl", "bn3"))

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__(inputs, outputs, stride)
        wide = expansion * inputs
        self.conv_pw = SameConv2d(inputs, wide, 1)
        self.bn1 = _norm(wide)
        self.conv_dw = SameConv2d(wide, wide, 3, stride, groups=wide)
        self.bn2 = _norm(wide)
        self.se = SqueezeExcite(wide, inputs // 4)
        self.conv_pwl = SameConv2d(wide, outputs, 1)
        self.bn3 = _norm(outputs)

    def branch(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn1(self.conv_pw(x)))
        x = F.silu(self.bn2(self.conv_dw(x)))
        return self.bn3(self.conv_pwl(self.se(x)))


class SqueezeExcite(nn.Module):
    """Multiplies each channel by a gate in (0, 1) computed from the means of all channels."""

    def __init__(self, channels: int, reduced: int):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        return x * self.conv_expand(F.silu(self.conv_reduce(means))).sigmoid()


BLOCKS = {"conv": ConvBlock, "fused": FusedBlock, "inverted": InvertedBlock}


# --- weights ----------------------------------------------------------------------------------------------------------


def weights_file(weights: str | Path) -> Path:
    """The checkpoint file that `weights`, a folder or a file, refers to. Raises UserError if it does not exist."""
    path = Path(weights)
    if path.suffix != ".pth":
        path = path / FILE
    if not path.is_file():
        raise UserError(
            f"utmos needs {path}, the weights of UTMOSv2 from {SOURCE}; `snakemake data` fetches them into <resources>/"
        )
    return path


def load_utmosv2(weights: str | Path) -> UTMOSv2:
    """The published network from a folder that holds `fold0_s42_best_model.pth`, or from such a file.

    Raises UserError for a file that is missing or unreadable, and one that lists every weight that is missing,
    unexpected or of another shape.
    """
    path = weights_file(weights)
    state = load_tensors(path)
    if not isinstance(state, dict) or not state or not all(torch.is_tensor(value) for value in state.values()):
        raise UserError(f"{path}: not the weights of UTMOSv2; {FILE} of {SOURCE} is wanted")
    with torch.device("meta"):  # spend no time on 200 million random numbers
        network = UTMOSv2()
    for part in (network.ssl, network.spec_long, network.fc):
        part.to_empty(device="cpu")
    load_strictly(network, _renamed(state), str(path))
    return network.fold()


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weight norm of wav2vec2's positional convolution as in torch 2.1 and later."""
    position = "ssl.encoder.model.encoder.pos_conv_embed.conv"
    names = {f"{position}.weight_{x}": f"{position}.parametrizations.weight.original{i}" for i, x in enumerate("gv")}
    return {names.get(name, name): value for name, value in state.items()}
