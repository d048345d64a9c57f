"""Logging of a run: history.csv and validation.csv, progress lines, Weights & Biases, TensorBoard."""

from __future__ import annotations

import csv
import dataclasses
import logging
import math
import os
import re
import secrets
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finallyse.errors import UserError, naming
from finallyse.options import Experiment, Train
from finallyse.progress import duration
from finallyse.training.distributed import Group
from finallyse.training.state import StateFolder, write_whole
from finallyse.training.trainers import BALANCE

log = logging.getLogger(__name__)


class TrainingLog:
    """Logs losses and validations. Every process of a group makes the same calls; the leader writes.

    Losses stay on the device until `flush`, the only place that waits for it.

    Args:
        experiment: the experiment.
        folder: folder of history.csv and validation.csv.
        step: the step after which the run continues.
        skipped: decides what happens after a skipped step.
        wandb_id: id of a resumed run.
        group: the processes that train together.
    """

    def __init__(
        self, experiment: Experiment, folder: Path, step: int, skipped: SkippedSteps, wandb_id: str | None, group: Group
    ):
        self.last, self.skipped = experiment.train.steps, skipped
        self.pending: list[tuple[int, list[str], list[str], Tensor, dict]] = []  # losses still on the device
        self.recent: list[dict] = []  # rows of history.csv since the last report
        self.data_wait = 0.0  # seconds since the last report
        self._paces = deque([(step, time.perf_counter())], maxlen=20)  # of the last reports
        self.history = self.validations = self.writers = None
        if group.leader:
            self.history = Table(folder / "history.csv", step)
            self.validations = Table(folder / "validation.csv", step)
            self.writers = Writers(experiment, folder, wandb_id, step)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Leave the time since the last step, spent on something else, out of the next step's `seconds`."""
        self._flushed_at = time.perf_counter()

    def add(self, step: int, items: list[str], losses: Mapping[str, Tensor], rates: Mapping[str, float]) -> None:
        """Log the losses and learning rates after `step` steps, the last of them on `items`."""
        self.pending.append((step, items, list(losses), torch.stack(list(losses.values())), dict(rates)))

    def flush(self) -> None:
        """Copy the losses added since the last call to the host and write them to history.csv.

        Raises:
            UserError: if one of those steps was skipped and training has to stop.
        """
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        # concatenated, since steps of `train.balance_step` have more values, so that there is one copy to wait for
        values = iter(torch.cat([vector for *_, vector, _ in pending]).tolist())
        seconds = (time.perf_counter() - self._flushed_at) / len(pending)
        self.restart_clock()
        rows = []
        try:
            for step, items, names, _, rates in pending:
                rows.append({"step": step, **{name: next(values) for name in names}, **rates, "seconds": seconds})
                if any([rows[-1].pop(name) for name in names if name.startswith("skipped_")]):
                    self.skipped.add(step, items, rows[-1])
        finally:
            self.recent += rows
            if self.history:
                self.history.append(rows)

    def report(self) -> None:
        """Log a progress line and numbers: the latest learning rates and gradients at the waveform, otherwise means.

        The line: `step 1200/80000 1.5% | 3.2 it/s | ETA 6:49:10 | generator 0.31 | ...`.
        """
        self.flush()
        rows, self.recent = self.recent, []
        step = rows[-1]["step"]
        rates = {key: value for key, value in rows[-1].items() if key.startswith("lr_")}
        balance = {key: value for row in rows for key, value in row.items() if key.startswith(BALANCE)}
        means = {}
        for key in (key for key in rows[-1] if key not in {"step", *rates, *balance}):
            finite = [row[key] for row in rows if math.isfinite(row[key])]  # skipped steps are reported separately
            means[key] = sum(finite) / len(finite) if finite else math.nan
        seconds = means.pop("seconds")
        shown = means | rates | {"data_wait": self.data_wait / len(rows)}
        self.data_wait = 0.0
        if self.writers:
            self._log_progress(step, shown)
            scalars = shown | {"seconds": seconds} | balance
            self.writers.scalars(step, {f"train/{key}": value for key, value in scalars.items()})

    def _log_progress(self, step: int, shown: Mapping[str, float]) -> None:
        (first, since), now = self._paces[0], time.perf_counter()
        self._paces.append((step, now))
        pace = (step - first) / max(now - since, 1e-9)
        parts = [f"step {step}/{self.last} {100 * step / self.last:.1f}%", f"{pace:.3g} it/s"]
        parts += [f"ETA {duration((self.last - step) / pace)}" if pace > 0 else "ETA ?"]
        log.info(" | ".join(parts + [f"{name} {value:.4g}" for name, value in shown.items()]))

    def validation(self, row: Mapping[str, float], best: Mapping[str, Mapping]) -> None:
        """Log a validation, and for each metric the best one so far."""
        if self.writers:
            self.validations.append([row])
            step, measured = row["step"], {key: value for key, value in row.items() if key in best}
            shown = " | ".join(
                f"{key} {value:.4g} (best {best[key]['value']:.4g} at {best[key]['step']})"
                for key, value in measured.items()
            )
            log.info("validation after step %d: %s | %d items in %.1f s", step, shown, row["items"], row["seconds"])
            self.writers.scalars(step, {f"validation/{key}": value for key, value in measured.items()})

    def sync(self) -> None:
        """Flush both tables to the disk: a state that is saved next must not be ahead of them."""
        self.history.sync()
        self.validations.sync()

    def close(self, finished: bool) -> None:
        """Close all files; `finished`: the run will not be continued."""
        if self.writers:
            self.history.close()
            self.validations.close()
            self.writers.close(finished)


