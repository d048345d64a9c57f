"""Short runs beside the real one that show whether and how a training works: `train.debug`.

    overfit   the first batch again and again: losses that a sound network cannot bring down say that something is wrong
    fast      three steps, a validation, a saved state and a checkpoint: all that a training does, in a minute
    profile   ten steps under PyTorch's profiler: where the time goes, as a table and as a trace for a browser

Everything that such a run writes is under `<results>/debug/<kind>`, from which its next run begins anew.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from finallyse.options import Experiment
from finallyse.training.sampling import Order

log = logging.getLogger(__name__)

OVERFIT_STEPS = 300
FAST_STEPS = 3
UNPROFILED, PROFILED = 10, 10  # steps; the first ones allocate memory and choose algorithms
FALLEN = 0.5  # of the loss at the start: a batch that is learnt by heart is far below


def adapted(experiment: Experiment) -> Experiment:
    """The experiment of the debug run that it asks for, or itself."""
    kind, train = experiment.train.debug, experiment.train
    if kind is None:
        return experiment
    results = Path(experiment.exp.results, "debug", kind)
    exp = dataclasses.replace(
        experiment.exp, results=str(results), wandb=dataclasses.replace(experiment.exp.wandb, mode="disabled")
    )
    short = {
        "overfit": {"steps": OVERFIT_STEPS, "val_step": None},
        "fast": {"steps": FAST_STEPS, "val_step": FAST_STEPS, "checkpoint_step": 1, "log_step": 1},
        "profile": {"steps": UNPROFILED + PROFILED + 1, "val_step": None, "balance_step": None},
    }[kind]
    short["steps"] = min(short["steps"], train.steps) if kind == "overfit" else short["steps"]
    short |= {"val_items": 1, "best": None, "log_step": min(train.log_step, max(1, short["steps"] // 10))}
    return dataclasses.replace(experiment, exp=exp, train=dataclasses.replace(train, **short))


def clear(experiment: Experiment) -> None:
    """Remove what the last debug run of this kind and name has left."""
    results, name = Path(experiment.exp.results), experiment.exp.run_name
    shutil.rmtree(results / "state" / name, ignore_errors=True)
    (results / f"{name}.ckpt").unlink(missing_ok=True)


def training_set(experiment: Experiment, dataset):
    """The training set of a run: of `overfit` the items of the first batch, each always degraded in the same way."""
    if experiment.train.debug != "overfit":
        return dataset
    return FirstBatch(dataset, Order(len(dataset), experiment.data.batch_size, experiment.exp.seed).at(0))


class FirstBatch:
    """The items of `keys`, whatever the epoch."""

    def __init__(self, dataset, keys: list):
        self.dataset, self.keys = dataset, keys
        self.input_rate, self.output_rate = dataset.input_rate, dataset.output_rate

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        return self.dataset[self.keys[key[1]]]


@contextlib.contextmanager
def profiler(experiment: Experiment, folder: Path) -> Iterator[Callable[[], None]]:
    """Context that yields what to call after each step; in a `profile` run it writes profile.txt and trace.json."""
    if experiment.train.debug != "profile":
        yield lambda: None
        return

    def write(done: profile) -> None:
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = done.key_averages().table(sort_by=by, row_limit=40)
        (folder / "profile.txt").write_text(f"{PROFILED} steps\n{table}\n")
        done.export_chrome_trace(str(folder / "trace.json"))

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    steps = schedule(wait=UNPROFILED - 1, warmup=1, active=PROFILED, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as running:
        yield running.step


def tell(experiment: Experiment, folder: Path) -> None:
    """Log what a debug run has shown."""
    kind = experiment.train.debug
    if kind == "profile":
        log.info("profile: %s, and %s for chrome://tracing or ui.perfetto.dev", folder / "profile.txt", "trace.json")
    elif kind == "fast":
        log.info("fast: steps, validation, state and checkpoint work; all of it is in %s", experiment.exp.results)
    elif kind == "overfit":
        with (folder / "history.csv").open(newline="") as file:
            losses = [float(row["generator"]) for row in csv.DictReader(file)]
        tenth = max(1, len(losses) // 10)
        first, last = (sum(part) / len(part) for part in (losses[:tenth], losses[-tenth:]))
        log.info("overfit: the generator's loss went from %.4g to %.4g in %d steps", first, last, len(losses))
        if last > FALLEN * first:
            log.warning(
                "overfit: it has not halved on a batch seen %d times; adversarial losses may keep it up; otherwise "
                "look for inputs and targets that do not belong together, a wrong level, or a learning rate too low",
                len(losses),
            )
