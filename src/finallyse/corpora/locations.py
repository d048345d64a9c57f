"""Source and destination of each corpus and weight under a configuration, for the workflow's rules.

<resources>/downloads/<corpus>/<file>          as published
<resources>/unpacked/<corpus>/...              the archives' own layout; <corpus>/.unpacked/<archive>.txt when complete
<resources>/weights/<name>/<file>
<resources>/archives/<name>/<file>             what the demo packs, in place of the published files
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from finallyse.audio.folders import MARKERS, files_below
from finallyse.corpora.sources import RemoteFile, Source
from finallyse.errors import UserError, nearest
from finallyse.hashes import sha256

# The status of the files of a collection, in the same folder.
COLLECTION = "collection.csv"
# The place of a simulated corpus among the names of archives.
SIMULATED = "simulated"
# Names of a user's own corpora, which become folders and words of commands.
OWN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
# Options of corpora of one's own only.
OWN_OPTIONS = ("kind", "clean", "noisy", "validation", "test")
# Options that name a local folder; `validation` and `test` may be shares instead.
FOLDERS = ("folder", "clean", "noisy", "validation", "test")


def local_path(url: str) -> str | None:
    """The path of a `file://` URL, None for any other.

    `file:///data/x` and `file://localhost/data/x` are absolute; `file://data/x` is relative to the working folder.
    """
    if not url.startswith("file://"):
        return None
    path = unquote(url.removeprefix("file://"))
    return path.removeprefix("localhost") if path.startswith("localhost/") else path


def _scheme(url: str, option: str) -> str:
    """The scheme of a URL, or a UserError if it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # checked when it is asked for
    except ValueError as error:
        raise UserError(f"{option}: not a URL: {without_password(url)} ({error})") from error
    return parts.scheme


def without_password(url: str) -> str:
    """A URL for messages and records."""
    return re.sub(r"(?<=://)[^/]*@", "", url)


