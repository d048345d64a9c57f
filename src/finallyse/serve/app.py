"""What the server answers.

    GET  /              the page (finallyse.page), which can also send recordings here
    GET  /LICENSES.txt  of what the page contains
    POST /enhance       body: a recording in any format; answer: WAV, or FLAC by `Accept: audio/flac` or ?format=flac
    GET  /model         the network, and the limits
    GET  /health        whether the network runs, and how many places are taken

Errors are JSON, {"error": one line}. Nothing else is served: no path is ever turned into the name of a file.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gzip
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from finallyse import __version__
from finallyse.errors import printable
from finallyse.progress import duration
from finallyse.serve.jobs import Full, Jobs, Stopping
from finallyse.serve.worker import Failed, OutOfTime, Refused

CHUNK = 1 << 16
LINGER_S = 10  # for reading the rest of an upload that is refused
SLOWEST = 1 << 14  # bytes per second that a client has to take
FORMATS = {"wav": "audio/wav", "flac": "audio/flac"}
FLAGS = {"": True, "1": True, "true": True, "0": False, "false": False}
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "permissions-policy": "microphone=(self), camera=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclasses.dataclass(frozen=True)
class Limits:
    """max_mb: of an upload.    max_minutes: of a recording.    queue: places.    timeout_s: for an upload, and for
    enhancing."""

    max_mb: float = 200
    max_minutes: float = 60
    queue: int = 32
    timeout_s: float = 600


def build(jobs: Jobs, folder: Path, page: str, licences: str, limits: Limits, names: frozenset[str]) -> ASGIApp:
    """The application.

    Args:
        jobs: its worker has been started.
        folder: for temporary files.
        names: hosts that requests may be addressed to; empty: any.
    """
    worker = jobs.worker

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        running = asyncio.create_task(jobs.run())
        try:
            yield
        finally:
            running.cancel()

    async def model(_request: Request) -> Response:
        return JSONResponse({**worker.described, "limits": dataclasses.asdict(limits), "version": __version__})

    async def health(_request: Request) -> Response:
        state = {"taken": jobs.taken, "places": jobs.places, "busy": jobs.busy, "done": jobs.done}
        return JSONResponse({"status": "ok" if worker.alive else "restarting", **state}, 200 if worker.alive else 503)

    async def enhance(request: Request) -> Response:
        return await _enhance(request, jobs, folder, limits)

    routes = [
        Route("/", _Text(page, "text/html"), methods=["GET"]),
        Route("/LICENSES.txt", _Text(licences, "text/plain"), methods=["GET"]),
        Route("/model", model, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/enhance", enhance, methods=["POST"]),
    ]
    handlers = {HTTPException: _http_error, Exception: _bug}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.router.redirect_slashes = False
    return _Guard(app, names)


# ---------------------------------------------------------------------------------------------------------------------
# POST /enhance


async def _enhance(request: Request, jobs: Jobs, folder: Path, limits: Limits) -> Response:
    suffix = _wanted_format(request)
    accept_cut = _flag(request, "accept-cut")
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise HTTPException(415, "send the recording itself as the body, not a form (curl --data-binary @FILE)")
    most = int(limits.max_mb * 1e6)
    try:
        if int(request.headers.get("content-length", "0")) > most:
            raise _too_large(limits)
    except ValueError:
        raise HTTPException(400, "Content-Length is no number") from None
    held = contextlib.ExitStack()
    try:
        held.enter_context(jobs.place())
        work = Path(held.enter_context(_folder(folder)))
        source, target = work / "upload", work / f"enhanced.{suffix}"
        options = {"accept_cut": accept_cut, "limit_s": 60 * limits.max_minutes}
        with jobs.request():
            await _receive(request, source, most, limits)
            result = await _result(request, jobs, source, target, options, limits)
        source.unlink()
        facts = {"x-audio-seconds": f"{result['seconds']:.3f}", "x-gain": f"{result['gain']:.6g}"}
        _tell(f"enhanced {duration(result['seconds'])} of audio in {result['elapsed']:.1f} s")
        return _File(target, FORMATS[suffix], facts, held.pop_all())
    except Full as error:
        raise HTTPException(503, "the queue is full", {"retry-after": str(error.retry_s)}) from None
    except Stopping:
        raise HTTPException(503, "the server is stopping", {"retry-after": "30"}) from None
    except ClientDisconnect:
        _tell("a client left before its recording was enhanced")
        return Response(status_code=499)  # nobody reads it
    finally:
        held.close()


@contextlib.contextmanager
def _folder(parent: Path) -> Iterator[str]:
    made = tempfile.mkdtemp(dir=parent)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


async def _receive(request: Request, path: Path, most: int, limits: Limits) -> None:
    """Write the body to a file. Raises HTTPException, and ClientDisconnect."""
    size = 0
    try:
        with path.open("wb") as file:
            async with asyncio.timeout(limits.timeout_s):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > most:
                        raise _too_large(limits)
                    file.write(chunk)
    except TimeoutError:
        raise HTTPException(408, f"the upload took more than {limits.timeout_s:g} s") from None
    if not size:
        raise HTTPException(400, "the body is empty; send a recording (curl --data-binary @FILE)")


async def _result(request: Request, jobs: Jobs, source: Path, target: Path, options: dict, limits: Limits) -> dict:
    """Wait for the result of a recording, or for the client to leave."""
    job = jobs.submit(source, target, options)
    leaving = asyncio.create_task(_left(request))
    try:
        await asyncio.wait({job.result, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not job.result.done():
            raise ClientDisconnect
        return job.result.result()
    except Refused as error:
        raise HTTPException(413 if error.too_long else 415, str(error)) from None
    except OutOfTime:
        raise HTTPException(504, f"enhancing took more than {limits.timeout_s:g} s; send a shorter recording") from None
    except Failed as error:
        _tell(f"error: {error}")
        raise HTTPException(500, "enhancing failed; the server's log says why") from None
    finally:
        job.gone.set()
        leaving.cancel()
        if not job.result.done():
            # its files are in use until the worker has noticed
            await asyncio.wait({job.result}, timeout=1)


async def _left(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _wanted_format(request: Request) -> str:
    wanted = request.query_params.get("format")
    if wanted is not None:
        if wanted.lower() not in FORMATS:
            raise HTTPException(400, f"format={printable(wanted)[:40]}: must be wav or flac")
        return wanted.lower()
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "*/*").split(",")]
    for kind in accepted:
        if kind in ("*/*", "audio/*", "audio/wav", "audio/x-wav", "audio/wave", ""):
            return "wav"
        if kind in ("audio/flac", "audio/x-flac"):
            return "flac"
    raise HTTPException(406, "can answer with audio/wav or audio/flac")


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "0").lower()
    if value not in FLAGS:
        raise HTTPException(400, f"{name}={printable(value)[:40]}: must be 1 or 0")
    return FLAGS[value]


def _too_large(limits: Limits) -> HTTPException:
    return HTTPException(413, f"the upload is larger than {limits.max_mb:g} MB, which is the limit")


class _File(Response):
    """Sends a file, and then removes what was needed for it. A client that takes it too slowly is cut off."""

    def __init__(self, path: Path, media_type: str, headers: dict[str, str], held: contextlib.ExitStack):
        super().__init__(b"", media_type=media_type, headers=headers)
        self.path, self.size, self.held = path, path.stat().st_size, held
        self.headers["content-length"] = str(self.size)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.held, self.path.open("rb") as file:
            async with asyncio.timeout(60 + self.size / SLOWEST):
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                while chunk := file.read(CHUNK):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})


# ---------------------------------------------------------------------------------------------------------------------
# Everything else


class _Text:
    """Answers with a text, compressed for clients that can take it so."""

    def __init__(self, text: str, media_type: str):
        self.plain, self.media_type = text.encode(), media_type
        self.compressed = gzip.compress(self.plain, 6, mtime=0)
        self.tag = f'"{hashlib.sha256(self.plain).hexdigest()[:24]}"'

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        headers = {"etag": self.tag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == self.tag:
            response = Response(status_code=304, headers=headers)
        elif "gzip" in request.headers.get("accept-encoding", ""):
            response = Response(self.compressed, headers={**headers, "content-encoding": "gzip"})
            response.headers["content-type"] = f"{self.media_type}; charset=utf-8"
        else:
            response = Response(self.plain, headers=headers, media_type=self.media_type)
        await response(scope, receive, send)


class _Guard:
    """In front of everything: refuses requests that a page of another site has made, reads the rest of uploads that are
    refused, adds the headers of security.

    A browser lets any page send requests to 127.0.0.1; those under another name (DNS rebinding), or from another
    origin, are refused.
    """

    def __init__(self, app: ASGIApp, names: frozenset[str]):
        self.app, self.names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        unread, refused = True, False

        async def reading() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def drain() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while unread:
                        await reading()

        async def guarded(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.body" and refused and not message.get("more_body", False):
                # Most clients read an answer only when they have sent everything, and take a closed connection for it.
                await send({**message, "more_body": True})
                await drain()
                message = {"type": "http.response.body", "body": b""}
            if message["type"] == "http.response.start":
                refused = message["status"] >= 400
                have = {name for name, _ in message["headers"]}
                added = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in have]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        request = Request(scope)
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if self.names and (urlsplit(f"//{host}").hostname or "") not in self.names:
            refusal = JSONResponse({"error": "not addressed by a name of this server; --name adds one"}, 421)
            await refusal(scope, reading, guarded)
        elif origin is not None and urlsplit(origin).netloc != host:
            await JSONResponse({"error": "requests of other sites are refused"}, 403)(scope, reading, guarded)
        else:
            await self.app(scope, reading, guarded)


async def _http_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = {404: "no such page", 405: "not with this method"}.get(error.status_code, error.detail)
    headers = dict(error.headers or {})
    if error.status_code in (408, 413, 503):
        headers["connection"] = "close"  # the rest of the upload may not be read
    return JSONResponse({"error": printable(text)}, error.status_code, headers)


async def _bug(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "the server has a fault; its log says which"}, 500)


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {printable(text)}", file=sys.stderr, flush=True)
