"""Progress of long work on standard error: one line that is rewritten on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO


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
        self.total, self.done, self.started = total, 0.0, time.monotonic()

    def add(self, amount: float) -> None:
        """Count `amount` more."""
        self.done += amount
        if time.monotonic() - self.written >= self.every_s:
            self.written = time.monotonic()
            line = f"{self.label}: {self.describe(self.written - self.started)}"
            self.stream.write(f"\r\x1b[K{line}" if self.terminal else f"{line}\n")
            self.stream.flush()

    def describe(self, elapsed: float) -> str:
        """Description of the work done in `elapsed` seconds."""
        speed = self.done / elapsed if elapsed else 0.0
        amount = f"{self.done:,.0f}" if self.total is None else f"{self.done:,.0f} of {self.total:,.0f}"
        return f"{amount} {self.unit}, {speed:.3g} per s{self.left(speed)}"

    def left(self, speed: float) -> str:
        """The time left at `speed`, if it can be known."""
        return f", {duration((self.total - self.done) / speed)} left" if self.total and speed else ""

    def say(self, line: str) -> None:
        """Write a separate line above the progress line."""
        self.close()
        print(line, file=self.stream, flush=True)

    def close(self) -> None:
        """Remove the progress line."""
        if self.terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()


class AudioProgress(Progress):
    """Counts seconds of audio, and says how the work compares with real time."""

    def __init__(self, label: str = "", total: float | None = None, stream: TextIO | None = None) -> None:
        super().__init__(label, total, "s of audio", stream)

    def describe(self, elapsed: float) -> str:
        """`2:05 of 1:00:00 of audio, real-time factor 0.08, 4:37 left`."""
        amount = duration(self.done) if self.total is None else f"{duration(self.done)} of {duration(self.total)}"
        factor = f", real-time factor {elapsed / self.done:.3g}" if self.done else ""
        return f"{amount} of audio{factor}{self.left(self.done / elapsed if elapsed else 0.0)}"


def duration(seconds: float) -> str:
    """`4 s`, `3:20` (minutes), `2:05:09` (hours)."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
