"""Where the time of a step goes: wall-clock seconds per kind of work, forward and backward passes alike."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor


class Clock:
    """Attributes time to kinds of work. This class does not measure and costs nothing; see `Stopwatch`."""

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        """Context in which work of `kind` is done."""
        yield

    def backward_from(self, kind: str, *tensors: Tensor) -> None:
        """In a backward pass, count the work after the gradient of one of these tensors is known as `kind`."""


class Stopwatch(Clock):
    """Measures the seconds that `read` returns.

    On a GPU it waits for the device at each change: a measured step is slower than an ordinary one.
    """

    def __init__(self, device: torch.device, read: Callable[[], float] = time.perf_counter):
        self.device, self._read = device, read
        self.seconds: dict[str, float] = defaultdict(float)
        self._kind, self._since = "other", self._now()

    @contextlib.contextmanager
    def __call__(self, kind: str) -> Iterator[None]:
        before = self._kind
        self._switch(kind)
        try:
            yield
        finally:
            self._switch(before)

    def backward_from(self, kind: str, *tensors: Tensor) -> None:
        for tensor in tensors:
            if tensor.requires_grad:
                tensor.register_hook(lambda gradient: self._switch(kind))

    def read(self) -> dict[str, float]:
        """Seconds since the last reading, by kind."""
        self._switch(self._kind)
        seconds = dict(self.seconds)
        self.seconds.clear()
        return seconds

    def _switch(self, kind: str) -> None:
        now = self._now()
        self.seconds[self._kind] += now - self._since
        self._kind, self._since = kind, now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return self._read()
