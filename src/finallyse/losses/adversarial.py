"""Least-squares GAN and feature matching (HiFi-GAN, arXiv 2010.05646, section 2.4), summed over sub-discriminators."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from finallyse.losses import losses_registry


@losses_registry.register("gen_loss")
class GeneratorLoss(nn.Module):
    """Sum over sub-discriminators of mean((1 - D(wav_hat))^2). logits_fake: a tensor of any shape for each of them."""

    needs = ("logits_fake",)
    sees_level = False

    def forward(self, logits_fake: list[Tensor]) -> Tensor:
        return sum((1.0 - logits.float()).square().mean() for logits in logits_fake)


@losses_registry.register("disc_loss")
class DiscriminatorLoss(nn.Module):
    """Sum over sub-discriminators of mean((1 - D(wav))^2) + mean(D(wav_hat)^2)."""

    needs = ("logits_real", "logits_fake")
    sees_level = False

    def forward(self, logits_real: list[Tensor], logits_fake: list[Tensor]) -> Tensor:
        return sum(
            (1.0 - real.float()).square().mean() + fake.float().square().mean()
            for real, fake in zip(logits_real, logits_fake, strict=True)
        )


@losses_registry.register("feature_loss")
class FeatureLoss(nn.Module):
    """Sum over all feature maps of mean(|real - fake|); the real ones get no gradient.

    relative: each map's term is divided by mean(|real|) (EnCodec, arXiv 2210.13438, section 3.4).
    """

    needs = ("fmaps_real", "fmaps_fake")
    sees_level = True

    def __init__(self, relative: bool = False):
        super().__init__()
        self.relative = relative

    def forward(self, fmaps_real: list[list[Tensor]], fmaps_fake: list[list[Tensor]]) -> Tensor:
        return sum(
            self._distance(real.detach().float(), fake.float())
            for reals, fakes in zip(fmaps_real, fmaps_fake, strict=True)
            for real, fake in zip(reals, fakes, strict=True)
        )

    def _distance(self, real: Tensor, fake: Tensor) -> Tensor:
        distance = F.l1_loss(fake, real)
        return distance / real.abs().mean().clamp(min=1e-8) if self.relative else distance
