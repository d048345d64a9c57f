"""Progress of long work: one line that is rewritten on a terminal, a line now and then in a log; times and sizes."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import TextIO

from finallyse.errors import printable


class Progress:
    """Reports how much is done, how fast, and the time left.

    Args:
        label: description of the work; may be changed while it runs.
        total: amount of work; None if unknown.
        unit: unit of the work.
        stream: output stream.
        every_s: seconds between lines if `stream` is not a terminal.
    """

    def __init__(
        self, label: str, total: float | None, unit: str, stream: TextIO | None = None, every_s: float = 20.0
    ) -> None:
        self.label, self.unit = label, unit
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.every_s = 0.2 if self.terminal else every_s
        self.written = time.monotonic()
        self.begin(total)

    def begin(self, total: float | None) -> None:
        """Restart counting."""
        self.total, self.done, self.kept, self.started = total, 0.0, 0.0, time.monotonic()

    def keep(self, amount: float) -> None:
        """Count `amount` that an earlier run has done."""
        self.kept += amount
        self.add(amount)

    def add(self, amount: float) -> None:
        """Count `amount` more."""
        self.done += amount
        if time.monotonic() - self.written >= self.every_s:
            self.written = time.monotonic()
            self.stream.write(f"\r\x1b[K{self.line()}" if self.terminal else f"{self.line()}\n")
            self.stream.flush()

    def line(self) -> str:
        """The progress line."""
        return printable(f"{self.label}: {self.describe(max(time.monotonic() - self.started, 1e-3))}")

    def describe(self, elapsed: float) -> str:
        """Description of the work done in `elapsed` seconds."""
        amount = f"{self.done:,.0f}" if self.total is None else f"{self.done:,.0f} of {self.total:,.0f}"
        kept = f" ({self.kept:,.0f} kept from an earlier run)" if self.kept else ""
        return f"{amount} {self.unit}{kept}, {(self.done - self.kept) / elapsed:.3g} per s{self.left(elapsed)}"

    def left(self, elapsed: float) -> str:
        """The time left, if it is known, at the speed of the `elapsed` seconds."""
        done = self.done - self.kept
        if not done or self.done >= (self.total or 0):
            return ""
        return f", {duration((self.total - self.done) * elapsed / done)} left"

    def say(self, *lines: str) -> None:
        """Write separate lines above the progress line."""
        self.close()
        for line in lines:
            print(printable(line), file=self.stream, flush=True)

    def finish(self) -> None:
        """Write the final count as a separate line."""
        self.say(self.line())

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the progress line."""
        if self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


class AudioProgress(Progress):
    """Counts seconds of audio, and reports the real-time factor."""

    def __init__(self, label: str = "", total: float | None = None, stream: TextIO | None = None) -> None:
        super().__init__(label, total, "s of audio", stream)

    def describe(self, elapsed: float) -> str:
        """`2:05 of 1:00:00 of audio, real-time factor 0.08, 4:37 left`."""
        amount = duration(self.done) if self.total is None else f"{duration(self.done)} of {duration(self.total)}"
        factor = f", real-time factor {elapsed / self.done:.3g}" if self.done else ""
        return f"{amount} of audio{factor}{self.left(elapsed)}"


class NowAndThen:
    """Prints lines from a thread while this process does something else.

    Args:
        lines: gives the lines to print, which may be none. An OSError skips them once: they are read from files that
            others write.
        write: prints one.
        every_s: seconds between calls.
    """

    def __init__(self, lines: Callable[[], Iterable[str]], write: Callable[[str], None], every_s: float):
        self.lines, self.write, self.every_s = lines, write, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)  # it does not keep the process alive
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self.every_s):
            with contextlib.suppress(OSError):
                for line in self.lines():
                    if not self._ended.is_set():
                        self.write(line)

    def stop(self) -> None:
        """Print nothing from now on."""
        self._ended.set()
        self._thread.join(timeout=1)


def duration(seconds: float) -> str:
    """`4 s`, `3:20` (minutes), `2:05:09` (hours)."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def data_size(size: float) -> str:
    """`12.3 MB`, `4.56 GB` (powers of ten)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} bytes"
