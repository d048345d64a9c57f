"""Gradient clipping, computed on the device without waiting for the GPU."""

from __future__ import annotations

import torch
from torch import Tensor


class Clipper:
    """Computes the factor by which a gradient is scaled down.

    Args:
        mode: `none`; `norm`: to at most `norm`; `quantile`: to at most a quantile of the norms of past updates
            (AutoClip, Seetharaman et al. 2020).
        norm: largest norm in mode `norm`.
        quantile: in (0, 1]. The quantile is an observed norm, not interpolated, and the current norm is not part of
            the history it is compared with: after one outlier of 100 in a short history of ones, a norm of 50 is
            clipped to 1.
        window: number of past norms in the history. They are norms before clipping; clipped ones could only lower the
            threshold.
        device: device of the norms.
    """

    def __init__(self, mode: str, norm: float, quantile: float, window: int, device: torch.device):
        self.mode, self.norm, self.quantile = mode, norm, quantile
        self.history = torch.full((window,), torch.inf, device=device)  # inf: empty, sorts behind every norm
        self.seen = torch.zeros((), dtype=torch.long, device=device)

    def threshold(self) -> Tensor:
        """The largest norm that passes unchanged; infinite while the history is empty."""
        if self.mode == "norm":
            return torch.full_like(self.history[0], self.norm)
        if self.mode == "none":
            return torch.full_like(self.history[0], torch.inf)
        filled = self.seen.clamp(max=len(self.history))
        index = ((filled - 1).clamp(min=0) * self.quantile).long()
        return self.history.sort().values.gather(0, index.view(1)).squeeze()  # indexing would wait for the GPU

    def factor(self, norm: Tensor) -> Tensor:
        """The factor in (0, 1] for a gradient of `norm` (a scalar); non-finite norms are not added to the history."""
        threshold = self.threshold()
        factor = torch.where(norm > threshold, threshold / norm, torch.ones_like(norm))
        if self.mode == "quantile":
            finite = torch.isfinite(norm)
            slot = (self.seen % len(self.history)).view(1)
            kept = torch.where(finite, norm, self.history.gather(0, slot).squeeze())
            self.history.scatter_(0, slot, kept.to(self.history.dtype).view(1))
            self.seen += finite
        return factor

    def state_dict(self) -> dict[str, Tensor]:
        return {"history": self.history, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.history.copy_(state["history"])
        self.seen.copy_(state["seen"])
