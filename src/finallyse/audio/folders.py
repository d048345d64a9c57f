"""What is in a folder of recordings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from finallyse.audio.formats import is_recording
from finallyse.errors import UserError

# Complete unpackings are marked in this folder of a corpus.
MARKERS = ".unpacked"
# Folders that operating systems put on disks, some of them locked.
OF_SYSTEMS = frozenset(("lost+found", "System Volume Information", "$RECYCLE.BIN"))


def files_below(folder: str | Path, hidden: bool = False) -> Iterator[str]:
    """Relative paths of all files below `folder` (links followed, hidden files omitted), folder by folder, sorted.

    hidden: search hidden folders too. Raises UserError for a folder that cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"{error.filename}: cannot be listed ({error.strerror}); allow it, or move the folder out of {folder}"
        ) from error

    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen:  # a link back to a folder that was visited
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(n for n in folders if n not in OF_SYSTEMS and (hidden or not n.startswith(".")))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(place, name).relative_to(folder).as_posix()


def audio_files(source: Path, hidden: bool = False) -> Iterator[str]:
    """Relative paths of the recordings, sorted, without hidden files (macOS leaves `._x.wav`).

    hidden: search hidden folders too.
    """
    for path in files_below(source, hidden):
        if not {"__MACOSX", MARKERS}.intersection(path.split("/")) and is_recording(source / path):
            yield path
