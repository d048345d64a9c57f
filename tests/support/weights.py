"""Weights drawn from the names of layers, so that recorded results of other implementations need no weight files.

rng = default_rng(crc32(name)); weight = gain / sqrt(fan in) * N(0, 1), then bias = 0.1 * N(0, 1), rounded to float32.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch.nn.utils import parametrize

from finallyse.models.norms import set_weight

LAST = ("conv_post", "upsamplewaveunet.upsample_block.0")  # layers with `gain_last`
KINDS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.ConvTranspose1d)


def layers_of(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The convolutions of a network by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, KINDS)}


def norm_of(layer: torch.nn.Module) -> str:
    """`none`, `spectral` or `weight`."""
    if not parametrize.is_parametrized(layer, "weight"):
        return "none"
    return "spectral" if "Spectral" in type(layer.parametrizations.weight[0]).__name__ else "weight"


@torch.no_grad()
def fill(model: torch.nn.Module, gain: float, gain_last: float) -> None:
    """Draw the effective weights of all convolutions; with spectral norm, the weights before it."""
    for name, layer in layers_of(model).items():
        shape = tuple(layer.weight.shape)
        transposed = isinstance(layer, torch.nn.ConvTranspose1d)
        fan_in = shape[0] * shape[2] // layer.stride[0] if transposed else math.prod(shape[1:])
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        scale = gain * (gain_last if name in LAST else 1.0) / math.sqrt(fan_in)
        weight = torch.from_numpy((scale * rng.standard_normal(shape)).astype(np.float32))
        if norm_of(layer) == "spectral":  # iterated to convergence, so that its effective weight is known
            spectral = layer.parametrizations.weight
            spectral.original.copy_(weight)
            matrix = weight.flatten(1).double()
            u = torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -1]
            spectral[0]._u.copy_(u)
            spectral[0]._v.copy_(torch.nn.functional.normalize(matrix.T @ u, dim=0))
        else:
            set_weight(layer, weight.to(layer.weight.dtype))  # the norm's gain is computed in that precision
        bias = 0.1 * rng.standard_normal(len(layer.bias))
        layer.bias.copy_(torch.from_numpy(bias.astype(np.float32)))


@torch.no_grad()
def fill_wavlm(model: torch.nn.Module) -> None:
    """Draw the weights of a `transformers.WavLMModel`, under the parameters' names: norms around 1, small biases."""
    parametrized = "parametrizations.weight.original"
    parameters = {
        name.replace(f"{parametrized}0", "weight_g").replace(f"{parametrized}1", "weight_v"): value
        for name, value in model.named_parameters()
    }
    for name, value in parameters.items():
        shape = tuple(value.shape)
        drawn = np.random.default_rng(zlib.crc32(f"wavlm.{name}".encode())).standard_normal(shape)
        if name == "masked_spec_embed":
            drawn = np.zeros(shape)
        elif "layer_norm.weight" in name or name.endswith("gru_rel_pos_const"):
            drawn = 1 + 0.1 * drawn
        elif name.endswith("bias"):
            drawn = 0.1 * drawn
        elif name.endswith("rel_attn_embed.weight"):
            drawn = 0.5 * drawn
        elif not name.endswith("weight_g"):
            drawn = drawn / math.sqrt(math.prod(shape[1:]))
        value.copy_(torch.from_numpy(drawn.astype(np.float32)))
    for name, value in parameters.items():
        if name.endswith("weight_g"):
            direction = parameters[name.removesuffix("g") + "v"]
            value.copy_(direction.double().norm(dim=(0, 1), keepdim=True))
