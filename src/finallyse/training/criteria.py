"""The weighted losses of one network, and their inputs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from finallyse.errors import UserError


class Criteria(nn.Module):
    """A weighted sum of losses from the registry.

    Args:
        parts: registry name -> {weight, args}, as in the experiment.
        kind: `generator` or `discriminator`, for messages.
    """

    def __init__(self, parts: Mapping[str, Mapping], kind: str):
        super().__init__()
        from finallyse.losses import losses_registry  # slow to import

        self.kind = kind
        self.weights = {name: float(part.get("weight", 1.0)) for name, part in parts.items()}
        self.losses = nn.ModuleDict(
            {name: losses_registry[name](**part.get("args", {})) for name, part in parts.items()}
        )
        self.requires_grad_(False)  # learned losses (UTMOS) are not trained
        self.eval()

    @property
    def names(self) -> list[str]:
        return list(self.weights)

    @property
    def needs(self) -> set[str]:
        return {need for loss in self.losses.values() for need in loss.needs}

    def check(self, available: Collection[str], reasons: Mapping[str, str]) -> None:
        """Raise a UserError for a loss that needs an input not in `available`; `reasons[need]` says why it is not."""
        for name, loss in self.losses.items():
            for need in loss.needs:
                if need not in available:
                    raise UserError(
                        f"losses.{self.kind}.{name} needs {need!r}: {reasons.get(need, 'no trainer computes that')}"
                    )

    def check_level(self) -> None:
        """Raise a UserError if no loss with a non-zero weight depends on the output's level."""
        if not any(loss.sees_level and self.weights[name] > 0 for name, loss in self.losses.items()):
            raise UserError(
                f"losses.{self.kind}: no loss with a weight above 0 depends on the level of the output, which could "
                f"drift (losses: {', '.join(self.names) or 'none'}); add one that does, e.g. lmos or l1_mel_loss"
            )

    def forward(self, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Returns the weighted sum, the unweighted losses as a detached vector, and the terms of the sum."""
        values = [loss(**{need: inputs[need] for need in loss.needs}).float() for loss in self.losses.values()]
        terms = [weight * value for weight, value in zip(self.weights.values(), values, strict=True)]
        return sum(terms), torch.stack([value.detach() for value in values]), terms
