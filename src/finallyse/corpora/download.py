"""Downloading one file: resumed, retried and verified before it gets its final name.

During the download it is `<name>.part`; `<name>.part.json` beside it records the URL and version, so that a source that
changed in between is downloaded again instead of being mixed. One process at a time writes a part: others wait, and
take what it has fetched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import email.utils
import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finallyse import atomic
from finallyse.corpora.archives import inspect_archive, kind_of
from finallyse.corpora.checksums import ChecksumLock
from finallyse.corpora.locations import local_path, without_password
from finallyse.corpora.space import require_space
from finallyse.errors import UserError, naming
from finallyse.hashes import digests
from finallyse.progress import Progress, data_size

if TYPE_CHECKING:
    import requests

BLOCK = 1 << 20
TIMEOUT_S = (15, 60)  # connecting, waiting for the next bytes
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP status codes of temporary errors
ABSENT = {404, 410}
LONGEST_WAIT_S = 120.0  # that a server may ask for
SLOW_S, SLOW_BYTES = 120, 120_000  # a transfer of fewer bytes in so many seconds has stalled
MARKUP = re.compile(rb'<[a-z!?]|[\[{]\s*["{\[]', re.IGNORECASE)  # how web pages begin, and errors in XML or JSON
CONTROLS = set(range(32)) - set(b"\t\n\r\f")  # bytes that no text has
TEXTS = {".txt", ".csv", ".tsv", ".md", ".yaml"}  # suffixes of files that may be any text but a web page


class Missing(UserError):
    """The source does not have the file."""


class _Retry(Exception):
    """An attempt failed, possibly temporarily.

    remedy: what to do if the error persists.    again_after_s: delay requested by the server.
    stalled: something has arrived, but too slowly to go on like this for ever.
    """

    def __init__(self, reason: str, remedy: str | None = None, again_after_s: float = 0.0, stalled: bool = False):
        super().__init__(reason)
        self.remedy = remedy
        self.again_after_s = again_after_s
        self.stalled = stalled


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def download(
    url: str,
    target: str | Path,
    *,
    name: str = "<name>",
    checksum: str | None = None,
    size: int | None = None,
    about_size: int | None = None,
    lock: ChecksumLock | None = None,
    attempts: int = 6,
    wait_s: float = 1.0,
    say: Callable[[str], None] = _say,
) -> str:
    """Fetch `url` into `target` and return its SHA-256.

    Args:
        url: http(s):// or file:// (see `local_path`).
        target: created only when the file is complete and verified.
        name: corpus or weight, for messages that name the config option.
        checksum: published `md5:...`, `sha1:...` or `sha256:...`.
        size: published number of bytes.
        about_size: estimated number of bytes, if neither the registry nor the server states it.
        lock: lock file in which the SHA-256 of a file without a published checksum is recorded or verified.
        attempts: number of consecutive attempts without progress before giving up.
        wait_s: seconds before the second attempt, doubled for each further one up to a minute.
        say: called with progress lines.

    Raises Missing if the source reports that there is no such file, UserError for anything else that the user can fix.
    """
    return _Download(url, Path(target), name, checksum, size, about_size, lock, attempts, wait_s, say).run()


@dataclasses.dataclass
class _Version:
    """The version of a file that a part belongs to. total: bytes; validator: strong ETag or modification date."""

    url: str
    total: int | None = None
    validator: str | None = None


@dataclasses.dataclass
class _Download:
    """One download in progress; the arguments of `download`."""

    url: str
    target: Path
    name: str
    checksum: str | None
    size: int | None
    about_size: int | None
    lock: ChecksumLock | None
    attempts: int
    wait_s: float
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.part = self.target.with_name(self.target.name + ".part")
        self.about_part = self.part.with_name(self.part.name + ".json")
        self.source = local_path(self.url)
        self.shown = without_password(self.url)
        self.other_source = f"name another source in the config: corpora.{self.name}.base_url"
        self.other_contents = (
            f"the source has changed or sends something else: {self.other_source}, or say corpora.{self.name}.verify: "
            "lock there if the new contents are right"
        )

    def run(self) -> str:
        self._locked()  # a damaged lock file is told before anything is transferred
        self.target.parent.mkdir(parents=True, exist_ok=True)
        with self._alone() as waited:
            if waited and self.target.is_file():
                with contextlib.suppress(UserError):  # if the other process was asked for something else
                    return self._verify(self.target)
            return self._run()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keep other processes, such as that of a killed workflow, from the part; whether this one had to wait."""
        path = self.part.with_name(self.part.name + ".lock")
        waited = False
        while True:
            file = path.open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    self.say(f"{self.target}: another process is downloading it; waiting for that")
                waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:  # a file system without locks: then nobody can be waited for
                break
            with contextlib.suppress(FileNotFoundError):  # removed by the process that held it
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    break
            file.close()
        try:
            yield waited
        finally:
            path.unlink(missing_ok=True)
            file.close()

    def _locked(self) -> str | None:
        """The SHA-256 in the lock file; None if there is none, or a published checksum counts instead."""
        return self.lock.get(self.target) if self.lock and not self.checksum else None

    def _run(self) -> str:
        self._fetch()
        try:
            sha256 = self._verify(self.part)
        except UserError as error:
            self._discard()
            if self.source is not None:
                raise
            # Mismatched pieces, or a response silently cut short: downloading in one piece may work.
            self.say(f"{error} -- downloading it again")
            self._fetch()
            try:
                sha256 = self._verify(self.part)
            except UserError:
                self._discard()
                raise
        self.part.replace(self.target)
        self.about_part.unlink(missing_ok=True)
        if self.lock and not self.checksum and self._locked() is None:
            self.lock.record(self.target, sha256)
        self.say(f"{self.target}: {data_size(self.target.stat().st_size)}, sha256 {sha256}")
        return sha256

    def _verify(self, file: Path) -> str:
        """SHA-256 of the complete file; raises a UserError that describes any mismatch."""
        found = file.stat().st_size
        if self.size is not None and found != self.size:
            raise UserError(f"{self.shown}: has {found} bytes, published are {self.size}; {self.other_contents}")
        algorithm, _, published = (self.checksum or "sha256:").partition(":")
        sums = digests([file], "sha256", algorithm)
        if self.checksum and sums[algorithm] != published:
            raise UserError(
                f"{self.shown}: its {algorithm} is {sums[algorithm]}, published is {published}; {self.other_contents}"
            )
        sha256 = sums["sha256"]
        locked = self._locked()
        if locked is not None and sha256 != locked:
            raise UserError(
                f"{self.shown}: its sha256 is {sha256}, but {self.lock.path} has {locked} from an earlier download: "
                f"the source has changed; if that is right, delete the line of {self.lock.key(self.target)} there"
            )
        if not self.checksum:
            self._look_at(file)
        return sha256

    def _look_at(self, file: Path) -> None:
        """Raise a UserError if a file without a published checksum is obviously not what its name says."""
        if file.stat().st_size == 0:
            raise UserError(f"{self.shown}: sends an empty file; {self.other_contents}")
        if kind := kind_of(self.target.name):
            inspect_archive(file, kind, name=self.shown, thorough=True, remember_for=self.target)
            return
        suffix = self.target.suffix.lower()
        with file.open("rb") as opened:
            begin = opened.read(512).removeprefix(b"\xef\xbb\xbf").lstrip()
        if suffix == ".json":
            try:
                json.loads(file.read_bytes())
                return
            except ValueError:
                pass
        elif suffix in TEXTS:
            if not re.match(rb"<(!doctype|html)", begin, re.IGNORECASE):
                return
        elif not MARKUP.match(begin) or set(begin) & CONTROLS:
            return
        text = " ".join(begin[:60].decode("utf-8", "replace").split())
        raise UserError(f"{self.shown}: sends something else than {self.target.name}: {text!r}; {self.other_contents}")

    def _here(self) -> int:
        """Bytes of the part."""
        return self.part.stat().st_size if self.part.exists() else 0

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.about_part.unlink(missing_ok=True)

    def _version(self) -> _Version | None:
        try:
            return _Version(**json.loads(self.about_part.read_text()))
        except (OSError, ValueError, TypeError):  # absent, or truncated by a crash: download the part again
            return None

    # Fetching

    def _fetch(self) -> None:
        """Complete the part."""
        if self.source is not None:
            self._copy(Path(self.source))
            return
        fruitless, furthest = 0, 0
        while True:
            try:
                with self._http_errors():
                    self._transfer()
                return
            except _Retry as error:
                here = self._here()
                fruitless = 0 if here > furthest and not error.stalled else fruitless + 1
                furthest = max(here, furthest)
                if fruitless >= self.attempts:
                    raise self._given_up(error) from error
                backed_off = min(60.0, self.wait_s * 2 ** (fruitless - 1)) if fruitless else self.wait_s / 4
                pause = max(backed_off, error.again_after_s)
                self.say(f"{self.shown}: {error}; trying again in {pause:.2g} s")
            time.sleep(pause)

    def _given_up(self, error: _Retry) -> UserError:
        resumes = f" (it resumes after the {data_size(self._here())} that are here)" if self._here() else ""
        remedy = f"check the network and run the same command again{resumes}, or {self.other_source}"
        return UserError(f"{self.shown}: {error}, {self.attempts} times in a row; {error.remedy or remedy}")

    def _copy(self, source: Path) -> None:
        if not source.is_file():
            raise Missing(f"{self.shown}: no such file: {source}; correct corpora.{self.name}.base_url in the config")
        size = source.stat().st_size
        require_space(self.target.parent, size, self.target.name)
        with (
            Progress(self.target.name, size / 1e6, "MB") as progress,
            source.open("rb") as reading,
            naming(self.part),
            self.part.open("wb") as writing,
        ):
            while block := reading.read(BLOCK):
                writing.write(block)
                progress.add(len(block) / 1e6)

    def _transfer(self) -> None:
        """One HTTP request that starts or resumes the part; raises _Retry or UserError."""
        import requests
        import urllib3

        version, here = self._version(), self._here()
        headers = {"Accept-Encoding": "identity", "User-Agent": "finallyse"}
        # A part may be resumed if the server can tell that the file is unchanged, or if a checksum can.
        same = version is not None and version.url == self.shown and version.validator is not None
        if here and (same or (version is not None and self.checksum)):
            headers["Range"] = f"bytes={here}-"
            if same:
                headers["If-Range"] = version.validator
        with requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            if response.status_code == 416:  # no bytes beyond the part: it is complete, or not a part of this file
                if here and here in (self.size, version.total if version else None):
                    return
                self._discard()
                raise _Retry("the server has fewer bytes than were already downloaded; starting over")
            self._check_status(response)
            self._check_redirects(response)
            offset, total = _extent(response, here)
            if self.size is not None and total is not None and total != self.size:
                raise _Retry(f"it has {total} bytes, published are {self.size}", self.other_contents)
            if offset and version.total is not None and total is not None and total != version.total:
                self._discard()
                raise _Retry(f"it now has {total} bytes instead of {version.total}; starting over")
            validator = _validator(response)
            if offset and same and validator not in (None, version.validator):
                self._discard()
                raise _Retry("it is another version than what was already downloaded; starting over")
            if here:
                what = "resuming" if offset else "cannot be resumed, starting over"
                self.say(f"{self.shown}: {what} after {data_size(here)}")
            needed = total or self.size or self.about_size or 0
            require_space(self.target.parent, max(0, needed - offset), self.target.name)
            version = _Version(self.shown, total, validator if validator or not offset else version.validator)
            atomic.write_bytes(self.about_part, json.dumps(dataclasses.asdict(version)).encode())
            megabytes = (needed - offset) / 1e6 if needed else None
            try:
                with (
                    Progress(self.target.name, megabytes, "MB") as progress,
                    naming(self.part),
                    self.part.open("r+b" if offset else "wb") as file,
                ):
                    file.seek(offset)
                    file.truncate()
                    # read1 returns what has arrived; iter_content would lose a block if the connection breaks.
                    since, arrived = time.monotonic(), 0
                    while block := response.raw.read1(BLOCK):
                        file.write(block)
                        progress.add(len(block) / 1e6)
                        arrived += len(block)
                        if time.monotonic() - since > SLOW_S:
                            if arrived < SLOW_BYTES:
                                raise _Retry(f"only {data_size(arrived)} came in {SLOW_S} s", stalled=True)
                            since, arrived = time.monotonic(), 0
            except urllib3.exceptions.HTTPError as error:
                raise _Retry(_reason(error)) from error
        if total is not None and self._here() < total:
            raise _Retry(f"the connection closed after {self._here()} of {total} bytes")

    def _check_status(self, response: requests.Response) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        said = f"the server answers {status} {response.reason or ''}".rstrip()
        if status in PASSING:
            raise _Retry(said, again_after_s=_wait_s(response.headers.get("Retry-After", "")))
        kind = Missing if status in ABSENT else UserError
        raise kind(f"{self.shown}: {said}; {self.other_source}")

    def _check_redirects(self, response: requests.Response) -> None:
        """Raise a UserError if contents that no checksum vouches for came without encryption, unlike what was asked."""
        hops = [hop.url for hop in (*response.history, response)]
        if self.url.lower().startswith("https:") and not self.checksum:
            for hop in hops:
                if not hop.lower().startswith("https:"):
                    raise UserError(
                        f"{self.shown}: leads to {without_password(hop)}, where anyone on the way may change what is "
                        f"sent; {self.other_source}"
                    )

    @contextlib.contextmanager
    def _http_errors(self) -> Iterator[None]:
        """Convert network failures to _Retry, URL errors to UserError."""
        import requests
        from urllib3.exceptions import LocationValueError

        try:
            yield
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, LocationValueError) as error:
            reason = str(error).replace(self.url, self.shown)
            raise UserError(f"{self.shown}: not a usable URL ({reason}); {self.other_source}") from error
        except requests.RequestException as error:
            if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise UserError(f"{self.shown}: its certificate is not accepted: {_reason(error)}") from error
            raise _Retry(_reason(error)) from error


