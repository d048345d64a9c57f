"""Downloading one file: resumed where it stopped, retried, checked, and only then given its name.

While a file is fetched it is `<name>.part`; `<name>.part.json` beside it says which version of which URL it is a part
of, so that a source which changed in between is fetched anew instead of being mixed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from finallyse.audio.io import write_atomically
from finallyse.corpora.archives import inspect_archive, kind_of
from finallyse.corpora.checksums import ChecksumLock, digest
from finallyse.corpora.locations import local_path
from finallyse.corpora.space import megabytes, require_space
from finallyse.errors import UserError
from finallyse.progress import Progress

if TYPE_CHECKING:
    import requests

BLOCK = 1 << 20
TIMEOUT_S = (15, 60)  # connecting, waiting for the next bytes
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers that may be better later
ABSENT = {404, 410}


_OTHERWISE = (
    "the source has changed or sends something else: choose another one with corpora.<name>.base_url, "
    "or set corpora.<name>.verify: lock if the new contents are right"
)


class Missing(UserError):
    """The source does not have the file."""


class _Retry(Exception):
    """An attempt failed in a way that may pass; the server may have said after how many seconds."""

    def __init__(self, reason: str, again_after_s: float = 0.0):
        super().__init__(reason)
        self.again_after_s = again_after_s


@dataclasses.dataclass
class _Version:
    """Which version of a file a part belongs to. total: bytes; validator: strong ETag or date of change."""

    url: str
    total: int | None = None
    validator: str | None = None


def download(
    url: str,
    target: str | Path,
    *,
    checksum: str | None = None,
    size: int | None = None,
    about_size: int | None = None,
    lock: ChecksumLock | None = None,
    attempts: int = 6,
    wait_s: float = 1.0,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> str:
    """Fetch `url` into `target` and return its SHA-256.

    Args:
        url: http(s):// or file:// (see `local_path`).
        target: appears only when the file is complete and checked.
        checksum: published `md5:...`, `sha1:...` or `sha256:...`.
        size: published number of bytes.
        about_size: number of bytes to reckon with where neither the registry nor the server knows.
        lock: where the SHA-256 of a file without a published checksum is recorded, or held against.
        attempts: attempts in a row that brought the file no further, before giving up.
        wait_s: seconds before the second attempt, doubled for each further one up to a minute.
        say: takes lines of progress.

    Raises Missing where the source says that it has no such file, UserError for whatever else the user can mend.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    locked = lock.get(target) if lock and not checksum else None
    for fresh in (False, True):
        if fresh:
            _discard(part)
        resumed = _fetch(url, target, part, checksum, size, about_size, attempts, wait_s, say)
        try:
            sha256 = _verify(url, part, target, checksum, size, locked, lock)
            break
        except UserError as error:
            # A transfer that was resumed, or cut off by the server without a word, may do better in one piece.
            _discard(part)
            if fresh:
                raise
            say(f"{error} -- {'fetched in pieces' if resumed else 'fetched once'}: fetching it once more")
    part.replace(target)
    _meta(part).unlink(missing_ok=True)
    if lock and not checksum and locked is None:
        lock.record(target, sha256)
    say(f"{target}: {megabytes(target.stat().st_size)}, sha256 {sha256}")
    return sha256


def _verify(
    url: str,
    part: Path,
    target: Path,
    checksum: str | None,
    size: int | None,
    locked: str | None,
    lock: ChecksumLock | None,
) -> str:
    """SHA-256 of a complete part, or a UserError for what is wrong with it."""
    found = part.stat().st_size
    if size is not None and found != size:
        raise UserError(f"{url}: has {found} bytes, published are {size}; {_OTHERWISE}")
    if checksum:
        algorithm, _, published = checksum.partition(":")
        actual = digest(part, algorithm)
        if actual != published:
            raise UserError(f"{url}: its {algorithm} is {actual}, published is {published}; {_OTHERWISE}")
    sha256 = digest(part, "sha256")
    if locked is not None and sha256 != locked:
        raise UserError(
            f"{url}: its sha256 is {sha256}, but {lock.path} has {locked} from an earlier download: the source has "
            f"changed; if that is right, delete the line of {lock.key(target)} there"
        )
    if not checksum and kind_of(target.name):
        # Nobody says what the file should be: at least it must be a whole archive.
        inspect_archive(part, kind_of(target.name), name=url, thorough=True, remember_for=target)
    return sha256


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _meta(part).unlink(missing_ok=True)


