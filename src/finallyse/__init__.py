"""Speech enhancement with HiFi-GAN, HiFi++ and FINALLY: networks, losses, data, training, measurement.

With the network that comes with the package, or another trained one:

    import finallyse
    model = finallyse.load()                                    # or load("results/finally_stage3.ckpt")
    enhanced = model.enhance(wav, sample_rate)                  # at model.rate_for(sample_rate)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finallyse.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from finallyse.inference.enhancer import Enhancer

__all__ = ["UserError", "load"]
__version__ = "0.1.0"


def load(checkpoint: str | Path | None = None, **options) -> Enhancer:
    """A trained network, ready to enhance: `load().enhance(wav, sample_rate)`.

    checkpoint: a file, or the name of a network that comes with the package (`finallyse models`); None: the default.
    options: device ("auto", "cpu", "cuda"), precision ("fp32", "bf16"), wavlm (folder), window_s, batch; see
    `finallyse.inference.enhancer.Enhancer`. Raises UserError for a file that is no checkpoint of this package.
    """
    from finallyse.inference.enhancer import Enhancer  # PyTorch, so that `import finallyse` stays cheap
    from finallyse.pretrained import checkpoint_file

    return Enhancer.from_checkpoint(checkpoint_file(checkpoint), **options)
