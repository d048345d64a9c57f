"""Trained networks that come with the package, for use without training.

    finallyse.load()                        the default
    finallyse.load("small")                 by name

Each is a self-contained checkpoint in this folder, with its model card inside (`finallyse models --card NAME`), and the
same network as `finallyse export` writes it, for use without PyTorch. The SHA-256 of both files is pinned here, so that
a damaged installation is noticed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from finallyse.errors import UserError, nearest
from finallyse.hashes import sha256

FOLDER = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A built-in network.

    sha256: of its checkpoint, `<name>.ckpt`, and its graph, `<name>.onnx`.    summary: for `finallyse models`.
    """

    sha256: dict[str, str]
    summary: str


PRETRAINED = {
    "small": Pretrained(
        sha256={
            ".ckpt": "3b1dc4bf560552183cf4c10d9f53c1609c07c259b1d49237498f446b9371098a",
            ".onnx": "d545b9b94deddd41c5574b9de3e337d25cd1899af5bd4ee8780aff36c7fa55c0",
        },
        summary="removes noise and moderate reverberation; complex mask of 0.70 M parameters, 16 kHz",
    ),
}
DEFAULT = "small"


SUFFIXES = {"torch": ".ckpt", "onnx": ".onnx"}  # of the files by engine


def checkpoint_file(checkpoint: str | Path | None = None, engine: str = "torch") -> Path:
    """The file of a network for an engine: a path, the name of a built-in network, or None for the default one.

    A file of that name in the current folder has priority. Raises UserError for a file that does not exist and for a
    built-in one that is damaged.
    """
    name = DEFAULT if checkpoint is None else str(checkpoint)
    path = Path(name)
    if path.is_file() and checkpoint is not None:
        return path
    if name not in PRETRAINED:
        suggestion = f"; {nearest(name, PRETRAINED)}" if path.name == name and not path.suffix else ""
        raise UserError(f"{name}: no such checkpoint{suggestion}")
    path = FOLDER / f"{name}{SUFFIXES[engine]}"
    if not path.is_file() or sha256(path) != PRETRAINED[name].sha256[path.suffix]:
        raise UserError(f"{path}: the built-in network {name!r} is missing or damaged; install the package again")
    return path
