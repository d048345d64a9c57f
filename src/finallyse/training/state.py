"""Resume state: the identity of a run (its definition and key), and the files from which it continues.

    <folder>/step-00001000.pt      everything that the next step depends on
    <folder>/step-00001000.json    written after it: bytes, CRC-32, key, definition; without it the .pt does not count
    <folder>/superseded/           the last run of another recipe under this name

Both files are written under a temporary name, flushed to the disk and renamed, so that a kill leaves either a complete
file or none; the last two states are kept in case the disk loses one.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import random
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import finallyse
from finallyse import atomic
from finallyse.errors import UserError
from finallyse.options import Experiment, defines_run

log = logging.getLogger(__name__)

FORMAT = 1


# ---------------------------------------------------------------------------------------------------------------------
# What a run is


def definition(experiment: Experiment) -> dict[str, Any]:
    """The options that define the run's result: dotted key -> value, with files and folders replaced by content hashes.

    Which options these are is declared with each (`defines` in :mod:`finallyse.options`). No schedule depends on the
    total number of steps, so a longer run continues a shorter one.

    Paths do not count, so that a project can be moved; the contents of manifests, WavLM's weights and the checkpoint
    that a stage starts from do.
    """
    flat = dict(_flatten(dataclasses.asdict(experiment)))
    return {
        key: _fingerprint(value) if _is_path(value) else value
        for key, value in sorted(flat.items())
        if defines_run(key)
    }


def key_of(definition: Mapping[str, Any]) -> str:
    """A short hash of the definition."""
    text = json.dumps(definition, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Mapping[str, Any], new: Mapping[str, Any], limit: int = 6) -> str:
    """`train.clip.mode: none -> norm; ...` for the keys that differ between two definitions."""
    missing = "(not set)"
    changed = [key for key in sorted({*old, *new}) if old.get(key, missing) != new.get(key, missing)]
    shown = [f"{key}: {old.get(key, missing)} -> {new.get(key, missing)}" for key in changed[:limit]]
    return "; ".join(shown + ([f"and {len(changed) - limit} more"] if len(changed) > limit else []))


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and "/" in value and Path(value).exists()


def _fingerprint(path: str) -> str:
    """Hash of a file, or of the files of a folder: by content, or by names and sizes if there are many of them."""
    digest = hashlib.sha256()
    if Path(path).is_file():
        _feed(digest, Path(path))
    else:
        files = sorted(p for p in Path(path).rglob("*") if p.is_file())
        for file in files:
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
            if len(files) <= 16:
                _feed(digest, file)
    return f"sha256:{digest.hexdigest()[:16]}"


def _feed(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


# ---------------------------------------------------------------------------------------------------------------------
# The files


class StateFolder:
    """The resume states of one run.

    Args:
        folder: results/state/<network>.
        defined: the run's `definition`.
        keep: number of states kept.
    """

    def __init__(self, folder: str | Path, defined: Mapping[str, Any], keep: int = 2):
        self.folder, self.defined, self.keep = Path(folder), dict(defined), keep
        self.key = key_of(defined)
        self._lock = None

    def lock(self) -> None:
        """Lock the folder for this process until it exits, however it exits.

        Raises UserError if another process trains into it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("a")
        try:
            # owned by this process only: forked loaders do not hold it
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.folder}: another process is training into this folder; end it first") from None
        except OSError as error:
            log.warning(
                "%s: this file system has no locks (%s): make sure that nothing else trains here", self.folder, error
            )
        for left in self.folder.glob("*.part"):
            left.unlink()

    def unlock(self) -> None:
        """Release the folder."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def newest(self, last: int) -> Path | None:
        """The newest complete state of this run that is not beyond step `last`, or None.

        States of another recipe are moved aside, with a warning that lists the differences; damaged ones are skipped
        with a warning.
        """
        records = {path: self._record(path) for path in sorted(self.folder.glob("step-*.json"), reverse=True)}
        others = [record for record in records.values() if record and record["key"] != self.key]
        if others:
            self._supersede(others[0])
            return None
        for path, record in records.items():
            if record and record["step"] > last:
                log.warning("%s: beyond train.steps=%d, not used", path.with_suffix(".pt"), last)
            elif record and self._whole(path.with_suffix(".pt"), record):
                return path.with_suffix(".pt")
        return None

    def has(self, step: int) -> bool:
        """Whether the state after `step` steps exists."""
        return (self.folder / f"step-{step:08d}.json").is_file()

    @staticmethod
    def read(path: Path) -> dict:
        """Read a state found by `newest`."""
        return torch.load(path, map_location="cpu", weights_only=True)

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps; then remove all but the last `keep`.

        Raises UserError if the disk is full; previous states are kept.
        """
        path = self.folder / f"step-{step:08d}.pt"
        path.with_suffix(".json").unlink(missing_ok=True)  # of a damaged state of the same step
        size, crc = write_whole(path, lambda file: torch.save({"format": FORMAT, "step": step, **state}, file))
        record = {
            "format": FORMAT,
            "step": step,
            "bytes": size,
            "crc32": crc,
            "key": self.key,
            "version": finallyse.__version__,
            "definition": self.defined,
        }
        text = json.dumps(record, indent=1, default=str).encode()
        write_whole(path.with_suffix(".json"), lambda file: file.write(text))
        self._prune()
        return path

    def _prune(self) -> None:
        saved = sorted(self.folder.glob("step-*.json"), reverse=True)
        for old in saved[self.keep :]:
            old.unlink()  # first: from here on the .pt does not count
        kept = {path.stem for path in saved[: self.keep]}
        for path in self.folder.glob("step-*.pt"):
            if path.stem not in kept:
                path.unlink()

    def _record(self, path: Path) -> dict | None:
        try:
            record = json.loads(path.read_text())
            if record["format"] == FORMAT and {"step", "bytes", "crc32", "key", "definition"} <= record.keys():
                return record
            log.warning("%s: written by another version, not used", path)
        except (ValueError, KeyError, TypeError) as error:
            log.warning("%s: damaged (%s), not used", path, error)
        return None

    def _whole(self, path: Path, record: Mapping[str, Any]) -> bool:
        size = path.stat().st_size if path.is_file() else 0
        if size != record["bytes"]:
            damage = f"{size} bytes instead of {record['bytes']}"
        elif _crc(path) != record["crc32"]:
            damage = "its checksum differs"
        else:
            return True
        log.warning("%s: damaged (%s), falling back to the state before", path, damage)
        return False

    def _supersede(self, other: Mapping[str, Any]) -> None:
        aside = self.folder / "superseded"
        log.warning(
            "%s holds the state of another recipe, step %d: %s. It is not resumed but moved to %s",
            self.folder,
            other["step"],
            differences(other["definition"], json.loads(json.dumps(self.defined, default=str))),
            aside,
        )
        if aside.exists():
            shutil.rmtree(aside)
        aside.mkdir()
        for path in sorted(self.folder.iterdir(), reverse=True):  # .pt before .json: no state is without its record
            if path.name not in ("superseded", "lock"):
                path.rename(aside / path.name)


def write_whole(path: Path, write: Callable[[Any], Any]) -> tuple[int, int]:
    """Let `write(file)` write a file atomically; returns its size and CRC-32.

    Raises UserError if it cannot be written; an existing file at `path` is kept.
    """
    try:
        with atomic.replacing(path, durable=True) as part, part.open("wb") as raw:
            file = _Summing(raw)
            try:
                write(file)
            except RuntimeError as error:  # how torch.save reports a failed write
                raise file.error or error from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); what was saved before is kept"
        ) from error
    return file.size, file.crc


class _Summing:
    """A writable file that counts bytes, computes their checksum and remembers errors."""

    def __init__(self, file):
        self.file, self.size, self.crc, self.error = file, 0, 0, None

    def write(self, data) -> int:
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        view = memoryview(data).cast("B")
        self.size += len(view)
        self.crc = zlib.crc32(view, self.crc)
        return len(view)

    def flush(self) -> None:
        self.file.flush()


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


# ---------------------------------------------------------------------------------------------------------------------
# Random number generators


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of every random number generator, in types that `torch.load(weights_only=True)` accepts."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Continue from `random_state()`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
