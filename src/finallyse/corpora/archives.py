"""Unpacking archives: checked before anything is written, and resumable after an interruption at any time.

An archive is read twice. The first pass checks that it is complete and that its members stay inside the target folder,
and computes the space they need; the list is kept beside the archive (`.<name>.members`). The second pass writes the
members, each under a temporary name first; of a repeated name the last one counts. `<folder>/.unpacked/<name>.members`
records which members are in the folder: unpacking the same archive again resumes where it stopped, a newer one replaces
the files of the older one. A list that is incomplete, or leads outside, is as good as none.
"""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import json
import lzma
import os
import posixpath
import re
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from finallyse import atomic
from finallyse.audio.folders import MARKERS
from finallyse.corpora.space import require_space
from finallyse.errors import UserError, naming
from finallyse.progress import Progress

Kind = Literal["zip", "tar.gz", "tar.bz2", "deb"]
SUFFIXES: dict[str, Kind] = {
    ".zip": "zip",
    ".tar.gz": "tar.gz",
    ".tgz": "tar.gz",
    ".tar.bz2": "tar.bz2",
    ".deb": "deb",
}
BLOCK = 1 << 20
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError)


@dataclasses.dataclass(frozen=True)
class Member:
    """A file of an archive. name: normalised, relative.    size: bytes.    link: name of the member it copies."""

    name: str
    size: int
    link: str | None = None


def kind_of(name: str) -> Kind | None:
    """The kind of archive according to a file's name, None for other files."""
    for suffix, kind in SUFFIXES.items():
        if name.lower().endswith(suffix):
            return kind
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def inspect_archive(
    archive: str | Path,
    kind: Kind,
    *,
    name: str | None = None,
    thorough: bool = False,
    remember_for: Path | None = None,
) -> list[Member]:
    """The files of an archive, after checking that it is complete and that all of them stay inside.

    archive: the file.    name: its name in messages.    thorough: also verify the checksums inside a zip, whose
    contents can be listed without reading them.    remember_for: the final name of the archive, for storing its list.

    Raises UserError for an archive that is truncated, corrupt or malicious.
    """
    archive = Path(archive)
    name = name or str(archive)
    identity = _identity(archive)
    kept = _list_file(remember_for or archive)
    members = _read_list(kept, identity)
    if members is None:
        progress = Progress(f"checking {archive.name}", archive.stat().st_size / 1e6, "MB")
        try:
            with _as_user_error(name, archive):
                members = (
                    _list_zip(archive, name, thorough) if kind == "zip" else _list_tar(archive, kind, name, progress)
                )
        finally:
            progress.close()
        _write_list(kept, identity, members)
    return members


def _identity(archive: Path) -> list[int]:
    found = archive.stat()
    return [found.st_size, found.st_mtime_ns]


def _list_file(archive: Path) -> Path:
    return archive.with_name(f".{archive.name}.members")


def _read_list(path: Path, identity: list[int] | None) -> list[Member] | None:
    """The stored list; None if there is none, if it is damaged, or if it is of another archive."""
    if not path.exists():
        return None
    try:
        head, _, text = path.read_text(encoding="utf-8", errors="surrogateescape").partition("\n")
        *found, digest = json.loads(head)
        if digest != _digest(text) or (identity is not None and found != identity):
            return None
        members = [Member(*json.loads(line)) for line in text.splitlines()]
        for name in [name for member in members for name in (member.name, member.link) if name is not None]:
            if _inside(name, str(path)) != name:
                return None
        return members
    except (ValueError, TypeError, AttributeError, UserError):
        return None