def is_inside(path: str | Path, folder: str | Path) -> bool:
    """Whether `path` is `folder` or below it, links resolved."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


class Locations:
    """Sources under a configuration.

    Args:
        sources: the registry.
        settings: `corpora` of the pipeline's config: name -> options (`finallyse.options.Corpus`).
        resources: folder of downloads and prepared data, as written in rules (no trailing slash).
    """

    def __init__(self, sources: Mapping[str, Source], settings: Mapping[str, Mapping], resources: str):
        self.sources = dict(sources)
        self.settings = {str(name): dict(setting or {}) for name, setting in settings.items()}  # YAML: 2024 is a number
        self.resources = resources
        for name, setting in self.settings.items():
            if name not in self.sources:
                self._check_own(name, setting)
                continue
            for key in OWN_OPTIONS:
                if setting.get(key) is not None:
                    raise UserError(
                        f"config: corpora.{name}.{key}: is for corpora of your own, and {name} is a published one; "
                        f"choose another name for yours, or remove {key} to use a folder in place of {name}"
                    )
            base_url, folder = setting.get("base_url"), setting.get("folder")
            if base_url and self.sources[name].unpack == "simulated":
                raise UserError(
                    f"config: corpora.{name}.base_url: {name} is simulated; use folder for measured responses"
                )
            at = f"config: corpora.{name}.base_url"
            if base_url and _scheme(base_url, at) not in ("http", "https", "file"):
                raise UserError(
                    f"{at}: must begin with https://, http:// or file://, got {without_password(base_url)!r}"
                )
            if folder is not None:
                if not self.sources[name].is_corpus:
                    raise UserError(f"config: corpora.{name}.folder: {name} is a weight file; use base_url: file://...")
                if base_url:
                    raise UserError(f"config: corpora.{name}: give either folder or base_url, not both")
                if not Path(folder).is_dir():
                    raise UserError(f"config: corpora.{name}.folder: no such folder: {folder}")

    def _check_own(self, name: str, setting: Mapping) -> None:
        """Raise a UserError for what is wrong with a corpus of the user's own."""
        at, kind = f"config: corpora.{name}", setting.get("kind")
        if kind is None:
            raise UserError(
                f"{at}: unknown corpus; {nearest(name, self.sources)} (a corpus of your own needs kind: speech, pairs, "
                "noise or response, and folder)"
            )
        if not OWN_NAME.fullmatch(name):
            proposal = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:40] or "mine"
            raise UserError(
                f"{at}: the name of a corpus must be of at most 40 letters, digits, - and _, such as {proposal}"
            )
        for known in self.sources:
            if known.casefold() == name.casefold():
                raise UserError(f"{at}: clashes with the published corpus {known}; choose another name")
        for key in ("base_url", "verify"):
            if setting.get(key) is not None:
                raise UserError(f"{at}.{key}: is for downloads, and {name} is a corpus of your own; remove {key}")
        if kind == "pairs":
            given = [key for key in ("folder", "clean", "noisy") if setting.get(key)]
            if given not in (["folder"], ["clean", "noisy"]):
                raise UserError(
                    f"{at}: pairs need clean and noisy, two folders of recordings with the same names, or instead "
                    f"folder, which has both in it; given is {' and '.join(given) or 'neither'}"
                )
        else:
            for key in ("clean", "noisy"):
                if setting.get(key) is not None:
                    raise UserError(f"{at}.{key}: is for kind: pairs, and {name} is {kind}; give its folder alone")
            if not setting.get("folder"):
                raise UserError(f"{at}.folder: is missing: the folder of the recordings")
        if kind in ("noise", "response") and setting.get("min_bak", 1.0) > 1:
            raise UserError(f"{at}.min_bak: judges speech, and {name} is {kind}; remove it")
        for key in FOLDERS:
            value = setting.get(key)
            if isinstance(value, str) and not Path(value).is_dir():
                share = "; a share is a number such as 0.1" if key in ("validation", "test") else ""
                raise UserError(f"{at}.{key}: no such folder: {value}{share}")
        if len(set(map(os.path.realpath, self.folders(name)))) < len(self.folders(name)):
            raise UserError(f"{at}: names one folder twice; each needs recordings of its own")

    def refuse_outputs_inside(self, results: str, demo_speech: str | None = None) -> None:
        """Raise a UserError if results or resources are inside a folder of recordings, of which they would become part.

        demo_speech: the folder of the demo's recordings, if they are used.
        """
        folders = [(f"corpora.{name}", folder) for name in self.settings for folder in self.folders(name)]
        folders += [("demo_speech", demo_speech)] if demo_speech else []
        for option, folder in folders:
            for key, output in (("results", results), ("resources", self.resources)):
                if is_inside(output, folder):
                    raise UserError(
                        f"config: {key}: {output} is inside {folder} ({option}), where what is written would be taken "
                        f"for recordings; put {key} elsewhere, or the recordings into a folder of their own"
                    )

    def refuse_unknown(self, network: str, manifests: Iterable[str]) -> None:
        """Raise a UserError for a manifest of a corpus that is not known, unless it exists."""
        known = [*(name for name, source in self.sources.items() if source.is_corpus), *self.own]
        for path in manifests:
            name = path.removeprefix(f"{self.resources}/prepared/").split("/")[0]
            if name not in known and not Path(path).exists():
                raise UserError(
                    f"networks.{network}: {path}: no corpus is called {name}; {nearest(name, known)} (one of your own "
                    "must be described in the config, under corpora)"
                )

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

    @property
    def own(self) -> list[str]:
        """The names of the user's own corpora."""
        return [name for name in self.settings if name not in self.sources]

    def own_folder(self, name: str) -> str | None:
        """The folder of a corpus of the user's own, or that replaces a published one, if the config sets one.

        Of pairs in two folders, that of the clean recordings.
        """
        setting = self.settings.get(name, {})
        return setting.get("folder") or setting.get("clean")

    def folders(self, name: str) -> list[str]:
        """All local folders that the config names for a corpus."""
        setting = self.settings.get(name, {})
        named = (setting.get(key) for key in FOLDERS)
        return [value for value in named if isinstance(value, str)]

    def own_options(self, name: str) -> str:
        """How to read a corpus of the user's own: words of the command line of scripts/prepare.py."""
        setting = self.settings[name]
        given = {key: setting.get(key) for key in ("kind", "noisy", "validation", "test")}
        return shlex.join(f"--{key}={value}" for key, value in given.items() if value is not None)

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
        if self.own_folder(name):
            return []
        source = self.source(name)
        if source.unpack == "files":
            return [self.downloaded(name, COLLECTION)]
        return [self.downloaded(name, file.name) for file in source.files]

    def unpacked(self, name: str) -> list[str]:
        """The files that mark a corpus as completely unpacked; none for a user's folder."""
        if self.own_folder(name):
            return []
        source = self.source(name)
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
            (local_path(self.base_url(name)) or "").rstrip("/") == self.archives_folder(name)
            for name in self.settings.keys() & self.sources.keys()
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
        """Changes whenever a local folder of the corpus changes; empty if it has none."""
        return "".join(map(folder_fingerprint, self.folders(name)))


def folder_fingerprint(folder: str | Path) -> str:
    """A digest of the names and sizes of all files below `folder`, and of their contents if it is small (32 MB).

    For a larger folder, modification times are used instead: reading gigabytes at every start would take too long.
    Links to nothing, and pipes, which reading would wait for, do not count.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder of recordings")
    paths = [(name, Path(folder, name)) for name in sorted(files_below(folder))]
    stats = [(name, path, path.stat()) for name, path in paths if path.is_file()]
    small = sum(stat.st_size for _, _, stat in stats) <= 32_000_000
    digest = hashlib.sha256()
    for name, path, stat in stats:
        digest.update(f"{name}\0{stat.st_size}\0".encode("utf-8", "surrogateescape"))
        digest.update(bytes.fromhex(sha256(path)) if small else str(stat.st_mtime_ns).encode())
    return digest.hexdigest()[:16]
