"""Command line, clocks, medians and output of the benchmarks."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from finallyse.hardware import processor


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A command line with the option common to all benchmarks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="also write the tables to this file")
    return parser


def publish(lines: Sequence[str], output: Path | None) -> None:
    """Print the tables, and write them to a file."""
    print("\n".join(lines))
    if output:
        output.write_text("\n".join(lines) + "\n")


def conditions() -> str:
    """Machine, PyTorch, threads and clock of the measurements."""
    import torch

    clock = "CPU time" if torch.get_num_threads() == 1 else "elapsed time"
    return f"{processor()}, torch {torch.__version__}, {torch.get_num_threads()} threads, {clock}"


def now() -> float:
    """Elapsed seconds; with one PyTorch thread, seconds of CPU time."""
    import torch

    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def medians(repeats: int, **functions: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each function; they run in turn, after a warm-up turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats + 1):
        for name, function in functions.items():
            start = now()
            function()
            times[name].append(now() - start)
    return {name: statistics.median(values[1:]) for name, values in times.items()}