def _write_list(path: Path, identity: list[int], members: list[Member]) -> None:
    """Write a list: what it is of and a digest of the rest, then a line for each member."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(dataclasses.astuple(member))}\n" for member in members)
    head = json.dumps([*identity, _digest(text)])
    atomic.write_bytes(path, f"{head}\n{text}".encode("utf-8", "surrogateescape"))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _list_zip(archive: Path, label: str, thorough: bool) -> list[Member]:
    members = []
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            if not info.filename:
                raise UserError(f"{label}: refused: one of its members has no name")
            if info.is_dir():
                continue
            mode = stat.S_IFMT(info.external_attr >> 16)
            if mode not in (0, stat.S_IFREG):
                raise UserError(f"{label}: refused: member {info.filename!r} is a link or a device")
            if info.flag_bits & 1:
                raise UserError(f"{label}: refused: member {info.filename!r} is encrypted")
            members.append(Member(_file_inside(info.filename, label), info.file_size))
        if not members:
            raise zipfile.BadZipFile("it contains no files")
        if thorough and (bad := file.testzip()):
            raise zipfile.BadZipFile(f"member {bad} is damaged")
    return members


def _list_tar(archive: Path, kind: Kind, label: str, progress: Progress) -> list[Member]:
    members = []
    with archive.open("rb") as raw, _decompressed(raw, kind) as stream:
        position = 0
        with tarfile.open(fileobj=stream, mode="r|") as file:
            for info in file:
                progress.add((raw.tell() - position) / 1e6)
                position = raw.tell()
                if info.isdir():
                    _inside(info.name, label)
                elif info.isreg():
                    members.append(Member(_file_inside(info.name, label), info.size))
                elif info.issym() or info.islnk():
                    start = posixpath.dirname(info.name) if info.issym() else ""
                    if info.linkname.startswith("/"):
                        raise UserError(f"{label}: refused: member {info.name!r} is a link to {info.linkname!r}")
                    target = _inside(posixpath.normpath(posixpath.join(start, info.linkname)), label)
                    members.append(Member(_file_inside(info.name, label), 0, target))
                else:
                    raise UserError(f"{label}: refused: member {info.name!r} is a device")
        while stream.read(BLOCK):  # to the end, where the compressed stream has its integrity check
            pass
    if not members:
        raise tarfile.ReadError("it contains no files")
    return members


@contextlib.contextmanager
def _decompressed(raw: BinaryIO, kind: Kind) -> Iterator[BinaryIO]:
    # tarfile's own "r|gz" does not verify the checksum at the end.
    open_stream = {"tar.gz": gzip.open, "tar.bz2": bz2.open, "deb": _deb_contents}[kind]
    with open_stream(raw) as stream:
        yield _Ending(stream)


class _Ending:
    """A stream that fails soon after its end, where tarfile would look for hours for a member of the size it states."""

    def __init__(self, stream: BinaryIO):
        self._stream, self._empty = stream, 0

    def read(self, size: int = -1) -> bytes:
        content = self._stream.read(size)
        self._empty = 0 if content else self._empty + 1
        if self._empty > 3:  # tarfile reads on once or twice where an archive ends
            raise EOFError("a member is larger than the archive")
        return content


def _deb_contents(raw: BinaryIO) -> BinaryIO:
    """The tar stream inside a Debian package, an ar archive of debian-binary, control.tar.* and data.tar.* (deb(5))."""
    if raw.read(8) != b"!<arch>\n":
        raise tarfile.ReadError("it is not a Debian package")
    while len(header := raw.read(60)) == 60:
        member = header[:16].decode("ascii", "replace").rstrip(" /")
        opener = {"data.tar.xz": lzma.open, "data.tar.gz": gzip.open, "data.tar.bz2": bz2.open}.get(member)
        if opener:
            return opener(raw)
        if member.startswith("data.tar"):
            raise tarfile.ReadError(f"its {member} is compressed in a way that is not supported")
        if not header[48:58].strip().isdigit():
            raise tarfile.ReadError(f"the size of its {member} is no number")
        size = int(header[48:58])
        raw.seek(size + size % 2, os.SEEK_CUR)  # members are padded to even lengths
    raise EOFError("it holds no data.tar")


def _inside(name: str, label: str) -> str:
    """The normalised name of a member, or a UserError if it points outside the folder."""
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    hostile = plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in parts or "\0" in plain
    if hostile or (not parts and plain.strip("./")):
        raise UserError(f"{label}: refused: member {name!r} leads outside the target folder")
    if parts and parts[0] == MARKERS:
        raise UserError(f"{label}: refused: member {name!r} has a name that is reserved for the state of unpacking")
    return "/".join(parts)


def _file_inside(name: str, label: str) -> str:
    """The normalised name of a file."""
    inside = _inside(name, label)
    if not inside:
        raise UserError(f"{label}: refused: member {name!r} has no name of a file")
    return inside


@contextlib.contextmanager
def _as_user_error(label: str, archive: Path) -> Iterator[None]:
    """Convert errors of a damaged archive to a one-line UserError with its name."""
    try:
        with naming(archive):
            yield
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
    except OSError as error:
        if error.errno is not None:  # a failing disk, not a failing archive
            raise
        reason = " ".join(str(error).split())
    else:
        return
    kind = kind_of(archive.name.removesuffix(".part")) or "archive"
    raise UserError(
        f"{label}: not a complete {kind} ({reason}); delete it (and its line in checksums.lock, if it has one) and run "
        "the same command again to download it again"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Writing


def unpack(
    archive: str | Path,
    folder: str | Path,
    *,
    kind: Kind | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> tuple[int, int]:
    """Unpack an archive into a folder, which several archives may share. Returns the number of files and of bytes.

    Links inside the archive become copies. Raises UserError for an archive that is damaged or malicious, before
    anything is written, and if there is too little space.
    """
    archive, folder = Path(archive), Path(folder)
    kind = kind or kind_of(archive.name)
    if kind is None:
        raise UserError(f"{archive}: not an archive that can be unpacked; known: {', '.join(SUFFIXES)}")
    if not archive.is_file():
        raise UserError(f"{archive}: no such archive")
    listed = inspect_archive(archive, kind)
    times = Counter(member.name for member in listed if member.link is None)  # tar appends newer versions
    members = list({member.name: member for member in listed}.values())
    state = folder / MARKERS / f"{archive.name}.members"
    same = _read_list(state, _identity(archive)) is not None
    if not same:
        _remove_older(state, folder, members)
        _write_list(state, _identity(archive), members)
    done = {member.name for member in members if same and _is_there(folder, member)}
    missing = sum(member.size for member in members if member.name not in done)
    require_space(folder, missing, f"unpacking {archive.name}")
    if done:
        say(f"{archive.name}: {len(done)} of {len(members)} files are already unpacked")
    progress = Progress(f"unpacking {archive.name}", missing / 1e6, "MB")
    sizes = {member.name: member.size for member in members if member.link is None}
    try:
        with _as_user_error(str(archive), archive):
            for name, content in _contents(archive, kind):
                times[name] -= 1
                if name in sizes and name not in done and not times[name]:
                    _write_member(folder, name, sizes[name], content, progress)
    finally:
        progress.close()
    for member in members:
        if member.link is not None:
            _copy_link(archive, folder, member)
    total = sum(member.size for member in members)
    say(f"{archive.name}: {len(members)} files, {total / 1e6:,.1f} MB, in {folder}")
    return len(members), total


def _is_there(folder: Path, member: Member) -> bool:
    path = folder / member.name
    return member.link is None and path.is_file() and path.stat().st_size == member.size


def _remove_older(state: Path, folder: Path, members: list[Member]) -> None:
    """Remove the files of an older archive of this name from the folder."""
    for member in _read_list(state, None) or []:
        (folder / member.name).unlink(missing_ok=True)


def _contents(archive: Path, kind: Kind) -> Iterator[tuple[str, BinaryIO]]:
    """Name and content of every file that is not a link, in the archive's order."""
    if kind == "zip":
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                if not info.is_dir():
                    with file.open(info) as content:
                        yield _inside(info.filename, str(archive)), content
        return
    with archive.open("rb") as raw, _decompressed(raw, kind) as stream, tarfile.open(fileobj=stream, mode="r|") as file:
        for info in file:
            if info.isreg():
                yield _inside(info.name, str(archive)), file.extractfile(info)


