"""Pools of single-threaded worker processes that never outlive the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import connection
from typing import Any

from finallyse import plugins

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # of OpenMP, BLAS and PyTorch


@contextlib.contextmanager
def process_pool(jobs: int, initializer: Callable[..., Any] | None = None, *args: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of `jobs` processes; at the end of the block, tasks that have not started are cancelled.

    The workers leave Ctrl-C to this process, and exit when it exits, even if it is killed.

    Args:
        jobs: number of processes.
        initializer: called with `args` in each worker before its first task.
    """
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    # Spawned, not forked: a fork would inherit the locks of this process's threads. Workers start as tasks arrive.
    context = multiprocessing.get_context("spawn")
    pool = _Pool(jobs, mp_context=context, initializer=_start, initargs=(initializer, args))
    try:
        yield pool
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():  # nobody waits for what they are doing
            process.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        os.environ.update({name: value for name, value in before.items() if value is not None})
        for name in (name for name, value in before.items() if value is None):
            del os.environ[name]


class _Pool(ProcessPoolExecutor):
    """Workers are started without SIGINT, which would otherwise reach them before they can ignore it."""

    def submit(self, *arguments: Any, **options: Any) -> Future:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*arguments, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker() -> None:
    """In a spawned process: leave Ctrl-C to the parent, exit when it exits, and load its plugins."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    plugins.load_inherited()


def _start(initializer: Callable[..., Any] | None, args: tuple) -> None:
    begin_worker()
    if initializer:
        initializer(*args)


def _exit_with_parent() -> None:
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
