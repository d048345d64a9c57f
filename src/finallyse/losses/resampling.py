"""Differentiable resampling to 16 kHz, the rate of WavLM and PESQ."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finallyse.audio.torchaudio_shim import torchaudio
from finallyse.precision import full_precision

_resamplers: dict[tuple, nn.Module] = {}


def to_16k(wav: Tensor, sample_rate: int) -> Tensor:
    """wav [..., T] at `sample_rate` Hz -> [..., ceil(T * 16000 / sample_rate)], float32, by windowed-sinc filters."""
    wav = wav.float()
    if sample_rate == 16000:
        return wav
    key = (int(sample_rate), wav.device)
    if key not in _resamplers:
        with torch.inference_mode(False):  # an inference tensor could not be used in a later training step
            _resamplers[key] = torchaudio.transforms.Resample(int(sample_rate), 16000).to(wav.device)
    with full_precision(wav):
        return _resamplers[key](wav)
