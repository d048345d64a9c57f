"""The queue of a server: as many recordings as it holds, in the order in which their uploads were complete."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finallyse.serve.worker import Gone, Worker

LONGEST_RETRY_S = 300


class Full(Exception):
    """There is no place in the queue. `retry_s`: when there may be one."""

    def __init__(self, retry_s: int):
        super().__init__(f"try again in {retry_s} s")
        self.retry_s = retry_s


class Stopping(Exception):
    """The server is about to end."""


@dataclasses.dataclass
class Job:
    """A recording to enhance. `gone` is set when nobody waits for it any more."""

    source: Path
    target: Path
    options: dict[str, Any]
    result: asyncio.Future
    gone: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)


class Jobs:
    """Runs jobs one after the other.

    A place is taken from the first byte of an upload to the last of the answer, so that places bound the disk that is
    used: each has a recording, what is made of it, and nothing in memory.

    Args:
        worker: runs the network.
        places: recordings that are uploaded, wait, are enhanced, or are sent back, at the same time.
        limit_s: time that enhancing one may take.
    """

    def __init__(self, worker: Worker, places: int, limit_s: float):
        self.worker, self.places, self.limit_s = worker, places, limit_s
        self.taken, self.done, self.busy, self.stopping = 0, 0, False, False
        self._requests: set[asyncio.Task] = set()
        self._mean_s = 1.0  # of the last jobs
        self._waiting: asyncio.Queue[Job] = asyncio.Queue()

    def stop(self) -> None:
        """End: cancel the requests that are being received or wait, of which each answers that the server stops."""
        self.stopping = True
        for request in self._requests:
            request.cancel()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Have `stop` cancel the current task within the block, in which this is raised as Stopping."""
        task = asyncio.current_task()
        self._requests.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            task.uncancel()
            raise Stopping from None
        finally:
            self._requests.discard(task)

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """Hold a place. Raises Full if there is none, Stopping if there will be none any more."""
        if self.stopping:
            raise Stopping
        if self.taken >= self.places:
            raise Full(min(LONGEST_RETRY_S, max(1, math.ceil(self._mean_s * self.places / 2))))
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    def submit(self, source: Path, target: Path, options: dict[str, Any]) -> Job:
        """Put a recording at the end of the queue; `result` of what is returned has what the worker returns."""
        job = Job(source, target, options, asyncio.get_running_loop().create_future())
        self._waiting.put_nowait(job)
        return job

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            job = await self._waiting.get()
            if job.gone.is_set():
                continue
            self.busy = True
            started = asyncio.get_running_loop().time()
            try:
                result = await self.worker.enhance(job.source, job.target, job.options, job.gone, self.limit_s)
                self.done += 1
                job.result.set_result(result)
            except Gone:
                job.result.cancel()
            except Exception as error:  # what it is, the request answers, if there still is one
                if job.gone.is_set():
                    job.result.cancel()
                else:
                    job.result.set_exception(error)
            finally:
                self.busy = False
                elapsed = asyncio.get_running_loop().time() - started
                self._mean_s += (elapsed - self._mean_s) / 5
