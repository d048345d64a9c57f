"""Weight and spectral norm: applying them, setting weights through them, and folding them in for inference.

Every layer starts from PyTorch's default, as in the published networks: their N(0, 0.01) is written to the `weight` of
layers with weight norm, which the next forward pass recomputes from the norm's own tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from finallyse.errors import UserError

NormType = Literal["weight", "spectral"]
Norm = Callable[[nn.Module], nn.Module]


def norm_of(norm_type: NormType) -> Norm:
    """The function that applies the norm of this name to a layer's weight and returns the layer."""
    return {"weight": parametrizations.weight_norm, "spectral": parametrizations.spectral_norm}[norm_type]


def set_weight(layer: nn.Module, weight: Tensor) -> None:
    """Make `weight` the effective weight of a layer, normed or not.

    Writing to `layer.weight.data` of a normed layer is lost at the next forward pass: the weight is recomputed from the
    parametrization's own tensors, which assignment sets.
    """
    with torch.no_grad():
        if parametrize.is_parametrized(layer, "weight"):
            layer.weight = weight
        else:
            layer.weight.copy_(weight)


def init_identity(layer: nn.Module) -> nn.Module:
    """Make a 1x1 convolution the identity; returns the layer."""
    set_weight(layer, torch.eye(*layer.weight.shape[:2]).reshape(layer.weight.shape))
    with torch.no_grad():
        layer.bias.zero_()
    return layer


def silence(layer: nn.Module, channel: int | slice) -> None:
    """Set the gain of channels under a weight norm to 0, keeping their direction so that they can still learn.

    channel: output channel, or input channel of a transposed convolution. Raises UserError for a layer with another
    norm.
    """
    norms = getattr(getattr(layer, "parametrizations", None), "weight", [])
    if not any(isinstance(norm, parametrizations._WeightNorm) for norm in norms):
        raise UserError("identity_start needs norm_type: weight")
    with torch.no_grad():
        norms.original0[channel] = 0.0


def pass_through(layer: nn.Module, gains: Mapping[tuple[int, int], float]) -> None:
    """Make some output channels of a convolution that keeps the length copies of input channels.

    gains: (output channel, input channel) -> factor; those output channels get nothing else, and no bias.
    """
    weight, centre = layer.weight.detach().clone(), layer.weight.shape[-1] // 2
    for (to, _), _ in gains.items():
        weight[to] = 0.0
    for (to, source), gain in gains.items():
        weight[to, source, centre] = gain
    set_weight(layer, weight)
    with torch.no_grad():
        layer.bias[sorted({to for to, _ in gains})] = 0.0


def normed_layers(module: nn.Module) -> list[nn.Module]:
    """Every layer of the module whose weight has a norm."""
    return [layer for layer in module.modules() if parametrize.is_parametrized(layer, "weight")]


def fold(module: nn.Module) -> int:
    """Bake weight and spectral norms into plain weights, in place, for inference; returns the number of layers folded.

    The module is put in eval mode. Its outputs stay the same up to rounding; its state_dict no longer fits an unfolded
    module. A module without norms, or folded already, stays as it is.
    """
    module.eval()
    layers = normed_layers(module)
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        if "weight" in layer._buffers:  # of a frozen layer, torch makes the weight a buffer
            layer.weight = nn.Parameter(layer._buffers.pop("weight"), requires_grad=False)
    if left := len(normed_layers(module)):
        raise RuntimeError(f"{left} of {len(layers)} layers of {type(module).__name__} are not folded")
    return len(layers)
