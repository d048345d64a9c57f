"""The ONNX graph of a page, and what it says about itself, read without a library for ONNX."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finallyse.errors import UserError
from finallyse.inference.windows import FADE_S, WINDOW_S
from finallyse.onnx_format import KEY, SUFFIX
from finallyse.pretrained import checkpoint_file

METADATA_PROPS, ENTRY_KEY, ENTRY_VALUE = (
    14,
    1,
    2,
)  # field numbers in onnx.proto, of ModelProto and of StringStringEntryProto
NUMBERS = ("input_rate", "output_rate", "alignment", "context", "grid")
NEEDED = {*NUMBERS, "level", "ssl", "card"}
MOST_MB = 200  # a page is loaded as a whole, and a browser's memory is small


@dataclasses.dataclass(frozen=True)
class Graph:
    """The content of an ONNX file, and what `finallyse export` wrote into it."""

    name: str
    content: bytes
    described: dict[str, Any]

    @property
    def card(self) -> str:
        """The model card, Markdown; "" if there is none."""
        return self.described["card"]

    def settings(self) -> dict[str, Any]:
        """What the page needs to run it in windows, in samples at the input's rate unless the name says otherwise."""
        about = {name: self.described[name] for name in NUMBERS}
        window = max(int(WINDOW_S * about["input_rate"]), 2 * about["context"] + about["grid"])
        level = self.described["level"]
        return {**about, "window": window, "fade_s": FADE_S, "peak": level["peak"] if level else None}


def read_graph(checkpoint: str | Path | None = None) -> Graph:
    """The graph of a built-in network (None: the default one), of a checkpoint, or of an ONNX file.

    Raises UserError for a file that is none, and for a network that needs a second graph (WavLM) or is too large.
    """
    if checkpoint is not None and Path(checkpoint).suffix.lower() == SUFFIX:
        return parse(Path(checkpoint))
    trained = checkpoint_file(checkpoint, "onnx")
    if trained.suffix == SUFFIX:  # built in
        return parse(trained)
    from finallyse.export.command import export

    with tempfile.TemporaryDirectory(prefix="finallyse-page-") as folder:
        graph = Path(folder) / f"{trained.stem}{SUFFIX}"
        export(trained, graph, say=lambda _line: None)
        return parse(graph)


def parse(path: Path) -> Graph:
    """The graph in an ONNX file of `finallyse export`."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; `finallyse export CHECKPOINT {path.name}` writes one")
    if path.stat().st_size > MOST_MB << 20:
        raise UserError(
            f"{path}: more than {MOST_MB} MB, too large for a page; `finallyse serve` enhances on the server"
        )
    content = path.read_bytes()
    try:
        described = next((json.loads(value) for key, value in _metadata(content) if key == KEY), None)
    except (IndexError, KeyError, ValueError) as error:
        raise UserError(f"{path}: is damaged, or no ONNX file") from error
    if not isinstance(described, dict) or NEEDED - described.keys():
        raise UserError(f"{path}: not written by `finallyse export`, so its rates and its alignment are unknown")
    if not _possible(described):
        raise UserError(f"{path}: is damaged: its description has impossible values; export it again")
    if described["ssl"] is not None:
        raise UserError(f"{path}: needs WavLM as well, too large for a page; `finallyse serve` enhances on the server")
    return Graph(path.stem, content, described)


def _possible(described: dict[str, Any]) -> bool:
    """Whether the values of a description can be right."""
    level = described["level"]
    if level is not None and not (isinstance(level, dict) and isinstance(level.get("peak"), (int, float))):
        return False
    return all(isinstance(described[name], int) and described[name] > 0 for name in NUMBERS)


def _metadata(content: bytes) -> Iterator[tuple[str, str]]:
    """The entries of ModelProto.metadata_props. Raises IndexError, KeyError or ValueError for what is none."""
    for field, value in _fields(content):
        if field == METADATA_PROPS:
            entry = dict(_fields(value))
            yield entry[ENTRY_KEY].decode(), entry.get(ENTRY_VALUE, b"").decode()


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that have a length: (number, content)."""
    view, at = memoryview(content), 0
    while at < len(view):
        tag, at = _varint(view, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(view, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            size, at = _varint(view, at)
            if at + size > len(view):
                raise ValueError("a field ends after the file")
            yield tag >> 3, bytes(view[at : at + size])
            at += size
        else:
            raise ValueError(f"unknown kind of field: {kind}")


def _varint(view: memoryview, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    while True:
        byte = view[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")
