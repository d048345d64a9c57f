"""Resume state: the files from which a run continues.

    <folder>/step-00001000.pt      everything that the next step depends on
    <folder>/step-00001000.json    written after it: bytes, CRC-32, recipe; without it the .pt does not count
    <folder>/superseded/<key>/     all files of a run of another recipe, whose key it is, under this name

Both files are written under a temporary name, flushed to the disk and renamed, so that a kill leaves either a complete
file or none; the last two states are kept in case the disk loses one. The files of another recipe return when that
recipe does: nothing but newer states of the same recipe ever replaces a state.
"""

from __future__ import annotations

import fcntl
import json
import logging
import random
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import finallyse
from finallyse import atomic
from finallyse.errors import TemporaryError, UserError
from finallyse.models.tensors import load_tensors
from finallyse.recipe import Recipe, describe

log = logging.getLogger(__name__)

FORMAT = 1
OF_ALL_RECIPES = ("finished", "lock", "superseded")  # names in the folder that do not belong to one run


# ---------------------------------------------------------------------------------------------------------------------
# The files


class StateFolder:
    """The resume states of one run.

    Args:
        folder: results/state/<network>.
        recipe: the run's recipe.
        keep: number of states kept.
    """

    def __init__(self, folder: str | Path, recipe: Recipe, keep: int = 2):
        self.folder, self.recipe, self.keep = Path(folder), recipe, keep
        self._damaged: set[Path] = set()  # states that `newest` has found to be so
        self._lock = None

    def lock(self) -> None:
        """Lock the folder for this process until it exits, however it exits.

        Raises TemporaryError if another process trains into it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = (self.folder / "lock").open("a")
        try:
            # owned by this process only: forked loaders do not hold it
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TemporaryError(f"{self.folder}: another process is training into this folder; end it first") from None
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

        No run is moved aside: a start that fails after this leaves everything as it is. Neither states of another
        recipe are used, with a warning that lists the differences, nor damaged ones, with a warning.
        """
        self._reunite()
        records = {path: _read(path) for path in self._records()}
        for path in (path for path in _states(self.folder) if records[path] is None):
            log.warning("%s: damaged, or written by another version: not used", path)
        records = {path: record for path, record in records.items() if record}
        for path in sorted(records, key=lambda path: records[path]["step"], reverse=True):
            if not self._is_own(records[path]):
                continue
            if records[path]["step"] > last:
                log.warning("%s: beyond train.steps=%d, not used", path.with_suffix(".pt"), last)
            elif self._whole(path.with_suffix(".pt"), records[path]):
                return path.with_suffix(".pt")
        others = [record for path, record in records.items() if path.parent == self.folder]
        others = [record for record in others if not self._is_own(record)]
        if others:
            other = max(others, key=lambda record: record["step"])
            log.warning(
                "%s holds the state of another recipe, step %d: %s. It is not resumed but kept in %s until its recipe "
                "returns",
                self.folder,
                other["step"],
                describe(Recipe.from_record(other).differences(self.recipe)),
                self.folder / "superseded" / other["key"],
            )
        return None

    def take_over(self) -> None:
        """Make this run that of the folder, once it is set up: move the files of others aside, and its own back.

        A kill on the way loses nothing: states are found wherever they are, and files of a run follow its states.
        """
        own, others = {self.recipe.key}, {}
        for path in self._records():
            record = _read(path)
            if record and self._is_own(record):
                own.add(record["key"])
            elif record and path.parent == self.folder:
                others[path.stem] = record["key"]
        if others:
            whole = not any((record := _read(path)) and self._is_own(record) for path in _states(self.folder))
            self._supersede(others, whole)
        for aside in self._aside():
            if aside.name in own or any((record := _read(path)) and self._is_own(record) for path in _states(aside)):
                for path in _in_order(aside, states_first=True):
                    _move(path, self.folder / path.name)
                if aside.name != "superseded":
                    aside.rmdir()

    def path(self, step: int) -> Path:
        """The file of the state after `step` steps."""
        return self.folder / f"step-{step:08d}.pt"

    def has(self, step: int) -> bool:
        """Whether the state after `step` steps exists."""
        return self.path(step).with_suffix(".json").is_file()

    @staticmethod
    def read(path: Path) -> dict:
        """Read a state found by `newest`."""
        return load_tensors(path, "saved state")

    def save(self, step: int, state: Mapping[str, Any]) -> Path:
        """Write the state after `step` steps; then remove those before it but the last `keep` - 1 that can be used.

        States beyond `step`, of a run with more steps, are left alone. Raises UserError if the disk is full; previous
        states are kept.
        """
        path = self.path(step)
        path.with_suffix(".json").unlink(missing_ok=True)  # of a damaged state of the same step
        size, crc = write_whole(path, lambda file: torch.save({"format": FORMAT, "step": step, **state}, file))
        self._damaged.discard(path)
        record = {
            "format": FORMAT,
            "step": step,
            "bytes": size,
            "crc32": crc,
            "version": finallyse.__version__,
            **self.recipe.record(),
        }
        text = json.dumps(record, indent=1).encode()
        write_whole(path.with_suffix(".json"), lambda file: file.write(text))
        self._prune(path)
        return path

    def _prune(self, newest: Path) -> None:
        usable = []
        for path in sorted(self.folder.glob("step-*.json"), reverse=True):
            state, record = path.with_suffix(".pt"), _read(path)
            if state > newest or state in self._damaged or not record or not self._is_own(record):
                continue
            if state.is_file() and state.stat().st_size == record["bytes"]:
                usable.append(state)
        for old in sorted({path.with_suffix(".pt") for path in self.folder.glob("step-*")}):
            record = _read(old.with_suffix(".json"))
            if old < usable[: self.keep][-1] and (record is None or self._is_own(record)):
                old.with_suffix(".json").unlink(missing_ok=True)  # first: from here on the .pt does not count
                old.unlink(missing_ok=True)

    def _aside(self) -> list[Path]:
        """The folders of other recipes; the first may hold files itself, from versions that kept one other recipe."""
        aside = self.folder / "superseded"
        return [aside, *(path for path in sorted(aside.iterdir()) if _is_key(path))] if aside.is_dir() else []

    def _records(self) -> list[Path]:
        """The records of all states: of the folder, then of other recipes."""
        return [path for folder in (self.folder, *self._aside()) for path in _states(folder)]

    def _is_own(self, record: Mapping) -> bool:
        """Whether a state was saved by a run of the same recipe."""
        return record["key"] == self.recipe.key or not Recipe.from_record(record).differences(self.recipe)

    def _whole(self, path: Path, record: Mapping[str, Any]) -> bool:
        size = path.stat().st_size if path.is_file() else 0
        if size != record["bytes"]:
            damage = f"{size} bytes instead of {record['bytes']}"
        elif _crc(path) != record["crc32"]:
            damage = "its checksum differs"
        else:
            return True
        log.warning("%s: damaged (%s), falling back to the state before", path, damage)
        self._damaged.add(path)
        return False

    def _reunite(self) -> None:
        """Move each record to its state where a kill between the two moves has parted them."""
        for path in self._records():
            record, name = _read(path), path.with_suffix(".pt").name
            if record is None or path.with_suffix(".pt").is_file():
                continue
            other = self.folder if path.parent != self.folder else self.folder / "superseded" / record["key"]
            if (other / name).is_file() and not (other / path.name).is_file():
                path.replace(other / path.name)

    def _supersede(self, others: Mapping[str, str], whole: bool) -> None:
        """Move states of other recipes aside: name -> key; `whole`: with all files that are not states."""
        newest = others[max(others)]
        for path in _in_order(self.folder, states_first=False):
            key = others.get(path.stem, newest if whole else None)
            if key is not None:
                aside = self.folder / "superseded" / key
                aside.mkdir(parents=True, exist_ok=True)
                _move(path, aside / path.name)


