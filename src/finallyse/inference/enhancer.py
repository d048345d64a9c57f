"""Enhancement with PyTorch, of signals of any length, rate and number of channels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from finallyse.audio.mel import LogMel
from finallyse.errors import UserError
from finallyse.hardware import choose_device, keep_freed_memory
from finallyse.inference.engine import Engine, finite
from finallyse.models.checkpoint import Checkpoint, load_checkpoint
from finallyse.models.norms import fold


class Enhancer(Engine):
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
        self.device, self.precision = device, precision
        if generator.input_kind == "wav+ssl":
            if wavlm is None:
                raise UserError("this network needs WavLM's features: give the folder of WavLM (--wavlm DIR)")
            if wavlm.dim != generator.ssl_dim:
                raise UserError(
                    f"this network was trained with a WavLM of {generator.ssl_dim} features, the one given has "
                    f"{wavlm.dim}: give the folder of the WavLM that it was trained with (--wavlm DIR)"
                )
            wavlm = wavlm.to(device)
        fold(generator)
        self.generator = generator.eval().requires_grad_(False).to(device)
        super().__init__(self.generator, wavlm, window_s, batch or (4 if device.type == "cuda" else 1), level)
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

    @torch.inference_mode()
    def generate(
        self, wav: np.ndarray | None, ssl: np.ndarray | None = None, mel: np.ndarray | None = None
    ) -> np.ndarray:
        wav, ssl, mel = (None if x is None else torch.from_numpy(x).to(self.device) for x in (wav, ssl, mel))
        with self.autocast():
            if self.log_mel:
                if mel is None:
                    mel = self.log_mel(nn.functional.pad(wav, (0, -wav.shape[-1] % self.log_mel.hop)))
                y = self.generator(mel)
            elif ssl is not None:
                y = self.generator(wav[:, None], ssl)
            else:
                y = self.generator(wav[:, None])
        return finite(y[:, 0].float().cpu().numpy())

    @torch.inference_mode()
    def hidden_state(self, wav: np.ndarray) -> np.ndarray:
        with self.autocast():
            return self.wavlm.last_hidden_state(torch.from_numpy(wav).to(self.device)).float().cpu().numpy()

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
