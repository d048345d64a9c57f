"""Enhancement of signals of any length, rate and number of channels, by whatever runs the network.

`Engine` is what PyTorch's `Enhancer` and ONNX Runtime's `OnnxEnhancer` have in common, and `open_engine` chooses one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from finallyse.audio.resample import resample
from finallyse.errors import UserError
from finallyse.inference.renderer import Conditioner, Model, Read, Renderer
from finallyse.inference.windows import fit, length_at
from finallyse.pretrained import checkpoint_file

ENGINES = ("auto", "torch", "onnx")
SILENT_PEAK = 1e-30  # channels with lower peaks keep their level: the gain would overflow float32
MOST_CHANNELS = 64  # beyond, an array with more channels than samples is taken for a mistake


class Engine(Renderer):
    """Runs a network over signals of any rate at their own level. A subclass says how it is called (`generate`).

    Args:
        model, wavlm, window_s, batch: as for `Renderer`.
        level: level of the training data, {"peak": p}: each channel as a whole is scaled to this peak for the network,
            and the output is scaled back to the channel's own level; None: levels are not changed.

    A vocoder (`input_kind` "mel") resynthesises the signal from its log-mel spectrogram (copy synthesis).
    """

    def __init__(
        self,
        model: Model,
        wavlm: Conditioner | None,
        window_s: float | None = None,
        batch: int = 1,
        level: Mapping[str, float] | None = None,
    ):
        super().__init__(model, wavlm, window_s, batch)
        self.peak = None if level is None else level["peak"]

    def rate_for(self, sample_rate: int) -> int:
        """Rate of the output for an input at `sample_rate` Hz unless another is asked for: never less than either's."""
        return max(self.output_rate, sample_rate)

    def enhance(self, wav: ArrayLike, sample_rate: float, rate: float | None = None) -> np.ndarray:
        """Enhance a signal of any rate.

        Channels are enhanced independently; each keeps its level. If the signal is resampled, peaks may slightly
        exceed 1; nothing is clipped.

        Args:
            wav: [T], or [C, T] with at most `MOST_CHANNELS` channels: floats in [-1, 1], or integers of 8 (unsigned),
                16 or 32 bits over their full range.
            sample_rate: its rate, Hz.
            rate: rate of the output, Hz; None: `rate_for(sample_rate)`.

        Returns:
            float32 [T'] or [C, T'] with T' = T * rate / sample_rate, rounded half up, and at least 1.

        Raises:
            UserError: for an empty signal, one with other axes, values that are not finite, and rates that are not
                positive whole numbers.
        """
        wav = _as_floats(wav)
        sample_rate = _whole_rate("sample_rate", sample_rate)
        rate = self.rate_for(sample_rate) if rate is None else _whole_rate("rate", rate)
        x = resample(np.atleast_2d(wav), sample_rate, self.input_rate)
        y = self.render_whole(fit(x, length_at(wav.shape[-1], sample_rate, self.input_rate)))
        y = fit(resample(y, self.output_rate, rate), length_at(wav.shape[-1], sample_rate, rate))
        return y[0] if wav.ndim == 1 else y

    def render_whole(self, wav: np.ndarray) -> np.ndarray:
        """Enhance float32 [C, T] at `input_rate` -> float32 [C, T'] at `output_rate`."""
        peaks = np.abs(wav).max(axis=1)
        return np.concatenate(list(self.render(lambda start, stop: wav[:, start:stop], wav.shape[1], peaks)), axis=1)

    def render(self, read: Read, length: int, peaks: np.ndarray) -> Iterator[np.ndarray]:
        """Enhance `length` samples at `input_rate` in constant memory; yields consecutive [C, n] at `output_rate`.

        Args:
            read: (start, stop) -> float32 [C, stop - start]; called with increasing starts.
            peaks: [C], each channel's largest magnitude in the whole signal.
        """
        channels = len(peaks)
        if self.peak is None:
            yield from self.render_windows(read, length, channels)
            return
        audible = peaks > SILENT_PEAK
        gains = np.where(audible, self.peak / np.where(audible, peaks, 1.0), 1.0).astype(np.float32)[:, None]
        for block in self.render_windows(lambda start, stop: read(start, stop) * gains, length, channels):
            yield block / gains


