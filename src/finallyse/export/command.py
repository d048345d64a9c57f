"""Implementation of `finallyse export`: a checkpoint as ONNX graphs that are checked before they are given a name."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finallyse import __version__
from finallyse.atomic import replacing
from finallyse.errors import UserError
from finallyse.hashes import sha256
from finallyse.onnx_format import FORMAT, FORMAT_VERSION, SUFFIX, WAVLM_FORMAT, WAVLM_SUFFIX

# The largest difference from PyTorch, dB of the output's power, with which an export is kept.
WORST_DB = {"fp32": -80.0, "fp16": -40.0, "int8": -25.0}


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    precision: str = "fp32",
    wavlm: str | Path | None = None,
    force: bool = False,
    say: Callable[[str], Any] = print,
) -> None:
    """Write the network of a checkpoint (a file, or the name of one of the package) as ONNX to `output`.

    Args:
        precision: how the weights are stored, see `finallyse.export.precisions`.
        wavlm: folder of WavLM, for networks that are conditioned on it, as in `Enhancer.from_checkpoint`; it becomes
            a second file, OUTPUT with the suffix .wavlm.onnx.
        force: replace existing files.
        say: is given one line per file and per check.

    Raises:
        UserError: for a name that does not end in .onnx, existing files, missing packages, a network that cannot be
            exported, and if ONNX Runtime's output differs from PyTorch's by more than `WORST_DB`. No file is left then.
    """
    output = Path(output)
    if output.suffix.lower() != SUFFIX or output.name.lower().endswith(WAVLM_SUFFIX):
        raise UserError(f"{output}: must end in {SUFFIX}" + (", not in .wavlm.onnx" if output.suffix == SUFFIX else ""))
    beside = output.with_suffix(WAVLM_SUFFIX)
    for path in (output, beside):
        if path.exists() and not force:
            raise UserError(f"{path}: exists; give --force to replace it")
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"exporting needs the package {package}: pip install 'finallyse[onnx]'")

    from finallyse.export.check import compare_generator, compare_wavlm
    from finallyse.export.graphs import OPSET, generator_graph, wavlm_graph
    from finallyse.export.precisions import store
    from finallyse.inference.enhancer import Enhancer
    from finallyse.models.checkpoint import load_checkpoint
    from finallyse.pretrained import checkpoint_file

    def check(path: Path, part: Path, difference: tuple[float, float]) -> None:
        decibels, largest = difference
        if not decibels <= WORST_DB[precision]:
            raise UserError(
                f"{path}: not written, since it differs from PyTorch by {decibels:.1f} dB, more than the "
                f"{WORST_DB[precision]:.0f} dB allowed with {precision}"
            )
        size = part.stat().st_size / 1e6
        say(f"{path}: {size:.2f} MB, differs from PyTorch by {decibels:.1f} dB, at most {largest:.2g}")

    trained = checkpoint_file(checkpoint)
    loaded = load_checkpoint(trained)
    enhancer = Enhancer.from_checkpoint(loaded, wavlm=wavlm, device="cpu")
    about = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "network": loaded.config["generator"]["name"],
        "package_version": __version__,
        "input_rate": enhancer.input_rate,
        "output_rate": enhancer.output_rate,
        "input_kind": enhancer.input_kind,
        "alignment": enhancer.alignment,
        "reach_back": enhancer.reach_back,
        "reach_ahead": enhancer.reach_ahead,
        "repeats": enhancer.repeats,
        "context": enhancer.context,
        "grid": enhancer.grid,
        "level": loaded.level,
        "ssl": None,
        "precision": precision,
        "opset": OPSET,
        "step": loaded.step,
        "checkpoint_sha256": sha256(trained),
        "card": loaded.card,
    }
    with contextlib.ExitStack() as files:
        if enhancer.wavlm is not None:
            part = files.enter_context(replacing(beside))
            wavlm_graph(enhancer.wavlm, part)
            store(part, precision, {"format": WAVLM_FORMAT, "version": FORMAT_VERSION, "package_version": __version__})
            check(beside, part, compare_wavlm(part, enhancer))
            about["ssl"] = {
                "file": beside.name,
                "sha256": sha256(part),
                "dim": enhancer.wavlm.dim,
                "hop": enhancer.wavlm.hop,
                "sees": enhancer.wavlm.receptive_field,
                "level": "normalised in the graph" if enhancer.wavlm.normalize else "as it is",
            }
        part = files.enter_context(replacing(output))
        generator_graph(enhancer.generator, part)
        store(part, precision, about)
        check(output, part, compare_generator(part, enhancer))
    say(f"opset {OPSET}, input wav [batch, 1, T] at {enhancer.input_rate} Hz, T a multiple of {about['alignment']}")
