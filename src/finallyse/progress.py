"""Progress of long work on standard error: one line that is rewritten on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Says how much is done, how fast, and how long the rest takes.

    Args:
        label: what is being done.
        total: amount of work; None where it is unknown.
        unit: what is counted.
        stream: where to write.
        every_s: seconds between lines where `stream` is no terminal.
    """

    def __init__(
        self, label: str, total: float | None, unit: str, stream: TextIO | None = None, every_s: float = 20.0
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self.every_s = 0.2 if self.terminal else every_s
        self.started = self.written = time.monotonic()
        self.done = 0.0

    def add(self, amount: float, note: str = "") -> None:
        """Count `amount` more; `note` is shown at the end of the line."""
        self.done += amount
        if time.monotonic() - self.written >= self.every_s:
            self._write(note)

    def say(self, line: str) -> None:
        """Write a line of its own, above the progress line."""
        self._clear()
        print(line, file=self.stream, flush=True)

    def close(self) -> None:
        """Remove the progress line."""
        self._clear()

    def _clear(self) -> None:
        if self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _write(self, note: str) -> None:
        self.written = time.monotonic()
        elapsed = self.written - self.started
        speed = self.done / elapsed if elapsed else 0.0
        amount = f"{self.done:,.0f}" if self.total is None else f"{self.done:,.0f} of {self.total:,.0f}"
        left = f", {duration((self.total - self.done) / speed)} left" if self.total and speed else ""
        line = f"{self.label}: {amount} {self.unit}, {speed:.3g} per s{left}{', ' + note if note else ''}"
        self.stream.write(f"\r\x1b[K{line}" if self.terminal else f"{line}\n")
        self.stream.flush()


def duration(seconds: float) -> str:
    """`4 s`, `3:20` (minutes), `2:05:09` (hours)."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
