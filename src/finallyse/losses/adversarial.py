"""Least-squares GAN and feature matching (HiFi-GAN, arXiv 2010.05646, section 2.4)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.losses import losses_registry


@losses_registry.register("gen_loss")
class GeneratorLoss(nn.Module):
    """Sum over sub-discriminators of mean((1 - D(wav_hat))^2). logits_fake: a tensor of any shape for each of them."""

    label = "adversarial"
    needs = ("logits_fake",)
    sees_level = False

    def forward(self, logits_fake: list[Tensor]) -> Tensor:
        return sum((1.0 - logits.float()).square().mean() for logits in logits_fake)


@losses_registry.register("disc_loss")
class DiscriminatorLoss(nn.Module):
    """Sum over sub-discriminators of mean((1 - D(wav))^2) + mean(D(wav_hat)^2)."""

    label = "discriminators"
    needs = ("logits_real", "logits_fake")
    sees_level = False

    def forward(self, logits_real: list[Tensor], logits_fake: list[Tensor]) -> Tensor:
        return sum(
            (1.0 - real.float()).square().mean() + fake.float().square().mean()
            for real, fake in zip(logits_real, logits_fake, strict=True)
        )


@losses_registry.register("feature_loss")
class FeatureLoss(nn.Module):
    """mean(|real - fake|) of all feature maps; the real ones get no gradient.

    Args:
        relative: divide each map's term by mean(|real|), as in EnCodec (arXiv 2210.13438, section 3.4).
        reduction: over the maps of all K sub-discriminators of L layers. "sum", as in HiFi-GAN (arXiv 2010.05646,
            section 2.4); "mean", 1/(KL) of it, as in EnCodec. A weight tuned for one does not fit the other: for
            ms-stft_disc, with 25 maps, the sum is 25 times as strong.
    """

    label = "feature matching"
    needs = ("fmaps_real", "fmaps_fake")
    sees_level = True

    def __init__(self, relative: bool = False, reduction: Literal["sum", "mean"] = "sum"):
        super().__init__()
        self.relative, self.reduction = relative, reduction

    def forward(self, fmaps_real: list[list[Tensor]], fmaps_fake: list[list[Tensor]]) -> Tensor:
        distances = [
            self._distance(real.detach().float(), fake.float())
            for reals, fakes in zip(fmaps_real, fmaps_fake, strict=True)
            for real, fake in zip(reals, fakes, strict=True)
        ]
        return sum(distances) / (len(distances) if self.reduction == "mean" else 1)

    def _distance(self, real: Tensor, fake: Tensor) -> Tensor:
        distance = F.l1_loss(fake, real)
        return distance / real.abs().mean().clamp(min=1e-8) if self.relative else distance
