"""Enhancement of signals of any length, rate and number of channels with a generator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from finallyse.audio.mel import LogMel
from finallyse.audio.resample import resample
from finallyse.errors import UserError
from finallyse.hardware import choose_device, keep_freed_memory
from finallyse.inference.renderer import Read, Renderer
from finallyse.inference.signals import as_floats, whole_rate
from finallyse.inference.windows import fit, length_at
from finallyse.models.checkpoint import Checkpoint, load_checkpoint
from finallyse.models.norms import fold, normed_layers

SILENT_PEAK = 1e-30  # channels with lower peaks keep their level: the gain would overflow float32


class Enhancer(Renderer):
    """Runs a generator over signals of any length, in windows, with the norms of its weights folded in.

    Args:
        generator: a generator of `models_registry`, with trained weights; it is folded in place.
        wavlm: the WavLM that conditions it, if its `input_kind` is "wav+ssl".
        device: "auto" (a GPU if available), "cpu", "cuda".
        precision: "fp32", or "bf16": twice as fast on CPUs and GPUs with native support, about -45 dB from fp32.
        window_s: window length in seconds, with which memory grows; None: 20.48, or the least that the network allows.
        batch: windows per forward pass; None: 1 on a CPU, 4 on a GPU.
        level: level of the training data, {"peak": p}: each channel as a whole is scaled to this peak for the network,
            and the output is scaled back to the channel's own level; None: levels are not changed.

    A vocoder (`input_kind` "mel") resynthesises the signal from its log-mel spectrogram (copy synthesis).

    Attributes: `input_rate`, `output_rate` (Hz) of the generator.
    Raises UserError for an unavailable device, a missing WavLM, or one of another size.
    """

    def __init__(
        self,
        generator: nn.Module,
        wavlm: nn.Module | None = None,
        *,
        device: str = "auto",
        precision: Literal["fp32", "bf16"] = "fp32",
        window_s: float | None = None,
        batch: int | None = None,
        level: Mapping[str, float] | None = None,
    ):
        device = choose_device(device)
        self.precision = precision
        self.peak = None if level is None else level["peak"]
        if generator.input_kind == "wav+ssl":
            if wavlm is None:
                raise UserError("this network needs WavLM's features: give the folder of WavLM (--wavlm DIR)")
            if wavlm.dim != generator.ssl_dim:
                raise UserError(
                    f"this network was trained with a WavLM of {generator.ssl_dim} features, the one given has "
                    f"{wavlm.dim}: give the folder of the WavLM that it was trained with (--wavlm DIR)"
                )
            wavlm = wavlm.to(device)
        if normed_layers(generator):
            fold(generator)
        generator = generator.eval().requires_grad_(False).to(device)
        super().__init__(generator, wavlm, device, window_s, batch or (4 if device.type == "cuda" else 1))
        self.log_mel = LogMel() if self.input_kind == "mel" else None

    @classmethod
    def from_checkpoint(
        cls, checkpoint: str | Path | Checkpoint, *, wavlm: str | Path | None = None, **options
    ) -> Enhancer:
        """The enhancer of a checkpoint (file); `options` as for the class.

        Args:
            wavlm: folder of WavLM; None: the one packed into the checkpoint, otherwise the path in the checkpoint's
                config, relative to the current folder or to the parent of the checkpoint's results folder.
        """
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = load_checkpoint(checkpoint)
        generator = checkpoint.build_generator()
        if (level := checkpoint.level) is not None and not (level.keys() == {"peak"} and level["peak"] > 0):
            raise UserError(
                f"{checkpoint.path}: trained at the level {level}, of which only a positive peak is known; "
                "train with a positive `peak`, or update the package"
            )
        network = None
        if generator.input_kind == "wav+ssl":
            from finallyse.inference.pack import packed_wavlm
            from finallyse.models.wavlm import WavLM

            network = None if wavlm else packed_wavlm(checkpoint.path)
            network = network or WavLM(find_wavlm(checkpoint, wavlm))
        return cls(generator, network, level=level, **options)

    def rate_for(self, sample_rate: int) -> int:
        """Rate of the output for an input at `sample_rate` Hz unless another is asked for: never less than either's."""
        return max(self.output_rate, sample_rate)

    def enhance(self, wav: ArrayLike | Tensor, sample_rate: float, rate: float | None = None) -> np.ndarray:
        """Enhance a signal of any rate.

        Channels are enhanced independently; each keeps its level. If the signal is resampled, peaks may slightly
        exceed 1; nothing is clipped.

        Args:
            wav: [T], or [C, T] with at most `signals.MOST_CHANNELS` channels: floats in [-1, 1], or integers of 8
                (unsigned), 16 or 32 bits over their full range.
            sample_rate: its rate, Hz.
            rate: rate of the output, Hz; None: `rate_for(sample_rate)`.

        Returns:
            float32 [T'] or [C, T'] with T' = T * rate / sample_rate, rounded half up, and at least 1.

        Raises:
            UserError: for an empty signal, one with other axes, values that are not finite, and rates that are not
                positive whole numbers.
        """
        wav = as_floats(wav)
        sample_rate = whole_rate("sample_rate", sample_rate)
        rate = self.rate_for(sample_rate) if rate is None else whole_rate("rate", rate)
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

    @torch.inference_mode()
    def generate(self, wav: Tensor | None, ssl: Tensor | None = None, mel: Tensor | None = None) -> Tensor:
        with self.autocast():
            if self.log_mel:
                if mel is None:
                    mel = self.log_mel(nn.functional.pad(wav, (0, -wav.shape[-1] % self.log_mel.hop)))
                y = self.generator(mel)
            elif ssl is not None:
                y = self.generator(wav[:, None], ssl)
            else:
                y = self.generator(wav[:, None])
        if not torch.isfinite(y).all():
            raise UserError("the network's output is not finite; the checkpoint is not fit for use")
        return y

    @torch.inference_mode()
    def hidden_state(self, wav: Tensor) -> Tensor:
        with self.autocast():
            return self.wavlm.last_hidden_state(wav)

    def autocast(self) -> torch.autocast:
        """The autocast context of the precision."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def find_wavlm(checkpoint: Checkpoint, folder: str | Path | None) -> Path:
    """The folder of the WavLM that a checkpoint was trained with; a UserError lists the places searched."""
    if folder is not None:
        return Path(folder)
    configured = checkpoint.config.get("wavlm")
    if not configured:
        raise UserError(f"{checkpoint.path}: its config names no WavLM; give its folder (--wavlm DIR)")
    places = [Path(configured)]
    results = Path(checkpoint.config.get("exp", {}).get("results", "results"))
    folder_of_results = checkpoint.path.resolve().parent
    if not results.is_absolute() and folder_of_results.parts[-len(results.parts) :] == results.parts:
        places.append(folder_of_results.parents[len(results.parts) - 1] / configured)
    for place in places:
        if place.is_dir():
            return place
    raise UserError(
        f"{checkpoint.path}: needs the WavLM that it was trained with, not in {' or '.join(map(str, places))}; "
        "give its folder (--wavlm DIR)"
    )


def tune_process() -> None:
    """Process-wide settings that speed up long signals on a CPU; for commands, not to be imposed by a library.

    Denormal numbers, common in fading activations and an order of magnitude slower, are flushed to zero, and freed
    memory is kept: mapping each large activation again, which the kernel clears page by page, takes up to half the time
    of a forward pass.
    """
    torch.set_flush_denormal(True)
    keep_freed_memory()
