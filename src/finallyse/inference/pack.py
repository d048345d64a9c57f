"""Self-contained checkpoints to give away: without discriminators, with WavLM and a model card inside."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finallyse import atomic
from finallyse.errors import UserError
from finallyse.hashes import sha256
from finallyse.inference.card import card_of
from finallyse.inference.enhancer import find_wavlm
from finallyse.models.base import Generator
from finallyse.models.checkpoint import Checkpoint, load_checkpoint
from finallyse.models.norms import fold
from finallyse.models.tensors import load_tensors, save_safetensors, save_tensors
from finallyse.models.wavlm import WavLM
from finallyse.pretrained import checkpoint_file

KEY = "wavlm_files"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def pack(
    checkpoint: str | Path,
    output: str | Path,
    wavlm: str | Path | None = None,
    force: bool = False,
    card: str | Path | None = None,
    safetensors: bool = False,
    fp16: bool = False,
) -> str:
    """Write a self-contained checkpoint: the generator and, if it needs WavLM, the contents of WavLM's folder.

    The output can be used like any checkpoint. Its model card is inside, and beside it as <name>.md: the given one,
    that of the checkpoint, or else one that is made of its configuration and the scores in its folder of results.

    Args:
        checkpoint: a file, or the name of a network that comes with the package.
        wavlm: folder of WavLM; None: the path in the checkpoint's config.
        force: overwrite existing files.
        card: text file of the model card.
        safetensors: write a safetensors file, also done for an output with that suffix.
        fp16: store the generator's weights as 16-bit floats, half the size; the network computes in 32 bits as before.

    Returns:
        What was written, in lines for the terminal.

    Raises:
        UserError: for missing files, for existing outputs, unless `force`, and for weights beyond the range of `fp16`.
    """
    checkpoint, output = checkpoint_file(checkpoint), Path(output)
    beside = output.with_name(f"{output.stem}.md")
    if beside == output:
        raise UserError(f"{output}: .md is for the model card beside it; name the checkpoint *.ckpt or *.safetensors")
    for path in (output, beside):
        if path.exists() and not force:
            raise UserError(f"{path}: exists; give --force to replace it")
    loaded = load_checkpoint(checkpoint)
    generator = loaded.build_generator()
    content = load_tensors(checkpoint) | {"discriminators": {}, "level": loaded.level}
    if generator.input_kind == "wav+ssl" and (wavlm or KEY not in content):
        folder = find_wavlm(loaded, wavlm)
        WavLM(folder)  # fail here rather than when the packed file is used
        names = ["config.json", "preprocessor_config.json", next(n for n in WEIGHTS if (folder / n).is_file())]
        content[KEY] = {
            name: torch.from_numpy(np.fromfile(folder / name, np.uint8)) for name in names if (folder / name).is_file()
        }
    if fp16:
        content["generator"] = {name: _halved(name, weight) for name, weight in content["generator"].items()}
    fold(generator)
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    content["card"], origin = _card(loaded, card, generator, parameters)
    if safetensors or output.suffix == ".safetensors":
        save_safetensors(output, content)
    else:
        save_tensors(output, content)
    atomic.write_bytes(beside, content["card"].encode("utf-8"))
    return "\n".join(_described(output, beside, loaded, generator, parameters, content, origin))


def _halved(name: str, weight: torch.Tensor) -> torch.Tensor:
    if not weight.is_floating_point():
        return weight
    half = weight.half()
    if not half.isfinite().all():
        raise UserError(f"--fp16: weights of {name} are beyond the range of 16-bit floats; leave it out")
    return half


def _card(loaded: Checkpoint, card: str | Path | None, generator: Generator, parameters: int) -> tuple[str, str]:
    """The model card and where it is from."""
    if card:
        try:
            return Path(card).read_text(encoding="utf-8"), str(card)
        except UnicodeDecodeError as error:
            raise UserError(
                f"{card}: a model card is text in UTF-8, this is something else ({error.reason})"
            ) from error
    if loaded.card:
        return loaded.card, "that of the checkpoint"
    return card_of(loaded, generator, parameters), "made of the configuration and the scores beside the checkpoint"


def _described(
    output: Path,
    beside: Path,
    loaded: Checkpoint,
    generator: Generator,
    parameters: int,
    content: Mapping[str, Any],
    origin: str,
) -> Iterator[str]:
    wavlm = sum(data.numel() for data in content.get(KEY, {}).values())
    yield f"{output}: written, {output.stat().st_size / 1e6:.1f} MB"
    names = dict.fromkeys((loaded.network, loaded.config["generator"]["name"]))
    yield f"  network     {', '.join(names)}, step {loaded.step}"
    yield f"  rates       {generator.input_rate} Hz in, {generator.output_rate} Hz out"
    yield f"  parameters  {parameters:,}"
    yield f"  WavLM       {f'inside, {wavlm / 1e6:.1f} MB' if wavlm else 'not needed'}"
    yield f"  model card  inside, and in {beside} ({origin})"
    yield f"  sha256      {sha256(output)}"


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
