"""Journals of finished work, from which a killed run resumes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from finallyse import atomic
from finallyse.errors import naming


class Journal:
    """A file with one JSON object per line: the settings of the work, then an entry for each finished piece.

    Args:
        path: the file.
        settings: entries made with other settings are ignored.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.settings = path, settings

    def read(self) -> list[dict]:
        """The entries; none if there is no journal, or if it was written with other settings."""
        if not self.path.is_file():
            return []
        lines = []
        with self.path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError, RecursionError):  # a line truncated by a kill, or damaged
                    lines.append(json.loads(line))
        return [entry for entry in lines[1:] if isinstance(entry, dict)] if lines[:1] == [self.settings] else []

    def write(self, entries: Iterable[dict]) -> None:
        """Replace the journal by one with these entries."""
        lines = map(json.dumps, (self.settings, *entries))
        atomic.write_bytes(self.path, *(f"{line}\n".encode() for line in lines))

    @contextlib.contextmanager
    def appending(self) -> Iterator[Callable[[dict], None]]:
        """A function that appends an entry and hands it to the operating system at once."""
        with self.path.open("ab", buffering=0) as file:

            def append(entry: dict) -> None:
                with naming(self.path):
                    file.write(f"{json.dumps(entry)}\n".encode())

            yield append
