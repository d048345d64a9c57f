"""Hashes of the contents of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sha256(*paths: Path) -> str:
    """SHA-256 of the contents of files, one after the other, as hex digits."""
    return digests(paths, "sha256")["sha256"]


def digests(paths: Iterable[Path], *algorithms: str) -> dict[str, str]:
    """Hex digests of the contents of files, one after the other, which are read once: algorithm -> digest."""
    hashes = {algorithm: hashlib.new(algorithm) for algorithm in algorithms}
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while block := file.read(1 << 20):
                for running in hashes.values():
                    running.update(block)
    return {algorithm: running.hexdigest() for algorithm, running in hashes.items()}
