"""A local HTTP server with configurable faults: drops connections, answers 503, truncates files."""

from __future__ import annotations

import contextlib
import hashlib
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class Faults:
    """Faults of one path, in this order: 503, `unavailable` times, with Retry-After if it is given; answers with only
    half of the file, `truncated` times; connections dropped after `drop_after` bytes, `drops` times.

    mixes: a range has the ETag of the file as it is, whatever If-Range says.    trickle_s: seconds between bytes."""

    unavailable: int = 0
    retry_after: str | None = None
    mixes: bool = False
    trickle_s: float = 0.0
    truncated: int = 0
    drops: int = 0
    drop_after: int = 30_000


@dataclass
class FragileServer:
    """Serves the files below `root` with Range, If-Range and ETag."""

    root: Path
    url: str = ""
    faults: dict[str, Faults] = field(default_factory=dict)
    everywhere: Faults | None = None  # for all other paths, each with its own copy
    requests: list[tuple[str, str | None, int]] = field(default_factory=list)  # path, Range, status
    etags: bool = True
    ranges: bool = True

    def faults_of(self, path: str) -> Faults:
        if path not in self.faults:
            self.faults[path] = Faults(**vars(self.everywhere)) if self.everywhere else Faults()
        return self.faults[path]

    def statuses(self, path: str) -> list[int]:
        return [status for requested, _, status in self.requests if requested == path]


@contextlib.contextmanager
def serve(root: Path) -> Iterator[FragileServer]:
    """Run a server on a free port of 127.0.0.1 until the block ends."""
    server = FragileServer(root)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_GET(self):
            path = unquote(self.path)
            file = root / path.lstrip("/")
            wanted = self.headers.get("Range")
            with lock:
                faults = server.faults_of(path)
                if not file.is_file():
                    return self.answer(path, wanted, 404)
                if faults.unavailable:
                    faults.unavailable -= 1
                    return self.answer(path, wanted, 503, faults.retry_after)
                content = file.read_bytes()
                etag = f'"{hashlib.md5(content).hexdigest()}"'
                total = len(content)
                if faults.truncated:
                    faults.truncated -= 1
                    content, etag, wanted, total = content[: len(content) // 2], '"half"', None, len(content) // 2
                start = 0
                match = re.fullmatch(r"bytes=(\d+)-", wanted or "")
                if match and server.ranges and (faults.mixes or self.headers.get("If-Range", etag) == etag):
                    start = int(match[1])
                    if start >= total:
                        return self.answer(path, wanted, 416)
                body = content[start:]
                dropped = bool(faults.drops) and len(body) > faults.drop_after
                if dropped:
                    faults.drops -= 1
                    body = body[: faults.drop_after]
                server.requests.append((path, wanted, 206 if start else 200))
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(total - start))
            if server.etags:
                self.send_header("ETag", etag)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
            self.end_headers()
            for piece in [body[at : at + 1] for at in range(len(body))] if faults.trickle_s else [body]:
                self.wfile.write(piece)
                time.sleep(faults.trickle_s)
            if dropped:
                self.wfile.flush()
                self.connection.close()
                self.close_connection = True

        def answer(self, path, wanted, status, retry_after=None):
            server.requests.append((path, wanted, status))
            self.send_response(status)
            if retry_after:
                self.send_header("Retry-After", retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    httpd.handle_error = lambda *_: None  # clients may disconnect
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