def _extent(response: requests.Response, here: int) -> tuple[int, int | None]:
    """Offset of the body in the file, and the total length of the file (None if the server does not state it)."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != here:
            raise _Retry(f"the server sent another range than requested ({response.headers.get('Content-Range')})")
        return here, None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _wait_s(retry_after: str) -> float:
    """The seconds that a server asks to wait, which it states as a number or as a date."""
    if retry_after.isdigit():
        return min(float(retry_after), LONGEST_WAIT_S)
    try:
        until = email.utils.parsedate_to_datetime(retry_after)
    except ValueError:
        return 0.0
    if until.tzinfo is None:  # a date in UTC that does not say so
        until = until.replace(tzinfo=datetime.UTC)
    return min(max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds()), LONGEST_WAIT_S)


def _validator(response: requests.Response) -> str | None:
    """Value for If-Range: a strong ETag, otherwise the modification date."""
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


def _reason(error: BaseException) -> str:
    """The innermost cause of a failed request in a few words."""
    inner: BaseException = error
    while True:
        nested = [a for a in (*inner.args, getattr(inner, "reason", None)) if isinstance(a, BaseException)]
        if not nested or nested[0] is inner:
            break
        inner = nested[0]
    text = " ".join(str(inner).split())
    text = re.sub(r"^<?urllib3[^>]*>: |^HTTPS?Connection(Pool)?\([^)]*\): ", "", text)
    return f"the connection failed ({text or type(inner).__name__})"
