"""Free disk space, checked before it is used."""

from __future__ import annotations

import shutil
from pathlib import Path

from finallyse.errors import UserError
from finallyse.progress import data_size

RESERVE = 200_000_000  # bytes of free space kept in reserve


def free_space(folder: str | Path) -> int:
    """Free bytes on the disk of a folder, which may not exist yet."""
    place = Path(folder).absolute()
    return shutil.disk_usage(next(path for path in (place, *place.parents) if path.exists())).free


def require_space(folder: Path, needed: int, what: str) -> None:
    """Create `folder`; raise a UserError if fewer than `needed` bytes (plus a reserve) are free on its disk."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed + RESERVE:
        raise UserError(
            f"not enough space in {folder}: {what} needs {data_size(needed)} (and {data_size(RESERVE)} to spare), "
            f"{data_size(free)} are free; make room, or put `resources` on another disk"
        )
