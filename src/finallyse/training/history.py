"""Logging of a run: history.csv and validation.csv, progress lines, Weights & Biases, TensorBoard."""

from __future__ import annotations

import csv
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finallyse.errors import UserError
from finallyse.training.state import write_whole

log = logging.getLogger(__name__)


class Table:
    """A CSV file with a row per step, which a resumed run continues without duplicating or losing rows.

    Args:
        path: the file.
        step: rows beyond this step are removed: those steps will be repeated.
    """

    def __init__(self, path: Path, step: int):
        self.path, self.columns, self._file = path, [], None
        rows = self._read(step) if path.is_file() else []
        self._rewrite(rows)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows; a new column is added to the whole table."""
        new = [key for row in rows for key in row if key not in self.columns]
        if new:
            self.columns += list(dict.fromkeys(new))
            self._rewrite(self._read(None))
        writer = csv.DictWriter(self._file, self.columns, restval="", lineterminator="\n")
        writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
        self._file.flush()

    def sync(self) -> None:
        """Flush appended rows to the disk: a state that is saved next must not be ahead of them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _read(self, last: int | None) -> list[dict[str, str]]:
        """The complete rows up to step `last`."""
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file)
            self.columns = self.columns or list(reader.fieldnames or [])
            rows = [row for row in reader if (row.get("step") or "").isdigit() and None not in row.values()]
        return [row for row in rows if last is None or int(row["step"]) <= last]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        if self._file:
            self._file.close()

        def write(file) -> None:
            lines = (
                [self.columns, *([row.get(key, "") for key in self.columns] for row in rows)] if self.columns else []
            )
            file.write("".join(",".join(line) + "\n" for line in lines).encode())

        write_whole(self.path, write)
        self._file = self.path.open("a", newline="")


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


class Progress:
    """One line per report, suited to log files: `step 1200/80000 1.5% | 3.2 it/s | ETA 6:49:10 | ...`."""

    def __init__(self, step: int, last: int):
        self.last = last
        self._marks = deque([(step, time.perf_counter())], maxlen=20)  # the recent pace, not that of the whole run

    def line(self, step: int, means: Mapping[str, float]) -> str:
        """The line for `step`, with the means of losses and rates since the previous line."""
        now = time.perf_counter()
        first, since = self._marks[0]
        self._marks.append((step, now))
        pace = (step - first) / max(now - since, 1e-9)
        parts = [f"step {step}/{self.last} {100 * step / self.last:.1f}%", f"{pace:.3g} it/s"]
        parts.append(f"ETA {clock_time((self.last - step) / pace)}" if pace > 0 else "ETA ?")
        parts += [f"{name} {value:.4g}" for name, value in means.items()]
        return " | ".join(parts)


def clock_time(seconds: float) -> str:
    """`1d 02:03:04`, or without the days."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}d ' if days else ''}{hours:02d}:{minutes:02d}:{seconds:02d}"


class Writers:
    """Weights & Biases and TensorBoard, if the experiment enables them.

    Args:
        experiment: the resolved experiment.
        folder: everything is written below it, nothing to the home folder.
        wandb_id: id with which a resumed run continues; None: a new one.

    `step` is the one that the run continues after.

    Raises UserError if Weights & Biases cannot be reached or has no key; `offline` and `disabled` need none.
    """

    def __init__(self, experiment: Mapping, folder: Path, wandb_id: str | None, step: int):
        options = experiment["exp"]["wandb"]
        self.wandb_id, self._run, self._events = wandb_id, None, None
        if options["mode"] != "disabled":
            self._run = _start_wandb(options, experiment, folder, wandb_id)
            self.wandb_id = self._run.id
        if experiment["exp"]["tensorboard"]:
            from torch.utils.tensorboard import SummaryWriter  # seconds of imports

            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers of a step."""
        if self._run:
            self._run.log(dict(values), step=step)
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    def audio(self, step: int, name: str, wav: np.ndarray, sample_rate: int) -> None:
        """Log a waveform [T]."""
        if self._run:
            import wandb

            self._run.log({f"audio/{name}": wandb.Audio(wav, sample_rate=sample_rate)}, step=step)
        if self._events:
            self._events.add_audio(f"audio/{name}", wav[None], step, sample_rate)

    def close(self, finished: bool) -> None:
        """Flush and end; `finished` is false where the run will be continued."""
        if self._run:
            self._run.finish(exit_code=0 if finished else 1)
        if self._events:
            self._events.close()


def _start_wandb(options: Mapping, experiment: Mapping, folder: Path, run_id: str | None):
    home = (folder / "wandb").absolute()
    home.mkdir(parents=True, exist_ok=True)
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ[variable] = str(home)
    os.environ["WANDB_MODE"] = options["mode"]
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    try:
        return wandb.init(
            project=options["project"],
            entity=options["entity"],
            name=experiment["exp"]["run_name"],
            id=run_id or secrets.token_hex(4),
            resume="allow",
            mode=options["mode"],
            dir=str(home),
            config=dict(experiment),
        )
    except (wandb.errors.Error, OSError) as error:
        message = " ".join(str(error).split())
        raise UserError(
            f"exp.wandb.mode={options['mode']}: {message.rstrip('.')}; or use exp.wandb.mode=offline or disabled"
        ) from error
