"""CPU optimisations of a step that do not change its result."""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor, nn


def use_phases(module: nn.Module) -> None:
    """Run the module's strided grouped convolutions (MSD's) on the phases of their input.

    oneDNN is faster for the equivalent convolution without a stride. The straightforward form in benchmarks/train.py
    does not use this.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d) and layer.groups > 1 and layer.stride[0] > 1 and layer.dilation == (1,):
            layer.forward = functools.partial(conv_on_phases, layer)


def conv_on_phases(layer: nn.Conv1d, x: Tensor) -> Tensor:
    """`layer(x)` for a stride s: every s-th sample becomes a channel, and so does every s-th tap of the kernel.

    Shapes: [B, C, T] -> [B, s C, T / s] -> [B, C', T'].
    """
    (stride,), (padding,), (kernel,) = layer.stride, layer.padding, layer.kernel_size
    batch, channels, length = x.shape
    taps = -(-kernel // stride)
    frames = (length + 2 * padding - kernel) // stride + taps
    x = F.pad(x, (padding, frames * stride - length - padding))
    x = x.view(batch, channels, frames, stride).transpose(2, 3).reshape(batch, channels * stride, frames)
    weight = F.pad(layer.weight, (0, taps * stride - kernel))
    weight = weight.unflatten(2, (taps, stride)).transpose(2, 3).flatten(1, 2)
    return F.conv1d(x, weight, layer.bias, groups=layer.groups)
