"""Source and destination of each corpus and weight under a configuration, for the workflow's rules.

<resources>/downloads/<corpus>/<file>          as published
<resources>/unpacked/<corpus>/...              the archives' own layout; <corpus>/.unpacked/<archive>.txt when complete
<resources>/weights/<name>/<file>
<resources>/archives/<name>/<file>             what the demo packs, in place of the published files
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from finallyse.corpora.sources import RemoteFile, Source
from finallyse.errors import UserError, nearest
from finallyse.hashes import sha256

# The status of the files of a collection, in the same folder.
COLLECTION = "collection.csv"
# The place of a simulated corpus among the names of archives.
SIMULATED = "simulated"
# Complete unpackings are marked in this folder of a corpus.
MARKERS = ".unpacked"


def local_path(url: str) -> str | None:
    """The path of a `file://` URL, None for any other.

    `file:///data/x` and `file://localhost/data/x` are absolute; `file://data/x` is relative to the working folder.
    """
    if not url.startswith("file://"):
        return None
    path = unquote(url.removeprefix("file://"))
    return path.removeprefix("localhost") if path.startswith("localhost/") else path


class Locations:
    """Sources under a configuration.

    Args:
        sources: the registry.
        settings: `corpora` of the pipeline's config: name -> {base_url, verify, folder}.
        resources: folder of downloads and prepared data, as written in rules (no trailing slash).
    """

    def __init__(self, sources: Mapping[str, Source], settings: Mapping[str, Mapping], resources: str):
        self.sources = dict(sources)
        self.settings = {name: dict(setting or {}) for name, setting in settings.items()}
        self.resources = resources
        for name, setting in self.settings.items():
            if name not in self.sources:
                raise UserError(f"config: corpora.{name}: unknown corpus; {nearest(name, self.sources)}")
            base_url, folder = setting.get("base_url"), setting.get("folder")
            if base_url and self.sources[name].unpack == "simulated":
                raise UserError(
                    f"config: corpora.{name}.base_url: {name} is simulated; use folder for measured responses"
                )
            if base_url and urlsplit(base_url).scheme not in ("http", "https", "file"):
                raise UserError(
                    f"config: corpora.{name}.base_url: must begin with https://, http:// or file://, got {base_url!r}"
                )
            if folder is not None:
                if not self.sources[name].is_corpus:
                    raise UserError(f"config: corpora.{name}.folder: {name} is a weight file; use base_url: file://...")
                if base_url:
                    raise UserError(f"config: corpora.{name}: give either folder or base_url, not both")
                if not Path(folder).is_dir():
                    raise UserError(f"config: corpora.{name}.folder: no such folder: {folder}")

    def source(self, name: str) -> Source:
        """The source of this name, or a UserError with the nearest."""
        if name not in self.sources:
            raise UserError(f"unknown corpus or weight {name!r}; {nearest(name, self.sources)}")
        return self.sources[name]

    # Where from

    def base_url(self, name: str) -> str:
        """The base URL in effect, without trailing slash."""
        return (self.settings.get(name, {}).get("base_url") or self.source(name).base_url).rstrip("/")

    def url(self, name: str, file: str) -> str:
        """The URL of a file."""
        base_url = self.base_url(name)
        return f"{base_url}/{file if local_path(base_url) is not None else quote(file)}"

    def own_folder(self, name: str) -> str | None:
        """The folder of recordings that replaces the corpus, if the config sets one."""
        return self.settings.get(name, {}).get("folder")

    def local_files(self, name: str, *files: str) -> list[str]:
        """The local files that these (default: all) are copied from if the base URL is `file://`, otherwise none.

        Missing optional files are omitted.
        """
        if local_path(self.base_url(name)) is None:
            return []
        known = {file.name: file for file in self.source(name).files}
        files = files or tuple(known)
        paths = {file: local_path(self.url(name, file)) or "" for file in files}
        return [path for file, path in paths.items() if not known[file].optional or Path(path).exists()]

    def verify(self, name: str) -> str:
        """`published`: the files are the published ones; `lock`: they differ, verified against the first download."""
        return self.settings.get(name, {}).get("verify", "published")

    def expected(self, name: str, file: str) -> RemoteFile:
        """What is known of a file before the download: only its name if the contents are not the published ones."""
        remote = self.source(name).file(file)
        return remote if self.verify(name) == "published" else RemoteFile(remote.name, optional=remote.optional)

    # Where to

    def download_folder(self, name: str) -> str:
        """The folder that a source's files are downloaded to."""
        return f"{self.resources}/{'downloads' if self.source(name).is_corpus else 'weights'}/{name}"

    def folder(self, name: str) -> str:
        """The folder that preparation reads a corpus from."""
        return self.own_folder(name) or f"{self.resources}/unpacked/{name}"

    def downloaded(self, name: str, file: str) -> str:
        """Path of a downloaded file."""
        return f"{self.download_folder(name)}/{file}"

    def downloads(self, name: str) -> list[str]:
        """All downloads of a corpus or weight, as in the rules."""
        source = self.source(name)
        if self.own_folder(name):
            return []
        if source.unpack == "files":
            return [self.downloaded(name, COLLECTION)]
        return [self.downloaded(name, file.name) for file in source.files]

    def unpacked(self, name: str) -> list[str]:
        """The files that mark a corpus as completely unpacked; none for a user's folder."""
        source = self.source(name)
        if self.own_folder(name):
            return []
        archives = {"files": [COLLECTION], "simulated": [SIMULATED]}.get(
            source.unpack, [file.name for file in source.files]
        )
        return [f"{self.resources}/unpacked/{name}/{MARKERS}/{archive}.txt" for archive in archives]

    def archives(self, name: str) -> list[str]:
        """The files that replace the published ones if the demo packs them; optional ones are not created."""
        return [
            f"{self.resources}/archives/{name}/{file.name}" for file in self.source(name).files if not file.optional
        ]

    def packs(self) -> bool:
        """Whether the config fetches anything from the archives that the demo packs."""
        return any(
            (local_path(self.base_url(name)) or "").rstrip("/") == self.archives_folder(name) for name in self.settings
        )

    def archives_folder(self, name: str) -> str:
        """The folder of `archives`."""
        return f"{self.resources}/archives/{name}"

    def min_bak(self, name: str) -> float:
        """The least DNSMOS BAK of the recordings to use; 1: not measured."""
        return self.settings.get(name, {}).get("min_bak", 1.0)

    def accept_cut(self, name: str) -> bool:
        """Whether to take what there is of recordings that are cut short or damaged."""
        return self.settings.get(name, {}).get("accept_cut", False)

    def fingerprint(self, name: str) -> str:
        """Changes whenever a folder that replaces the corpus changes; empty if there is none."""
        folder = self.own_folder(name)
        return folder_fingerprint(folder) if folder else ""


def files_below(folder: str | Path, hidden: bool = False) -> Iterator[str]:
    """Relative paths of all files below `folder` (links followed, hidden files omitted), folder by folder, sorted.

    hidden: search hidden folders too.
    """
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:  # a link back to a folder that was visited
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if hidden or not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(place, name).relative_to(folder).as_posix()


def folder_fingerprint(folder: str | Path) -> str:
    """A digest of the names and sizes of all files below `folder`, and of their contents if it is small (32 MB).

    For a larger folder, modification times are used instead: reading gigabytes at every start would take too long.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder of recordings")
    paths = [(name, Path(folder, name)) for name in sorted(files_below(folder))]
    stats = [(name, path, path.stat()) for name, path in paths if path.exists()]
    small = sum(stat.st_size for _, _, stat in stats) <= 32_000_000
    digest = hashlib.sha256()
    for name, path, stat in stats:
        digest.update(f"{name}\0{stat.st_size}\0".encode("utf-8", "surrogateescape"))
        digest.update(bytes.fromhex(sha256(path)) if small else str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
