"""The lock file of checksums that the publisher does not state.

<resources>/checksums.lock has the format of `sha256sum`, with paths relative to its folder: `sha256sum -c` verifies it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

from finallyse import atomic
from finallyse.errors import UserError
from finallyse.hashes import sha256

SHA256 = re.compile(r"[0-9a-f]{64}")


class ChecksumLock:
    """SHA-256 sums recorded at the first download. Several jobs may use one lock file concurrently.

    Args:
        path: the lock file; its keys are paths relative to its folder.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def key(self, file: Path) -> str:
        """A file's key in the lock."""
        return Path(os.path.relpath(file, self.path.parent)).as_posix()

    def get(self, file: Path) -> str | None:
        """The recorded sum of a file."""
        return self._read().get(self.key(file))

    def record(self, file: Path, checksum: str) -> None:
        """Record a file's sum, replacing any other."""
        with self._exclusive():
            self._write({**self._read(), self.key(file): checksum})

    def forget_other_than(self, file: Path, contents: Path) -> None:
        """Drop a file's sum if it is not that of `contents`, which was rebuilt to replace it."""
        with self._exclusive():
            sums = self._read()
            if sums.get(self.key(file), "") not in ("", sha256(contents)):
                del sums[self.key(file)]
                self._write(sums)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.path.name}.flock")):
            yield

    def _read(self) -> dict[str, str]:
        if not self.path.exists():
            return {}
        sums = {}
        for number, line in enumerate(self.path.read_bytes().decode("utf-8", "surrogateescape").splitlines(), 1):
            checksum, separator, key = line.partition("  ")
            if not separator or not SHA256.fullmatch(checksum):
                raise UserError(f"{self.path}: line {number} is not `<sha256>  <path>`; correct or delete the line")
            sums[key] = checksum
        return sums

    def _write(self, sums: dict[str, str]) -> None:
        lines = "".join(f"{checksum}  {key}\n" for key, checksum in sorted(sums.items()))
        atomic.write_bytes(self.path, lines.encode("utf-8", "surrogateescape"))
