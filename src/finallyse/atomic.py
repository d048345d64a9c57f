"""Atomic file writes: written under a temporary name, then renamed into place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from finallyse.errors import naming


@contextlib.contextmanager
def replacing(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """The path of a file to write in the place of `path`, which it replaces when the block ends without an error.

    After an error it is removed, and what was at `path` is untouched. `durable`: also safe from a power failure, at the
    price of waiting for the disk. An OSError of the file, for example of a full disk, names `path`.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        with naming(path, part):
            yield part
            if durable:
                sync(part)
            part.replace(path)
        if durable:
            sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # of a disk that cannot be written at all, as the error itself says
            part.unlink(missing_ok=True)
        raise


def write_bytes(path: str | Path, *parts: bytes) -> None:
    """Write `parts` to a file."""
    with replacing(path) as part, part.open("wb") as file:
        for chunk in parts:
            file.write(chunk)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
