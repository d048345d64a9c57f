"""The registry of every corpus and weight file that is downloaded: resources/datasets.yaml, read and checked."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from finallyse.errors import UserError, nearest
from finallyse.project import project_file

REGISTRY = Path("resources/datasets.yaml")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a tenth of the time, where PyYAML was built with it
CHECKSUM = re.compile(r"md5:[0-9a-f]{32}|sha1:[0-9a-f]{40}|sha256:[0-9a-f]{64}")

Unpack = Literal["zip", "tar.gz", "tar.bz2", "deb", "files", "simulated"]


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """One file of a source.

    name: path below the source's base URL.    bytes: exact size.    about_bytes: size for planning, if the exact one is
    not known.    checksum: `md5:...`, `sha1:...` or `sha256:...`, if the source publishes one.
    optional: may be missing at the source.
    """

    name: str
    bytes: int | None = None
    about_bytes: int | None = None
    checksum: str | None = None
    optional: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus or a set of weights: source, contents, purpose and licence.

    unpack: format of a corpus' archives; `files`: many small files instead of archives, fetched together; `simulated`:
    computed by the workflow, without any files; None: weights, used as they are.
    sample_rate: Hz.    layout: a path inside, as an example.
    attribution: whom the licence asks to name, and where single files' licences are listed.
    """

    name: str
    title: str
    homepage: str
    used_for: list[str]
    licence: str
    citation: str
    base_url: str = ""
    files: list[RemoteFile] = dataclasses.field(default_factory=list)
    attribution: str | None = None
    unpack: Unpack | None = None
    sample_rate: int | None = None
    layout: str | None = None
    note: str | None = None

    @property
    def is_corpus(self) -> bool:
        return self.unpack is not None

    def file(self, name: str) -> RemoteFile:
        """The file of this name, or a UserError with the nearest."""
        for file in self.files:
            if file.name == name:
                return file
        raise UserError(f"{self.name} has no file {name!r}; {nearest(name, [f.name for f in self.files])}")


def read_sources(path: str | Path = REGISTRY) -> dict[str, Source]:
    """The registry as name -> source; an invalid entry raises a UserError with the file and the key."""
    path = project_file(path)
    try:
        tables = yaml.load(path.read_text(encoding="utf-8"), LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tables, dict) or set(tables) != {"corpora", "weights"}:
        raise UserError(f"{path}: must contain exactly the two tables `corpora` and `weights`")
    sources: dict[str, Source] = {}
    for kind, table in tables.items():
        if not isinstance(table, dict):
            raise UserError(f"{path}: {kind}: must be a table of name: entry, got {table!r}")
        for name, entry in table.items():
            at = f"{path}: {kind}.{name}"
            if name in sources:
                raise UserError(f"{at}: the name is used twice")
            if isinstance(entry, dict) and "name" in entry:
                raise UserError(f"{at}.name: unknown key; the entry's name is the key it stands under")
            source = _build(Source, {"name": name, **entry} if isinstance(entry, dict) else entry, at)
            _check(source, kind, at)
            sources[name] = source
    return sources


def _check(source: Source, kind: str, at: str) -> None:
    if source.is_corpus != (kind == "corpora"):
        raise UserError(f"{at}.unpack: {'is required' if kind == 'corpora' else 'weights are used as they are'}")
    if source.unpack == "simulated":
        if source.files or source.base_url:
            raise UserError(f"{at}: is simulated, so it has neither files nor a base_url")
        return
    if not source.files:
        raise UserError(f"{at}.files: is empty")
    if not re.match(r"(https?|file)://", source.base_url):
        raise UserError(f"{at}.base_url: must begin with https://, http:// or file://, got {source.base_url!r}")
    names = [file.name for file in source.files]
    for position, file in enumerate(source.files):
        key = f"{at}.files[{position}]"
        if names.count(file.name) > 1:
            raise UserError(f"{key}.name: {file.name!r} is listed twice")
        if PurePosixPath(file.name).name != file.name or file.name in ("", ".", ".."):
            raise UserError(f"{key}.name: must be the name of a file without folders, got {file.name!r}")
        if file.checksum is not None and not CHECKSUM.fullmatch(file.checksum):
            raise UserError(f"{key}.checksum: must be md5:, sha1: or sha256: and hex digits, got {file.checksum!r}")
        if file.bytes is not None and file.about_bytes is not None:
            raise UserError(f"{key}.about_bytes: the exact size is given too; keep one of them")
        if any(size is not None and size <= 0 for size in (file.bytes, file.about_bytes)):
            raise UserError(f"{key}: a size must be positive")
        if file.optional and source.unpack != "files":
            raise UserError(f"{key}.optional: only files that are not archives can be left out")


def _build(cls: type, entry: Any, at: str) -> Any:
    """An instance of dataclass `cls` from a table, with every key and type checked."""
    if not isinstance(entry, dict):
        raise UserError(f"{at}: must be a table, got {entry!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in entry:
        if key not in fields:
            raise UserError(f"{at}.{key}: unknown key; {nearest(key, [name for name in fields if name != 'name'])}")
    for key, field in fields.items():
        if key not in entry and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{at}.{key}: is required")
    return cls(**{key: _value(hints[key], value, f"{at}.{key}") for key, value in entry.items()})


def _value(hint: Any, value: Any, at: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is list:
        if not isinstance(value, list):
            raise UserError(f"{at}: must be a list, got {value!r}")
        return [_value(arguments[0], item, f"{at}[{position}]") for position, item in enumerate(value)]
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, at)
    kinds = arguments if origin in (typing.Union, types.UnionType) else (hint,)
    for kind in kinds:
        choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else None
        if choices and value in choices:
            return value
        # YAML's true is an int to Python
        if not choices and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value.strip() if isinstance(value, str) else value
    wanted = [
        ", ".join(map(str, typing.get_args(kind))) if typing.get_origin(kind) is Literal else kind.__name__
        for kind in kinds
        if kind is not types.NoneType
    ]
    raise UserError(f"{at}: must be {' or '.join(wanted)}, got {value!r}")