def _states(folder: Path) -> list[Path]:
    """The records of the states in a folder, the newest first."""
    return sorted(folder.glob("step-*.json"), reverse=True)


def _read(path: Path) -> dict | None:
    """The record of a state; None if it is damaged or written by another version."""
    try:
        record = json.loads(path.read_text())
        if record["format"] == FORMAT and {"step", "bytes", "crc32", "key", "definition"} <= record.keys():
            return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _is_key(path: Path) -> bool:
    return path.is_dir() and re.fullmatch("[0-9a-f]{16}", path.name) is not None


def _in_order(folder: Path, states_first: bool) -> list[Path]:
    """The files and folders of one run in `folder`, states first or last, each .pt before its .json."""
    of_run = [path for path in folder.iterdir() if path.name not in OF_ALL_RECIPES and not _is_key(path)]
    states = sorted((path for path in of_run if path.name.startswith("step-")), reverse=True)
    others = [path for path in of_run if path not in states]
    return states + others if states_first else others + states


def _move(source: Path, target: Path) -> None:
    """Rename a file over another, or a folder; into a folder that exists, file by file."""
    if source.is_dir() and target.is_dir():
        for inner in sorted(source.iterdir()):
            _move(inner, target / inner.name)
        source.rmdir()
    else:
        source.replace(target)


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
