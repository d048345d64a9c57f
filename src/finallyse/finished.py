"""Finished trainings: the recipe of a checkpoint, and copies that are kept where another takes its place.

    <folder>/finished/<recipe's key>-<step>.ckpt    a checkpoint that stood in <results>; a link, which takes no space
    <folder>/finished/<recipe's key>-<step>.json    its recipe, written after it

So a network is not trained again after its recipe was changed and changed back, nor because Snakemake has deleted the
checkpoint before a job that turns out to have nothing to do; <folder> is the network's state folder.

This module does not need PyTorch, so that the workflow and `finallyse status` can ask as well.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import logging
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from finallyse import atomic
from finallyse.options import Experiment, from_dict
from finallyse.recipe import Recipe, definition, file_paths, fingerprints, newest_change

log = logging.getLogger(__name__)

FORMAT = "finallyse checkpoint"
CHANGED = "newer than the checkpoint"


class Finished(NamedTuple):
    """A checkpoint of a finished training."""

    path: Path
    step: int
    recipe: Recipe


def read(path: str | Path) -> Finished | None:
    """The step and recipe of a checkpoint; None for a file that is no checkpoint of this package, or damaged.

    Versions that did not record the recipe recorded the experiment: its files are taken to be those that it was
    trained on if they are older than the checkpoint.
    """
    path = Path(path)
    record = path.with_suffix(".json")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if path.parent.name == "finished":
            content = json.loads(record.read_text())
            return Finished(path, content["step"], Recipe.from_record(content["recipe"])) if path.is_file() else None
    content = read_values(path)
    if not content or content.get("format") != FORMAT:
        return None
    try:
        if "recipe" in content:
            recipe = Recipe.from_record(content["recipe"])
        else:
            recipe = _recipe_of_older(content["config"], path.stat().st_mtime)
        return Finished(path, int(content["step"]), recipe)
    except (KeyError, TypeError, ValueError, AttributeError, OSError):  # of a converted or damaged checkpoint
        return None


def find(checkpoint: Path, folder: Path, recipe: Recipe, step: int) -> Path | None:
    """A whole checkpoint of this recipe after `step` steps: `checkpoint`, or one kept in `folder`; None: none."""
    for path in (checkpoint, *kept(folder)):
        found = read(path)
        if found and found.step == step and not found.recipe.differences(recipe) and _is_whole(path):
            return path
    return None


def keep(checkpoint: Path, folder: Path) -> None:
    """Keep a checkpoint that is about to be replaced or deleted, unless it is kept already."""
    found = read(checkpoint)
    if found is None:
        return
    suffix = ".best.ckpt" if checkpoint.name.endswith(".best.ckpt") else ".ckpt"
    copy = folder / "finished" / f"{found.recipe.key}-{found.step:08d}{suffix}"
    if copy.is_file() and copy.with_suffix(".json").is_file():
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    _link(checkpoint, copy)
    record = {"step": found.step, "recipe": found.recipe.record()}
    atomic.write_bytes(copy.with_suffix(".json"), json.dumps(record, indent=1).encode())


def keep_other(checkpoint: Path, folder: Path, recipe: Recipe) -> None:
    """Keep a checkpoint that is about to be replaced if it is of another recipe than `recipe`."""
    found = read(checkpoint)
    if found and found.recipe.differences(recipe):
        keep(checkpoint, folder)


def restore(found: Path, checkpoint: Path, folder: Path) -> None:
    """Put a checkpoint that `find` has found in its place, and that of the best validation beside it."""
    if found != checkpoint:
        keep(checkpoint, folder)
        _link(found, checkpoint)
    best, of_run = checkpoint.with_name(f"{checkpoint.stem}.best.ckpt"), read(checkpoint)
    beside = read(best)
    if of_run is None or (beside and not beside.recipe.differences(of_run.recipe)):
        return
    own = [b for path in kept(folder, best=True) if (b := read(path)) and not b.recipe.differences(of_run.recipe)]
    if own:
        keep(best, folder)
        _link(max(own, key=lambda b: b.step).path, best)


def kept(folder: Path, best: bool = False) -> list[Path]:
    """The checkpoints kept in a state folder, or those of best validations."""
    paths = sorted((folder / "finished").glob("*.ckpt"), reverse=True)
    return [path for path in paths if path.name.endswith(".best.ckpt") == best]


def _link(source: Path, target: Path) -> None:
    """The file at `source` also at `target`, as a copy where the file system has no links."""
    with atomic.replacing(target) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(source, part)
        except OSError:
            shutil.copy2(source, part)


def damage(path: Path) -> str | None:
    """What is not as it was written in a file of `torch.save`, by its checksums and sizes; None: nothing."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                return "compressed, as torch.save never does"
            member = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, RuntimeError, zlib.error, struct.error) as error:
        return str(error)
    return member and f"the checksum of {member} differs"


def _is_whole(path: Path) -> bool:
    """Whether every byte of the archive is as it was written."""
    damaged = damage(path)
    if damaged is not None:
        log.warning("%s: damaged (%s), not used", path, damaged)
    return damaged is None


def _recipe_of_older(config: Mapping[str, Any], written: float) -> Recipe:
    """The recipe in a checkpoint that recorded its experiment only and was written at the time `written`."""
    experiment = from_dict(Experiment, config)
    paths = {
        key: [CHANGED] if newest_change(path) > written else fingerprints(path)
        for key, path in file_paths(experiment).items()
    }
    return Recipe(definition(experiment, paths), paths)


def read_values(path: Path) -> dict[str, Any] | None:
    """The plain values in a file of `torch.save`, its tensors as None; None for another or a damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            values = _Values(io.BytesIO(archive.read(name))).load()
    except (OSError, zipfile.BadZipFile, StopIteration, EOFError, pickle.UnpicklingError, ValueError, TypeError):
        return None
    except (AttributeError, KeyError, IndexError, ImportError, MemoryError):  # how a damaged pickle may fail as well
        return None
    return values if isinstance(values, dict) else None


class _Values(pickle.Unpickler):
    """Reads a pickle of plain values and tensors, the latter as None; executes nothing from it."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" or (module == "torch._utils" and name.startswith("_rebuild_")):
            return _nothing
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a checkpoint")

    def persistent_load(self, pid: Any) -> None:
        return None


def _nothing(*arguments: Any) -> None:
    return None