def _meta(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_version(part: Path) -> _Version | None:
    try:
        return _Version(**json.loads(_meta(part).read_text()))
    except (OSError, ValueError, TypeError):  # absent, or cut off by a crash: the part is then fetched anew
        return None


# ---------------------------------------------------------------------------------------------------------------------
# Fetching


def _fetch(
    url: str,
    target: Path,
    part: Path,
    checksum: str | None,
    size: int | None,
    about_size: int | None,
    attempts: int,
    wait_s: float,
    say: Callable[[str], None],
) -> bool:
    """Bring `part` to completion. Returns whether it consists of several transfers."""
    import tenacity

    source = local_path(url)
    if source is not None:
        _copy(url, Path(source), target, part)
        return False
    fruitless, pieces, furthest = 0, 0, 0

    def count(_state: tenacity.RetryCallState) -> None:
        nonlocal fruitless, furthest
        here = part.stat().st_size if part.exists() else 0
        fruitless = 0 if here > furthest else fruitless + 1
        furthest = max(here, furthest)

    def pause(state: tenacity.RetryCallState) -> float:
        backed_off = min(60.0, wait_s * 2 ** (fruitless - 1)) if fruitless else wait_s / 4
        return max(backed_off, state.outcome.exception().again_after_s)

    def tell(state: tenacity.RetryCallState) -> None:
        say(f"{url}: {state.outcome.exception()}; trying again in {state.next_action.sleep:.2g} s")

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(_Retry),
        after=count,
        stop=lambda _state: fruitless >= attempts,
        wait=pause,
        before_sleep=tell,
        reraise=True,
    )
    try:
        for attempt in retrying:
            with attempt, _http_errors(url, part):
                pieces += 1
                _transfer(url, target, part, checksum, size, about_size, say)
    except _Retry as error:
        here = part.stat().st_size if part.exists() else 0
        raise UserError(
            f"{url}: {error}, {attempts} times in a row; check the network and run the same command again"
            f"{f' (it goes on after the {megabytes(here)} that are here)' if here else ''}, "
            "or name another source in the config: corpora.<name>.base_url"
        ) from error
    return pieces > 1


def _copy(url: str, source: Path, target: Path, part: Path) -> None:
    if not source.is_file():
        raise Missing(f"{url}: no such file: {source}; correct corpora.<name>.base_url in the config")
    size = source.stat().st_size
    require_space(target.parent, size, target.name)
    progress = Progress(target.name, size / 1e6, "MB")
    try:
        with source.open("rb") as reading, part.open("wb") as writing:
            while block := reading.read(BLOCK):
                writing.write(block)
                progress.add(len(block) / 1e6)
    except OSError as error:
        raise UserError(f"{source}: cannot be copied to {target} ({error.strerror or error})") from error
    finally:
        progress.close()


def _transfer(
    url: str,
    target: Path,
    part: Path,
    checksum: str | None,
    size: int | None,
    about_size: int | None,
    say: Callable[[str], None],
) -> None:
    """One HTTP request that begins a part, or continues it; raises _Retry or UserError."""
    import requests
    import urllib3

    version = _read_version(part)
    here = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", "User-Agent": "finallyse"}
    # A part may be continued if the server can say whether it is still the same file, or if a checksum will.
    same = version is not None and version.url == url and version.validator is not None
    if here and (same or (version is not None and checksum)):
        headers["Range"] = f"bytes={here}-"
        if same:
            headers["If-Range"] = version.validator
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code == 416:  # nothing after what is here: it is complete, or not a part of this file
            if here and here in (size, version.total if version else None):
                return
            _discard(part)
            raise _Retry("the server has less than was already here; starting anew")
        _check_status(response, url)
        offset, total = _extent(response, here)
        expected = size if size is not None else version.total if version and offset else None
        if expected is not None and total is not None and total != expected and offset:
            _discard(part)
            raise _Retry(f"it now has {total} bytes instead of {expected}; starting anew")
        if offset:
            say(f"{url}: going on after {megabytes(offset)}")
        elif here:
            say(f"{url}: the server does not continue it; starting anew")
        needed = total or size or about_size or 0
        require_space(target.parent, max(0, needed - offset), target.name)
        write_atomically(
            _meta(part), json.dumps(dataclasses.asdict(_Version(url, total, _validator(response)))).encode()
        )
        progress = Progress(target.name, (needed - offset) / 1e6 if needed else None, "MB")
        try:
            with part.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.truncate()
                # read1 hands out what has arrived; iter_content would lose up to a block where the connection breaks.
                while block := response.raw.read1(BLOCK):
                    file.write(block)
                    progress.add(len(block) / 1e6)
        except urllib3.exceptions.HTTPError as error:
            raise _Retry(_reason(error)) from error
        finally:
            progress.close()
    if total is not None and part.stat().st_size < total:
        raise _Retry(f"the connection closed after {part.stat().st_size} of {total} bytes")


def _check_status(response: requests.Response, url: str) -> None:
    status = response.status_code
    if status in (200, 206):
        return
    said = f"the server answers {status} {response.reason or ''}".rstrip()
    if status in PASSING:
        wait = response.headers.get("Retry-After", "")
        raise _Retry(said, again_after_s=min(float(wait), 120.0) if wait.isdigit() else 0.0)
    kind = Missing if status in ABSENT else UserError
    raise kind(f"{url}: {said}; name another source in the config: corpora.<name>.base_url")


def _extent(response: requests.Response, here: int) -> tuple[int, int | None]:
    """Where the body begins in the file, and how long the whole file is (None where the server does not say)."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not match or int(match[1]) != here:
            raise _Retry(f"the server sent another piece than asked for ({response.headers.get('Content-Range')})")
        return here, None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _validator(response: requests.Response) -> str | None:
    """What If-Range may name: a strong ETag, else the date of change."""
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified")


@contextlib.contextmanager
def _http_errors(url: str, part: Path) -> Iterator[None]:
    """Failures of the network as _Retry; of the disk and of the URL as UserError."""
    import requests

    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
        raise UserError(f"{url}: not a usable URL ({error})") from error
    except requests.RequestException as error:
        if isinstance(error, requests.exceptions.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise UserError(f"{url}: its certificate is not accepted: {_reason(error)}") from error
        raise _Retry(_reason(error)) from error
    except OSError as error:
        raise UserError(f"{part}: cannot be written ({error.strerror or error})") from error


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
