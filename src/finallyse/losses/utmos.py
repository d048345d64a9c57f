"""Opinion score predicted by UTMOSv2 (arXiv 2409.09305), as a loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from finallyse.errors import UserError
from finallyse.losses import losses_registry
from finallyse.losses.resampling import to_16k
from finallyse.precision import full_precision


@losses_registry.register("utmos")
class UTMOSLoss(nn.Module):
    """-mean(5 * sigmoid(mos - 2.5)), where mos is the score predicted by the frozen UTMOSv2: between -5 and 0.

    The network draws its crops and mixing weights from torch's random state, one draw per call, so that a resumed run
    sees the same ones as an uninterrupted run.

    Args:
        weights: fold0_s42_best_model.pth of huggingface.co/sarulab-speech/UTMOSv2, or the folder that contains it.
        chunk: clips processed together, 4.5 GB of memory for each; no effect on the result. The gradient is computed
            chunk by chunk, so that a batch needs the memory of one chunk.

    wav_hat: [B, 1, T] at sample_rate, any T. Raises UserError for weights that are missing or of another network.
    """

    label = "UTMOS loss"
    needs = ("wav_hat", "sample_rate")
    sees_level = False

    def __init__(self, weights: str, chunk: int = 1):
        super().__init__()
        from finallyse.models.utmosv2 import load_utmosv2

        if chunk < 1:
            raise UserError(f"utmos: chunk is a number of clips, at least 1, not {chunk}")
        self.network, self.chunk = load_utmosv2(weights), chunk

    def forward(self, wav_hat: Tensor, sample_rate: int) -> Tensor:
        return -(5.0 * torch.sigmoid(self.mos(wav_hat, sample_rate) - 2.5)).mean()

    def mos(self, wav_hat: Tensor, sample_rate: int) -> Tensor:
        """Predicted mean opinion score [B] of wav_hat [B, 1, T]."""
        if wav_hat.dim() != 3 or wav_hat.shape[1] != 1 or 0 in wav_hat.shape:
            raise UserError(f"utmos takes wav_hat [B, 1, T], none of them empty, not {[*wav_hat.shape]}")
        seed = int(torch.randint(2**31, ()))
        with full_precision(wav_hat):
            wav = to_16k(wav_hat.float().squeeze(1), sample_rate)
            rng = np.random.RandomState(seed)

            def score(part: Tensor) -> Tensor:
                return self.network(part, self.network.draw(rng, *part.shape))

            if torch.is_grad_enabled() and wav.requires_grad:
                return _ByChunks.apply(wav, score, self.chunk)
            with torch.no_grad():
                return torch.cat([score(part) for part in wav.split(self.chunk)])


class _ByChunks(torch.autograd.Function):
    """score(wav), [B, T] -> [B], independent per clip: one graph at a time, whose gradient is computed immediately."""

    @staticmethod
    def forward(ctx, wav: Tensor, score: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
        scores, gradients = [], []
        for part in wav.detach().split(chunk):
            with torch.enable_grad():
                scores.append(score(part.requires_grad_()))
                gradients += torch.autograd.grad(scores[-1].sum(), part)
        ctx.save_for_backward(torch.cat(gradients))
        return torch.cat([part.detach() for part in scores])

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return kept * gradient[:, None], None, None
