"""The process that runs the network of a server, one recording at a time.

A process, not a thread: the server answers while the network computes, and nothing that a recording does to native code
reaches the server. One that has ended is started again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import multiprocessing
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from finallyse.errors import UserError
from finallyse.inference.engine import Engine, open_engine
from finallyse.inference.files import Options, TooLong, enhance_file
from finallyse.processes import begin_worker

START_S = 600  # for loading the largest networks
GRACE_S = 20  # for noticing that a job is cancelled, which a worker does between two windows


class Refused(UserError):
    """The recording cannot be enhanced. `too_long`: since it is too long."""

    def __init__(self, text: str, too_long: bool = False):
        super().__init__(text)
        self.too_long = too_long


class Failed(Exception):
    """Enhancing failed without a fault of the recording."""


class OutOfTime(Exception):
    """Enhancing took longer than allowed."""


class Gone(Exception):
    """Nobody waits for the recording any more."""


@dataclasses.dataclass(frozen=True)
class Network:
    """What the worker loads: a file, what runs it ("torch", "onnx"), and further arguments of `open_engine`."""

    checkpoint: Path
    engine: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


class Worker:
    """The process, as the server sees it. Attributes: `described` (name, rates and card of the network)."""

    def __init__(self, network: Network):
        self.network = network
        self.described: dict[str, Any] = {}
        self._process = self._connection = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.is_alive()

    def start(self) -> None:
        """Start the process and wait until the network is loaded. Raises UserError if it cannot be."""
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_run, args=(other, self.network), daemon=True)
        self._process.start()
        other.close()
        try:
            kind, content = (
                self._connection.recv() if self._connection.poll(START_S) else ("error", "not loaded in time")
            )
        except EOFError:
            kind, content = "error", f"{self.network.checkpoint}: the process that loads the network has ended"
        if kind != "ready":
            self.stop()
            raise UserError(content)
        self.described = content

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._connection.close()
            self._process = self._connection = None

    async def enhance(
        self, source: Path, target: Path, options: dict[str, Any], gone: asyncio.Event, limit_s: float
    ) -> dict[str, float]:
        """Enhance a file. Returns seconds of audio, of time, and the gain that prevented clipping.

        Args:
            options: of `finallyse.inference.files.Options`.
            gone: set when nobody waits for it any more.
            limit_s: time allowed.

        Raises Refused, Failed, OutOfTime, Gone.
        """
        if not self.alive:
            await self._restart()
        try:
            self._connection.send((str(source), str(target), options))
            kind, content = await self._answer(gone, limit_s)
        except (EOFError, OSError) as error:
            await self._restart()
            raise Failed("the process that runs the network ended") from error
        if kind == "done":
            return content
        if kind in ("refused", "too long"):
            raise Refused(content.replace(str(source), "the recording"), kind == "too long")
        raise Failed(content)

    async def _answer(self, gone: asyncio.Event, limit_s: float) -> tuple[str, Any]:
        answer, left = asyncio.create_task(self._receive()), asyncio.create_task(gone.wait())
        try:
            await asyncio.wait({answer, left}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            self._connection.send("cancel")
            await asyncio.wait({answer}, timeout=GRACE_S)
            if not answer.done():  # it computes, or decodes, something that has no end
                answer.cancel()
                await self._restart()
            elif answer.exception():
                await self._restart()
            raise Gone if gone.is_set() else OutOfTime
        finally:
            left.cancel()
            answer.cancel()

    async def _receive(self) -> tuple[str, Any]:
        loop, descriptor = asyncio.get_running_loop(), self._connection.fileno()
        readable = loop.create_future()
        loop.add_reader(descriptor, lambda: readable.done() or readable.set_result(None))
        try:
            await readable
        finally:
            loop.remove_reader(descriptor)
        return self._connection.recv()

    async def _restart(self) -> None:
        self.stop()
        try:
            await asyncio.to_thread(self.start)
        except UserError as error:  # of a checkpoint that is no longer there; the next job tries again
            raise Failed(str(error)) from error


# ---------------------------------------------------------------------------------------------------------------------
# In the process


class _Cancelled(Exception):
    pass


class _Watch:
    """Stands for a progress line: looks between windows whether the server has cancelled the recording."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def begin(self, _total: float) -> None:
        self.add(0)

    def add(self, _amount: float) -> None:
        if self.connection.poll():
            self.connection.recv()
            raise _Cancelled


def _run(connection: Connection, network: Network) -> None:
    begin_worker()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which reaches all processes of a service; the server ends this one
    try:
        engine, described = _load(network)
    except (UserError, OSError) as error:
        connection.send(("error", str(error)))
        return
    connection.send(("ready", described))
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        if order != "cancel":  # which comes too late for a job that is done
            connection.send(_enhance(engine, *order, _Watch(connection)))


def _load(network: Network) -> tuple[Engine, dict[str, Any]]:
    """The engine, and what the server tells about it."""
    if network.engine == "torch":
        from finallyse.inference.enhancer import tune_process
        from finallyse.models.checkpoint import load_checkpoint

        tune_process()
        card = load_checkpoint(network.checkpoint).card
        engine = open_engine(network.checkpoint, "torch", **network.options)
    else:
        engine = open_engine(network.checkpoint, "onnx", **network.options)
        card = engine.about["card"]
    return engine, {
        "name": network.checkpoint.stem,
        "engine": network.engine,
        "input_rate": engine.input_rate,
        "output_rate": engine.output_rate,
        "card": card,
    }


def _enhance(engine: Engine, source: str, target: str, options: dict, watch: _Watch) -> tuple[str, Any]:
    """The answer to an order."""
    started = time.perf_counter()
    try:
        done = enhance_file(engine, source, target, Options(**options), watch)
    except _Cancelled:
        return "cancelled", None
    except TooLong as error:
        return "too long", str(error)
    except UserError as error:
        return "refused", str(error)
    except Exception as error:  # of any kind: the next recording is to be enhanced
        return "failed", f"{type(error).__name__}: {error}"
    return "done", {"seconds": done.seconds, "elapsed": time.perf_counter() - started, "gain": done.gain}
