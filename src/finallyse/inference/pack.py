"""Self-contained checkpoints: without discriminators, with WavLM embedded."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from finallyse.errors import UserError
from finallyse.inference.enhancer import find_wavlm
from finallyse.models.checkpoint import load_checkpoint
from finallyse.models.tensors import load_tensors, save_tensors
from finallyse.models.wavlm import WavLM

KEY = "wavlm_files"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def pack(
    checkpoint: str | Path,
    output: str | Path,
    wavlm: str | Path | None = None,
    force: bool = False,
    card: str | Path | None = None,
) -> None:
    """Write a self-contained checkpoint: the generator and, if it needs WavLM, the contents of WavLM's folder.

    wavlm: that folder; None: the path in the checkpoint's config.    card: text file of its model card.
    The output can be used like any checkpoint.
    Raises UserError for missing files, and for an existing output, unless `force`.
    """
    if Path(output).exists() and not force:
        raise UserError(f"{output}: exists; give --force to replace it")
    loaded = load_checkpoint(checkpoint)
    content = load_tensors(checkpoint) | {"discriminators": {}, "level": loaded.level}
    if card:
        content["card"] = Path(card).read_text(encoding="utf-8")
    if loaded.build_generator().input_kind == "wav+ssl" and (wavlm or KEY not in content):
        folder = find_wavlm(loaded, wavlm)
        WavLM(folder)  # fail here rather than when the packed file is used
        names = ["config.json", "preprocessor_config.json", next(n for n in WEIGHTS if (folder / n).is_file())]
        content[KEY] = {
            name: torch.from_numpy(np.fromfile(folder / name, np.uint8)) for name in names if (folder / name).is_file()
        }
    save_tensors(output, content)


def packed_wavlm(checkpoint: str | Path) -> WavLM | None:
    """The WavLM embedded in a packed checkpoint; None if there is none."""
    files = load_tensors(checkpoint).get(KEY)
    if files is None:
        return None
    names = ("config.json", "preprocessor_config.json", *WEIGHTS)
    if not (isinstance(files, dict) and all(name in names and _is_file(data) for name, data in files.items())):
        raise UserError(f"{checkpoint}: damaged: {KEY} are not the files of a WavLM; pack it again")
    with tempfile.TemporaryDirectory(prefix="finallyse-wavlm-") as folder:
        for name, data in files.items():
            data.numpy().tofile(Path(folder) / name)
        return WavLM(folder)


def _is_file(data: object) -> bool:
    return torch.is_tensor(data) and data.dtype == torch.uint8 and data.dim() == 1
