"""A generator, or the WavLM that conditions one, as an ONNX graph."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.audio.mel import LogMel
from finallyse.errors import UserError
from finallyse.export.transforms import HOP, ExportedComplexMask, ExportedLogMel, ExportedMaskNet
from finallyse.models.base import Generator
from finallyse.models.complex_mask import ComplexMaskGenerator
from finallyse.models.finally_gen import FinallyGenerator
from finallyse.models.hifipp import HiFiPlusPlusGenerator
from finallyse.models.norms import fold
from finallyse.models.wavlm import ConvEncoder, Projection, WavLM

OPSET = 18


class WaveformGraph(nn.Module):
    """A generator from waveform to waveform: wav [B, 1, T] (and ssl [B, D, N]) -> [B, 1, T * factor].

    The generator is copied, its norms are folded, and its transforms are replaced by those of `transforms`.
    """

    def __init__(self, generator: Generator):
        super().__init__()
        generator = copy.deepcopy(generator).cpu().eval().requires_grad_(False)
        fold(generator)
        self.log_mel = None
        if generator.input_kind == "mel":
            if generator.hop != HOP:
                raise UserError(f"cannot be exported: a mel of {generator.hop} samples per frame, not {HOP}")
            self.log_mel = ExportedLogMel(LogMel())
        if isinstance(generator, HiFiPlusPlusGenerator):
            if generator.spectralunet is not None:
                if generator.spectralunet.time_padding != "multiple":
                    raise UserError(
                        "cannot be exported with time_padding: power_of_two, by which the output depends on the length"
                    )
                generator.spectralunet.padded_frames = lambda frames: frames  # of aligned lengths
            if generator.spectralmasknet is not None:
                generator.spectralmasknet = ExportedMaskNet(generator.spectralmasknet)
        if isinstance(getattr(generator, "mel", None), LogMel):
            generator.mel = ExportedLogMel(generator.mel)
        if isinstance(generator, FinallyGenerator):
            generator.align = align
        if isinstance(generator, ComplexMaskGenerator):
            generator = ExportedComplexMask(generator)
        self.generator = generator

    def forward(self, wav: Tensor, ssl: Tensor | None = None) -> Tensor:
        if ssl is not None:
            return self.generator(wav, ssl)
        return self.generator(wav if self.log_mel is None else self.log_mel(wav))


def align(ssl: Tensor, samples: int, frames: int) -> Tensor:
    """`FinallyGenerator.align` of a clip of whole frames, by the indices that PyTorch's interpolation rounds to."""
    count = ssl.shape[-1]
    scale = torch.full((1,), count, dtype=torch.float32) / torch.full((1,), frames, dtype=torch.float32)
    index = (torch.arange(frames, dtype=torch.float32) * scale).floor().long().clamp(max=count - 1)
    return ssl.index_select(-1, index)


def generator_graph(generator: Generator, path: Path) -> None:
    """Write the graph of a generator: inputs `wav` [batch, 1, T] and, for "wav+ssl", `ssl` [batch, D, N]; output
    `enhanced` [batch, 1, T * factor]; T a multiple of the generator's `alignment`."""
    size = generator.alignment
    inputs = {"wav": (torch.zeros(2, 1, 3 * size), {0: "batch", 2: "samples"})}
    if generator.input_kind == "wav+ssl":
        inputs["ssl"] = (torch.zeros(2, generator.ssl_dim, 17), {0: "batch", 2: "features"})
    _export(WaveformGraph(generator), path, inputs, "enhanced", {0: "batch", 2: "enhanced_samples"})


class WavLMGraph(nn.Module):
    """WavLM's last hidden state: wav [B, T] -> [B, D, N], T at least its `receptive_field`."""

    def __init__(self, wavlm: WavLM):
        super().__init__()
        self.wavlm = copy.deepcopy(wavlm).cpu()
        self.wavlm.encoder = ExportedEncoder(self.wavlm.encoder)
        self.wavlm.transformer._bias = None  # of the last length
        for module in self.wavlm.modules():
            if isinstance(module, Projection):  # oneDNN's products have no counterpart
                module._onednn = module._onednn_bf16 = False

    def forward(self, wav: Tensor) -> Tensor:
        return self.wavlm.last_hidden_state(wav)


class ExportedEncoder(nn.Module):
    """WavLM's `ConvEncoder`, whose first layer is a convolution again, and the norm over time is spelt out."""

    def __init__(self, encoder: ConvEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, wav: Tensor) -> Tensor:
        encoder, first = self.encoder, self.encoder.convs[0]
        x = first(wav[:, :, None])
        x = F.gelu(self._over_time(x) if encoder.group_norm else encoder.norms[0](x))
        for conv, norm in zip(encoder.convs[1:], encoder.norms[1:], strict=True):
            x = F.gelu(norm(conv(x)))
        return x

    def _over_time(self, x: Tensor) -> Tensor:
        norm = self.encoder.norms[0]
        x = x - x.mean(1, keepdim=True)
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + norm.eps) * norm.weight + norm.bias


def wavlm_graph(wavlm: WavLM, path: Path) -> None:
    """Write the graph of a WavLM: input `wav` [batch, T], output `features` [batch, D, N]."""
    inputs = {"wav": (torch.zeros(2, 16000), {0: "batch", 1: "samples"})}
    _export(WavLMGraph(wavlm), path, inputs, "features", {0: "batch", 2: "frames"})


def _export(module: nn.Module, path: Path, inputs: dict, output: str, output_axes: dict[int, str]) -> None:
    """Trace a module.

    By PyTorch's older exporter: the newer one proves facts about symbolic lengths for minutes per network, of which
    none are needed here.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the older exporter, and of lengths that are read as numbers in checks
        torch.onnx.export(
            module.eval(),
            tuple(example for example, _ in inputs.values()),
            str(path),
            input_names=list(inputs),
            output_names=[output],
            dynamic_axes={name: axes for name, (_, axes) in inputs.items()} | {output: output_axes},
            opset_version=OPSET,
            dynamo=False,
        )
