"""Checks of what is given to a network, told in one line with the shape that was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from finallyse.errors import UserError


def check_shape(name: str, tensor: Tensor, channels: int, layout: str) -> None:
    """Raise UserError unless `tensor` is [B >= 1, channels, length >= 1]; looks at shapes only, never waits for a GPU.

    layout: the expected shape in words, e.g. "wav [B, 1, T]".
    """
    if tensor.dim() != 3 or tensor.shape[1] != channels or 0 in tensor.shape:
        raise UserError(f"{name} takes {layout}, none of them empty, not {list(tensor.shape)}")


def check_finite(name: str, tensor: Tensor) -> None:
    """Raise UserError where a tensor holds NaN or infinity.

    It reads the result back from the device. Networks therefore leave it to the entry points of inference; in training
    the engine looks at the losses.
    """
    if not torch.isfinite(tensor).all():
        bad = int((~torch.isfinite(tensor)).sum())
        raise UserError(
            f"{name}: {bad} of {tensor.numel()} values are NaN or infinite; mend or leave out the recording"
        )
