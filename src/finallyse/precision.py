"""Full precision under autocast, for spectral operations, losses and output heads."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> contextlib.AbstractContextManager:
    """A context without autocast on the tensor's device; inputs must still be cast to float32 with `.float()`."""
    if tensor.device.type == "meta":  # shapes only; it knows no autocast
        return contextlib.nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)
