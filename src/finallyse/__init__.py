"""Speech enhancement with HiFi-GAN, HiFi++ and FINALLY: networks, losses, data, training, measurement.

With the network that comes with the package, or another trained one:

    import finallyse
    model = finallyse.load()                                    # or load("results/finally_stage3.ckpt")
    enhanced = model.enhance(wav, sample_rate)                  # at model.rate_for(sample_rate)
    stream = finallyse.Stream(model)                            # or while it comes in: stream.push(samples)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from finallyse.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from finallyse.inference.engine import Engine
    from finallyse.inference.enhancer import Enhancer
    from finallyse.inference.stream import Stream

__all__ = ["Enhancer", "Stream", "UserError", "load"]
__version__ = "0.1.0"


def load(
    checkpoint: str | Path | None = None,
    *,
    engine: Literal["auto", "torch", "onnx"] = "auto",
    threads: int | None = None,
    wavlm: str | Path | None = None,
    plugins: Sequence[str] = (),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    window_s: float = 20.48,
    batch: int | None = None,
) -> Engine:
    """A trained network, ready to enhance: `load().enhance(wav, sample_rate)`.

    Args:
        checkpoint: a file, or the name of a network of the package (`finallyse models`); None: the default.
        engine: what runs the network: PyTorch, or ONNX Runtime for those of `finallyse export` and of the package;
            "auto": what the file needs, PyTorch if that is open and it is installed.
        threads: CPU threads, with PyTorch of the whole process; None: those that the engine uses by itself.
        wavlm: folder of WavLM, for networks that need one; None: the one packed into the checkpoint, or that of its
            config.
        plugins: Python files that the network was trained with (`plugins` of its config); they are executed.
        device: "auto" (a GPU if available), "cpu", "cuda".
        precision: as for `finallyse.Enhancer`.
        window_s: as for `finallyse.Enhancer`.
        batch: as for `finallyse.Enhancer`.

    Raises:
        UserError: for a file that is no checkpoint of this package, and for options out of range.
    """
    from finallyse.inference.engine import open_engine  # so that `import finallyse` stays cheap

    options = {"device": device, "precision": precision, "window_s": window_s, "batch": batch}
    return open_engine(checkpoint, engine, threads=threads, wavlm=wavlm, plugins=plugins, **options)


def __getattr__(name: str) -> object:
    if name == "Enhancer":
        from finallyse.inference.enhancer import Enhancer

        return Enhancer
    if name == "Stream":
        from finallyse.inference.stream import Stream

        return Stream
    raise AttributeError(f"module 'finallyse' has no attribute {name!r}")
