"""Free disk space, checked before it is used."""

from __future__ import annotations

import shutil
from pathlib import Path

from finallyse.errors import UserError

RESERVE = 200_000_000  # bytes of free space kept in reserve


def megabytes(size: float) -> str:
    """`12.3 MB`, `4.56 GB` (powers of ten)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"


def require_space(folder: Path, needed: int, what: str) -> None:
    """Create `folder`; raise a UserError if fewer than `needed` bytes (plus a reserve) are free on its disk."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE:
        raise UserError(
            f"not enough space in {folder}: {what} needs {megabytes(needed)} (and {megabytes(RESERVE)} to spare), "
            f"{megabytes(free)} are free; make room, or put `resources` on another disk"
        )
