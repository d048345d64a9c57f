"""The recipe of a training: what defines its result, and whether two recipes would give the same one.

Every saved state and every checkpoint records its recipe. A training continues from a state, and a finished one is left
alone, where the recorded recipe is that of the experiment:

- Which options count is declared with each (`defines` in :mod:`finallyse.options`).
- Files and folders count by their contents, wherever they are: weights whatever else stands beside them, a checkpoint
  that a stage starts from by its tensors.
- An option that only one of the two knows, because a version of the package in between has added or removed it, does
  not count as long as it has its default value, which is what is done without it.

This module does not need PyTorch, so that `finallyse status` can ask as well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finallyse.options import Experiment, defines_run

# (kind of part, name in its registry) -> argument -> default. Kinds: model, loss, dataset, augmentation.
ArgumentDefaults = Callable[[str, str], Mapping[str, Any]]

LARGE_BYTES = 64 << 20
FEW_FILES = 16  # a folder of at most so many files counts by their contents, a larger one by names and sizes
WEIGHTS = (("model.safetensors", "pytorch_model.bin"), ("config.json",), ("preprocessor_config.json",))
MISSING = "(not set)"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What defines the result of a training.

    Attributes:
        definition: dotted option -> value; of a file or folder a fingerprint of its contents.
        fingerprints: dotted option -> all fingerprints of its file or folder: one in common means the same contents.
        defaults: the dotted options and sections that have their default value.
    """

    definition: Mapping[str, Any]
    fingerprints: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    defaults: Collection[str] = ()

    @property
    def key(self) -> str:
        """A short hash of the definition, for names of files."""
        text = json.dumps(self.definition, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def record(self) -> dict[str, Any]:
        """The recipe as plain values for JSON, from which `from_record` makes it again."""
        return {
            "key": self.key,
            "definition": json.loads(json.dumps(dict(self.definition), default=str)),
            "fingerprints": {key: list(values) for key, values in self.fingerprints.items()},
            "defaults": sorted(self.defaults),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Recipe:
        """The recipe in a record, which older versions wrote without fingerprints and defaults."""
        return cls(record["definition"], record.get("fingerprints", {}), frozenset(record.get("defaults", ())))

    def differences(self, other: Recipe) -> dict[str, tuple[Any, Any]]:
        """Dotted option -> its values here and in `other`, where they differ; empty: the same recipe."""
        return dict(_differences(_nested(self.definition), _nested(other.definition), "", self, other))


def recipe_of(experiment: Experiment, argument_defaults: ArgumentDefaults) -> Recipe:
    """The recipe of an experiment, whose files are read for their fingerprints."""
    paths = {key: fingerprints(path) for key, path in file_paths(experiment).items()}
    return Recipe(definition(experiment, paths), paths, default_options(experiment, argument_defaults))


def recipe_beside(
    experiment: Experiment, argument_defaults: ArgumentDefaults, recorded: Recipe, written: float
) -> Recipe:
    """The recipe of an experiment, to be compared with one `recorded` at the time `written`, with little reading.

    Large files that are no newer than the record are taken to be those of the record, and so are missing ones.
    """
    paths = {}
    for key, value in _defining(experiment):
        known = [recorded.definition.get(key), *recorded.fingerprints.get(key, ())]
        if not _is_path(key, value):
            continue
        if Path(value).exists():
            paths[key] = _quick_fingerprints(Path(value), known, written)
        elif _is_fingerprint(known[0]):
            paths[key] = known
    return Recipe(definition(experiment, paths), paths, default_options(experiment, argument_defaults))


def definition(experiment: Experiment, paths: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """The options that define the run's result: dotted key -> value, with files and folders replaced by fingerprints.

    No schedule depends on the total number of steps, so a longer run continues a shorter one.

    paths: dotted key -> fingerprints of its file or folder; None: read them.
    """
    if paths is None:
        paths = {key: fingerprints(path) for key, path in file_paths(experiment).items()}
    return {key: paths[key][0] if key in paths else value for key, value in sorted(_defining(experiment))}


def choices(experiment: Experiment, argument_defaults: ArgumentDefaults) -> dict[str, Any]:
    """The options that define the run's result and do not have their default values, with paths as they are.

    No file is read, and an option of a newer version at its default changes nothing. The folders `exp.results` and
    `exp.resources` are left open.
    """
    defaults = default_options(experiment, argument_defaults)
    folders = [(f"{experiment.exp.resources}/", "${exp.resources}/"), (f"{experiment.exp.results}/", "${exp.results}/")]
    chosen = {}
    for key, value in _defining(experiment):
        names = key.split(".")
        if any(".".join(names[:count]) in defaults for count in range(1, len(names) + 1)):
            continue
        folder = next((pair for pair in folders if isinstance(value, str) and value.startswith(pair[0])), ("", ""))
        chosen[key] = value.replace(*folder, 1) if folder[0] else value
    return dict(sorted(chosen.items()))


def describe(differences: Mapping[str, tuple[Any, Any]], limit: int = 6) -> str:
    """`train.clip.mode: none -> norm; ...`, for a message."""
    shown = [
        f"{key}: other contents" if _is_fingerprint(old) and _is_fingerprint(new) else f"{key}: {old} -> {new}"
        for key, (old, new) in sorted(differences.items())[:limit]
    ]
    return "; ".join(shown + ([f"and {len(differences) - limit} more"] if len(differences) > limit else []))


# ---------------------------------------------------------------------------------------------------------------------
# Options


def _defining(experiment: Experiment) -> Iterator[tuple[str, Any]]:
    """The dotted key and value of every option that defines the result."""
    for key, value in _flatten(dataclasses.asdict(experiment)):
        if defines_run(key):
            yield key, value


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `_flatten`, but for lists, which become dicts with the positions as keys."""
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        if not defines_run(dotted):  # it did in the version that wrote the record
            continue
        *path, last = dotted.split(".")
        inside = nested
        for key in path:
            inside = inside.setdefault(key, {})
        inside[last] = value
    return nested


def _differences(
    old: Mapping, new: Mapping, prefix: str, of_old: Recipe, of_new: Recipe
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    for key in [*old, *(key for key in new if key not in old)]:
        at = f"{prefix}{key}"
        one, other = old.get(key, MISSING), new.get(key, MISSING)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{at}.", of_old, of_new)
        elif key not in old:
            if at not in of_new.defaults:
                yield from ((name, (MISSING, value)) for name, value in _flatten(other, at))
        elif key not in new:
            if at not in of_old.defaults:
                yield from ((name, (value, MISSING)) for name, value in _flatten(one, at))
        elif one != other and not _same_contents(at, one, other, of_old, of_new):
            yield at, (one, other)


def _same_contents(key: str, one: Any, other: Any, of_one: Recipe, of_other: Recipe) -> bool:
    if not (_is_fingerprint(one) and _is_fingerprint(other)):
        return False
    return bool({one, *of_one.fingerprints.get(key, ())} & {other, *of_other.fingerprints.get(key, ())})


def default_options(experiment: Experiment, argument_defaults: ArgumentDefaults) -> set[str]:
    """The dotted options, sections and arguments of parts that have their default values."""
    found = set()

    def walk(section: Any, prefix: str) -> None:
        for field in dataclasses.fields(section):
            value, at = getattr(section, field.name), f"{prefix}{field.name}"
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if value == default:
                found.add(at)
            if dataclasses.is_dataclass(value):
                walk(value, f"{at}.")

    walk(experiment, "")
    for at, kind, name, options in _parts(experiment):
        for weight in {"weight", "probability"} & options.keys():
            if options[weight] == 1.0:
                found.add(f"{at}.{weight}")
        defaults = argument_defaults(kind, name) if name else {}
        args = options.get("args") or {}
        found |= {f"{at}.args.{key}" for key in args if key in defaults and args[key] == defaults[key]}
    return found


def _parts(experiment: Experiment) -> Iterator[tuple[str, str, str | None, Mapping[str, Any]]]:
    """Where each part is chosen, its kind, its name and the options given there."""
    for at, kind, part in (
        ("generator", "model", experiment.generator),
        ("data.train", "dataset", experiment.data.train),
    ):
        yield at, kind, part.name, {"args": part.args}
        for index, inner in enumerate(part.args.get("augmentations") or []):
            yield f"{at}.args.augmentations.{index}", "augmentation", inner.get("name"), inner
    for at, kind, parts in (
        ("discriminators.parts", "model", experiment.discriminators.parts),
        ("losses.generator", "loss", experiment.losses.generator),
        ("losses.discriminator", "loss", experiment.losses.discriminator),
    ):
        for name, part in parts.items():
            yield f"{at}.{name}", kind, name, part or {}


# ---------------------------------------------------------------------------------------------------------------------
# Contents of files


def file_paths(experiment: Experiment) -> dict[str, str]:
    """The dotted options that define the result and hold the path of a file or folder, with the path."""
    return {key: value for key, value in _defining(experiment) if _is_path(key, value) and Path(value).exists()}


def _is_path(key: str, value: Any) -> bool:
    return isinstance(value, str) and ("/" in value or key.startswith("plugins."))


def newest_change(path: str | Path) -> float:
    """The time of the last change of a file, or of any file in a folder, in seconds since 1970."""
    files = [path for path in Path(path).rglob("*") if path.is_file()] if Path(path).is_dir() else [Path(path)]
    return max((file.stat().st_mtime for file in files), default=0.0)


def _is_fingerprint(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"(sha256|tensors):[0-9a-f]{16}", value) is not None


def fingerprints(path: str | Path) -> list[str]:
    """Fingerprints of a file or folder, the first of which is of every byte: that of the definition.

    The others leave out what does not count: of a folder first hidden files, such as a `.DS_Store`, then everything
    that is not read as weights; of a checkpoint everything but its tensors, such as the text of its config.
    """
    path = Path(path)
    if path.is_file():
        digest = hashlib.sha256()
        _feed(digest, path)
        return [_short(digest), *_of_tensors(path)]
    files = sorted(p for p in path.rglob("*") if p.is_file())
    visible = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    weights = [next((path / n for n in names if (path / n).is_file()), None) for names in WEIGHTS]
    found = [_of_files(path, files)]
    found += [_of_files(path, visible)] if visible != files else []
    read = sorted(p for p in weights if p)
    found += [_of_files(path, read)] if weights[0] and read != visible else []
    return found


def _quick_fingerprints(path: Path, known: Sequence[str], written: float) -> Sequence[str]:
    tensors = list(_of_tensors(path)) if path.is_file() else []
    if tensors and any(value.startswith("tensors:") for value in known if value):
        return tensors
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    large = sum(file.stat().st_size for file in files) > LARGE_BYTES
    return known if large and _is_fingerprint(known[0]) and newest_change(path) <= written else fingerprints(path)


def _of_files(folder: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
        if len(files) <= FEW_FILES:
            _feed(digest, file)
    return _short(digest)


def _of_tensors(path: Path) -> Iterator[str]:
    """A fingerprint of the tensors in a file of `torch.save`, from the checksums that the archive lists."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if re.search(r"/data/\d+$", m.filename)]
    if members:
        text = json.dumps(sorted((m.CRC, m.file_size) for m in members))
        yield f"tensors:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _short(digest: Any) -> str:
    return f"sha256:{digest.hexdigest()[:16]}"


def _feed(digest: Any, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