def finite(wav: np.ndarray) -> np.ndarray:
    """The output of a network; UserError if it has values that are not finite."""
    if not np.isfinite(wav).all():
        raise UserError("the network's output is not finite; the checkpoint is not fit for use")
    return wav


def choose_engine(engine: str, checkpoint: str | Path | None) -> str:
    """ "torch" or "onnx": what a file `checkpoint` needs, or else what is installed, if `engine` is "auto".

    Raises UserError for an engine that is unknown, not installed, or not that of the file.
    """
    if engine not in ENGINES:
        raise UserError(f"--engine {engine}: must be one of {', '.join(ENGINES)}")
    exported = Path(checkpoint or "").suffix.lower() == ".onnx"
    if engine == "torch" and exported:
        raise UserError(f"{checkpoint}: is for --engine onnx; PyTorch runs the checkpoint that it was exported from")
    if engine == "auto":
        engine = "onnx" if exported or importlib.util.find_spec("torch") is None else "torch"
    if engine == "onnx" and Path(checkpoint or "").suffix and not exported:
        raise UserError(
            f"{checkpoint}: runs with PyTorch (pip install finallyse[torch]); for --engine onnx export it first: "
            f"finallyse export {checkpoint} {Path(checkpoint).with_suffix('.onnx')}"
        )
    needs, extra = ("torch", "torch") if engine == "torch" else ("onnxruntime", "onnx")
    if importlib.util.find_spec(needs) is None:
        raise UserError(f"--engine {engine}: the package {needs} is not installed: pip install finallyse[{extra}]")
    return engine


def open_engine(
    checkpoint: str | Path | None = None,
    engine: str = "auto",
    *,
    wavlm: str | Path | None = None,
    plugins: Sequence[str] = (),
    threads: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    **options,
) -> Engine:
    """The engine of a trained network; `options` are `window_s` and `batch`, others as for `finallyse.load`."""
    engine = choose_engine(engine, checkpoint)
    trained = checkpoint_file(checkpoint, engine)
    if engine == "torch":
        import torch

        from finallyse.inference.enhancer import Enhancer
        from finallyse.plugins import load as load_plugins

        load_plugins(plugins)
        if threads:
            torch.set_num_threads(threads)
        return Enhancer.from_checkpoint(trained, wavlm=wavlm, device=device, precision=precision, **options)

    from finallyse.inference.onnx_enhancer import OnnxEnhancer

    refused = {
        "--plugin": plugins,
        "--wavlm": wavlm,
        "--device cuda": device == "cuda",
        f"--precision {precision}": precision != "fp32",
    }
    for name, is_given in refused.items():
        if is_given:
            raise UserError(f"{name}: not with ONNX Runtime, only with --engine torch")
    return OnnxEnhancer(trained, threads=threads, **options)


def _as_floats(wav: ArrayLike) -> np.ndarray:
    """A user's signal as float32 in [-1, 1]; UserError if it cannot be one."""
    if hasattr(wav, "detach"):  # a tensor of PyTorch
        wav = wav.detach().cpu()
        wav = wav.float() if wav.is_floating_point() else wav
    wav = np.asarray(wav)
    if wav.ndim not in (1, 2) or wav.size == 0:
        raise UserError(f"wav must be [T] or [C, T] with at least one sample, not {list(wav.shape)}")
    if wav.ndim == 2 and len(wav) > MOST_CHANNELS and len(wav) > wav.shape[1]:
        raise UserError(f"wav must be [C, T], and {list(wav.shape)} looks like [T, C]: give wav.T")
    if wav.dtype == np.uint8:
        wav = (wav.astype(np.float32) - 128) / 128
    elif wav.dtype in (np.int16, np.int32):
        wav = wav / np.float64(2 ** (8 * wav.itemsize - 1))
    elif wav.dtype.kind != "f":
        raise UserError(f"wav must be of floats in [-1, 1], or of integers of 8, 16 or 32 bits, not {wav.dtype}")
    wav = wav.astype(np.float32, copy=False)
    if not np.isfinite(wav).all():
        raise UserError("wav contains samples that are not finite numbers")
    return wav


def _whole_rate(name: str, rate: float) -> int:
    if not (rate >= 1 and float(rate).is_integer()):
        raise UserError(f"{name} must be a positive whole number of Hz, not {rate}")
    return int(rate)
