"""Checks of a network's inputs; errors state the expected shape in one line."""

from __future__ import annotations

from torch import Tensor

from finallyse.errors import UserError


def check_shape(name: str, tensor: Tensor, channels: int, layout: str) -> None:
    """Raise UserError unless `tensor` is [B >= 1, channels, length >= 1]; looks at shapes only, never waits for a GPU.

    layout: the expected shape in words, e.g. "wav [B, 1, T]".
    """
    if tensor.dim() != 3 or tensor.shape[1] != channels or 0 in tensor.shape:
        raise UserError(f"{name} takes {layout}, none of them empty, not {list(tensor.shape)}")
