"""Implementation of `finallyse serve`."""

from __future__ import annotations

import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

from finallyse.errors import UserError
from finallyse.inference.engine import choose_engine
from finallyse.inference.files import scratch
from finallyse.page.graph import read_graph
from finallyse.page.write import licences, render
from finallyse.pretrained import checkpoint_file
from finallyse.serve.jobs import Jobs
from finallyse.serve.worker import Network, Worker

LOCAL = ("127.0.0.1", "localhost", "::1")
STOPPING_S = 15  # for the requests that are being answered when the server is to end


def run(
    checkpoint: str | None,
    engine: str,
    host: str,
    port: int,
    names: list[str],
    max_mb: float,
    max_minutes: float,
    queue: int,
    timeout: float,
    **options: Any,
) -> None:
    """Serve until SIGTERM or Ctrl-C. `options`: of `open_engine`."""
    try:
        import uvicorn

        from finallyse.serve.app import Limits, build
        from finallyse.serve.protocol import Protocol
    except ImportError as error:
        raise UserError(f"serving needs {error.name}: pip install 'finallyse[serve]'") from error

    limits = Limits(max_mb, max_minutes, queue, timeout)
    engine = choose_engine(engine, checkpoint)
    trained = checkpoint_file(checkpoint, engine)
    graph = read_graph(None)  # of the page, in the browser
    listening = _listen(host, port)
    # on termination, remove temporary files
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    worker = Worker(Network(trained, engine, options))
    with listening, scratch(Path(tempfile.gettempdir())) as folder:
        try:
            worker.start()
            offered = None
            if trained != checkpoint_file(None, engine):
                offered = {"name": worker.described["name"], "summary": _summary(worker.described, limits)}
            allowed = frozenset() if host not in LOCAL and not names else frozenset([*LOCAL, *names])
            jobs = Jobs(worker, limits.queue, limits.timeout_s)
            app = build(jobs, folder, render(graph, offered), licences(), limits, allowed)
            shown = f"[{host}]" if ":" in host else host
            print(f"http://{shown}:{listening.getsockname()[1]}/ serves {trained.stem}; Ctrl-C ends it", flush=True)
            config = uvicorn.Config(
                app,
                http=Protocol,
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_level="warning",
                access_log=False,
                server_header=False,
                date_header=False,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=STOPPING_S,
            )

            class Server(uvicorn.Server):
                async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                    jobs.stop()
                    await super().shutdown(sockets)

            Server(config).run(sockets=[listening])
        finally:
            worker.stop()


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError if the address cannot be had."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)  # who connects while the network loads, waits
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: {reason}; choose another address or port") from error
    return listening


def _summary(described: dict[str, Any], limits: Any) -> str:
    """The network of the server in a line, for the page."""
    rates = " to ".join(
        f"{rate / 1000:g}" for rate in dict.fromkeys((described["input_rate"], described["output_rate"]))
    )
    return f"{described['name']}, {rates} kHz, up to {limits.max_minutes:g} minutes"