def _write_member(folder: Path, name: str, size: int, content: BinaryIO, progress: Progress) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with atomic.replacing(path) as part, part.open("wb") as writing:
        while block := content.read(BLOCK):
            writing.write(block)
            written += len(block)
            progress.add(len(block) / 1e6)
        if written != size:
            raise EOFError(f"member {name} has {written} bytes instead of {size}")


def _copy_link(archive: Path, folder: Path, member: Member) -> None:
    source, path = folder / member.link, folder / member.name
    if not source.is_file():
        raise UserError(f"{archive}: its member {member.name!r} is a link to {member.link!r}, which is not in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as part:
        shutil.copyfile(source, part)


def unpack_collection(folder: str | Path, files: list[Path], name: str) -> int:
    """Place files in `folder` under their own names, replacing those of an earlier collection.

    Uses hard links if possible, otherwise copies. Returns the number of files.
    """
    folder = Path(folder)
    state = folder / MARKERS / f"{name}.members"
    members = [Member(file.name, file.stat().st_size) for file in files]
    for member in _read_list(state, None) or []:
        (folder / member.name).unlink(missing_ok=True)
    _write_list(state, [], members)
    for file in files:
        path = folder / file.name
        with atomic.replacing(path) as part:
            part.unlink(missing_ok=True)
            try:
                os.link(file, part)
            except OSError:  # another disk, or one without links
                shutil.copyfile(file, part)
    return len(files)
