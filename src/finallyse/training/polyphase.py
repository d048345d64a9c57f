"""Strided convolutions as convolutions over the phases of their input: the same result, faster on a CPU."""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor, nn


def use_polyphase_convolutions(module: nn.Module) -> None:
    """Compute the module's strided grouped convolutions (those of MSD) by `polyphase_conv1d`.

    oneDNN is faster for the equivalent convolution without a stride.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv1d) and layer.groups > 1 and layer.stride[0] > 1 and layer.dilation == (1,):
            layer.forward = functools.partial(polyphase_conv1d, layer)


def polyphase_conv1d(layer: nn.Conv1d, x: Tensor) -> Tensor:
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