class SkippedSteps:
    """Counts the steps that were skipped because a value was not finite.

    Args:
        options: `on_nonfinite` and `max_skips`.
        states: the saved states, for the message.
        group: the processes that train together.
        count: steps skipped so far.
    """

    def __init__(self, options: Train, states: StateFolder, group: Group, count: int):
        self.allowed = options.max_skips if options.on_nonfinite == "skip" else 0
        self.states, self.group, self.count = states, group, count

    def add(self, step: int, items: list[str], row: Mapping[str, float]) -> None:
        """Count and log a skipped step.

        Raises:
            UserError: if training has to stop; the message names the values and items.
        """
        bad = [
            key.replace("grad_norm_", "gradient of the ").replace(BALANCE, "gradient at the waveform of ")
            for key, value in row.items()
            if not math.isfinite(value)
        ]
        items = [name for names in self.group.gather(items) for name in names]
        what = f"step {step}: not finite: {', '.join(bad)}; items: {', '.join(items)}"
        if self.count < self.allowed:
            self.count += 1
            log.warning("%s. Update skipped (%d of at most %d)", what, self.count, self.allowed)
            return
        saved = self.states.newest(step) if self.group.leader else None
        raise UserError(
            f"{what}. The update was skipped; "
            + (f"the last good state is {saved}" if saved else "no state was saved before")
            + (f"; {self.count} steps were skipped before (train.max_skips)" if self.count else "")
            + ". Check these items, lower the learning rate, set train.clip or train.on_nonfinite=skip"
        )


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
        with naming(self.path):
            writer.writerows({key: _text(value) for key, value in row.items()} for row in rows)
            self._file.flush()

    def sync(self) -> None:
        """Flush appended rows to the disk: a state that is saved next must not be ahead of them."""
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _read(self, last: int | None) -> list[dict[str, str]]:
        """The complete rows up to step `last`."""
        with self.path.open("rb") as file:
            header, *lines = file.read().splitlines() or [b""]
        columns = [name for name in _cells(header) if name]
        if header and "step" not in columns:
            aside = self.path.with_name(f"{self.path.name}.damaged")
            log.warning("%s: damaged, moved to %s; a new table begins", self.path, aside.name)
            self.path.replace(aside)
            return []
        self.columns = self.columns or columns
        rows = [dict(zip(columns, cells, strict=True)) for cells in map(_cells, lines) if len(cells) == len(columns)]
        rows = [row for row in rows if re.fullmatch(r"\d{1,18}", row["step"])]
        return [row for row in rows if last is None or int(row["step"]) <= last]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        if self._file:
            self._file.close()
        lines = [self.columns, *([row.get(key, "") for key in self.columns] for row in rows)]
        text = "".join(",".join(line) + "\n" for line in lines if line)
        write_whole(self.path, lambda file: file.write(text.encode()))
        self._file = self.path.open("a", newline="")


def _cells(line: bytes) -> list[str]:
    """The cells of a row, which are names or numbers; none of a damaged one."""
    return line.decode().split(",") if line.isascii() else []


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)


class Writers:
    """Weights & Biases and TensorBoard, if the experiment enables them.

    Args:
        experiment: the experiment.
        folder: everything is written below it, nothing to the home folder.
        wandb_id: id with which a resumed run continues; None: a new one.
        step: the step after which the run continues.

    Raises:
        UserError: if Weights & Biases cannot be reached or has no key; `offline` and `disabled` need none.
    """

    def __init__(self, experiment: Experiment, folder: Path, wandb_id: str | None, step: int):
        self.wandb_id, self._run, self._events = wandb_id, None, None
        if experiment.exp.wandb.mode != "disabled":
            self._run = _start_wandb(experiment, folder, wandb_id)
            self.wandb_id = self._run.id
        if experiment.exp.tensorboard:
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


def _start_wandb(experiment: Experiment, folder: Path, run_id: str | None):
    options = experiment.exp.wandb
    home = (folder / "wandb").absolute()
    home.mkdir(parents=True, exist_ok=True)
    for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ[variable] = str(home)
    os.environ["WANDB_MODE"] = options.mode
    os.environ["WANDB_SILENT"] = "true"
    import wandb

    try:
        return wandb.init(
            project=options.project,
            entity=options.entity,
            name=experiment.exp.run_name,
            id=run_id or secrets.token_hex(4),
            resume="allow",
            mode=options.mode,
            dir=str(home),
            config=dataclasses.asdict(experiment),
        )
    except (wandb.errors.Error, OSError) as error:
        message = " ".join(str(error).split())
        raise UserError(
            f"exp.wandb.mode={options.mode}: {message.rstrip('.')}; or use exp.wandb.mode=offline or disabled"
        ) from error
