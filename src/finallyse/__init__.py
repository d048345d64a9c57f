"""Speech enhancement with HiFi-GAN, HiFi++ and FINALLY: networks, losses, data, training, measurement.

With a trained network:

    import finallyse
    model = finallyse.load("results/finally_stage3.ckpt")
    wav48 = model.enhance(wav, sample_rate)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from finallyse.inference.enhancer import Enhancer

__version__ = "0.1.0"


def load(checkpoint: str | Path, **options) -> Enhancer:
    """A trained network, ready to enhance: `load("x.ckpt").enhance(wav, sample_rate)`.

    options: device ("auto", "cpu", "cuda"), precision ("fp32", "bf16"), wavlm (folder), window_s, batch; see
    `finallyse.inference.enhancer.Enhancer`. Raises UserError for a file that is no checkpoint of this package.
    """
    from finallyse.inference.enhancer import Enhancer  # PyTorch, so that `import finallyse` stays cheap

    return Enhancer.from_checkpoint(checkpoint, **options)
