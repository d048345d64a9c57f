"""The training loop of all trainers: resumes from a saved state, logs, validates, saves, stops on a signal."""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from finallyse.errors import UserError
from finallyse.hardware import keep_freed_memory
from finallyse.training import trainers_registry
from finallyse.training.base import BALANCE, BaseTrainer
from finallyse.training.batches import Batch, Batches
from finallyse.training.distributed import Group, choose_device
from finallyse.training.history import Progress, Table, Writers
from finallyse.training.sampling import Order
from finallyse.training.state import StateFolder, definition, random_state, seed_everything, set_random_state
from finallyse.training.validation import Validation

log = logging.getLogger(__name__)

TRY_AGAIN = 75  # exit status (EX_TEMPFAIL) of a run that saved and stopped before its end: restart it


def train(experiment: DictConfig | Mapping) -> int:
    """Train one network, from its saved state if there is one; returns the process's exit status.

    0: the checkpoint `<results>/<run_name>.ckpt` is written (`<run_name>.best.ckpt`, if `train.best` is set, exists
    from the first validation on). 75: stopped by a signal or `train.stop_after` and saved, to be continued.
    Raises UserError for anything that the user can fix.
    """
    if isinstance(experiment, DictConfig):
        experiment = OmegaConf.to_container(experiment, resolve=True)
    device = choose_device(experiment["exp"]["device"])
    prepare_pytorch(experiment, device)
    group = Group(device)
    try:
        with Run(experiment, group) as run:
            for step in run.steps():
                batch = run.batch(step)
                run.trainer.begin(step, run.order.epoch(step))
                losses = run.trainer.train_step(batch)
                run.after(step + 1, batch, losses)
            return run.finish()
    finally:
        group.close()


class Run:
    """One run of one experiment: its parts, and everything around a step.

    Steps are counted from 0 while they are made, and from 1 once they have been made: after `step` steps.
    """

    def __init__(self, experiment: Mapping, group: Group):
        self.experiment, self.group = experiment, group
        self.options = experiment["train"]
        self.last: int = self.options["steps"]
        results, name = Path(experiment["exp"]["results"]), experiment["exp"]["run_name"]
        self.checkpoint, self.folder = results / f"{name}.ckpt", results / "state" / name
        self.best_checkpoint = results / f"{name}.best.ckpt"
        self.stop = StopRequests(self.options["stop_after"])
        self.states = StateFolder(self.folder, definition(experiment), self.options["keep"])
        if group.leader:
            self.states.lock()
        found = group.from_leader(self.states.newest(self.last) if group.leader else None)
        state = self.states.read(found) if found else None

        seed_everything(experiment["exp"]["seed"])
        dataset, validation_set = (_dataset(experiment["data"][part]) for part in ("train", "validation"))
        self.order = Order(len(dataset), experiment["data"]["batch_size"], experiment["exp"]["seed"])
        self.batches = Batches(dataset, self.order, group, self.last, experiment["data"]["num_workers"])
        trainer = trainers_registry[experiment["trainer"]]
        self.trainer = trainer(experiment, group, set(dataset[(0, 0)]), resumes=state is not None)
        _check_rates(self.trainer, dataset, validation_set)
        self.validation = Validation(
            validation_set,
            experiment["metrics"],
            experiment["exp"]["resources"],
            self.options["val_items"],
            self.folder,
            group,
        )

        if self.options["best"] is not None:
            self.validation.check(self.options["best"])

        self.step, self.skips, self.best, self.wandb_id = 0, 0, {}, None
        # what `train.best` keeps: metric, value, step, devices and, in the leader, the weights
        self.kept: dict = {}
        self.devices: dict[str, int] = {}  # name -> steps trained there
        if state:
            self.step, self.skips = state["step"], state["skips"]
            self.best, self.wandb_id = dict(state["best"]), state["wandb_id"]
            self.devices = dict(state["devices"])
            kept = state.get("kept") or {}  # absent in states of versions before `train.best`
            if kept.get("metric") == self.options["best"]:
                self.kept = kept if group.leader else {key: kept[key] for key in ("metric", "value", "step")}
            self.trainer.load_state_dict(state["trainer"])
            set_random_state(state["random"])
            log.info("%s: continuing after step %d of %d", found, self.step, self.last)
        del state
        self.saved_step, self.saved_at, self.waited = self.step, time.monotonic(), 0.0
        self.pending: list[tuple[int, list[str], list[str], Tensor, dict]] = []  # losses still on the device
        self.recent: list[dict] = []  # rows since the last progress line
        self.history = self.validations = self.writers = None
        if group.leader:
            self.history = Table(self.folder / "history.csv", self.step)
            self.validations = Table(self.folder / "validation.csv", self.step)
            self.writers = Writers(experiment, self.folder, self.wandb_id, self.step)
            self.wandb_id = self.writers.wandb_id
            if self.kept and not self._best_is_written():  # killed before writing it, or deleted since
                self._write_best()
        self.progress = Progress(self.step, self.last)
        self.read_at = time.perf_counter()

    def __enter__(self) -> Run:
        self.stop.listen()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.batches.close()
        self.stop.restore()
        if self.group.leader:
            self.states.unlock()
            self.history.close()
            self.validations.close()
            self.writers.close(finished=error is None and self.step == self.last)

    # ------------------------------------------------------------------------------------------------------ the loop

    def steps(self) -> Iterator[int]:
        """The remaining steps, until the end or a reason to stop."""
        first = self.step
        while self.step < self.last:
            # a time limit shorter than the start-up must not cause runs that never advance by a step
            if self.group.highest(int(self.stop.due(out_of_time=self.step > first)))[0]:
                return
            yield self.step

    def batch(self, step: int) -> Batch:
        """The batch of a step, on the device."""
        began = time.perf_counter()
        batch = self.batches.at(step)
        self.waited += time.perf_counter() - began
        return batch

    def after(self, step: int, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """After `step` steps: log, validate, save."""
        self.step = step
        self.devices[self.group.hardware] = self.devices.get(self.group.hardware, 0) + 1
        rates = {f"lr_{name}": updater.lr for name, updater in self.trainer.updaters().items()}
        self.pending.append((step, batch.names, list(losses), torch.stack(list(losses.values())), rates))
        if step % self.options["log_step"] == 0 or step == self.last:
            self.report()
        elif self.group.device.type == "cpu":
            self.read()  # costs nothing without a device to wait for, and reports a bad step immediately
        if step == self.last or (self.options["val_step"] and step % self.options["val_step"] == 0):
            self.validate()
        due = step % self.options["checkpoint_step"] == 0 or step == self.last or self.kept.get("step") == step
        late = time.monotonic() - self.saved_at >= 60 * self.options["checkpoint_minutes"]
        if self.group.highest(int(due or late))[0]:
            self.save()

    def finish(self) -> int:
        """Write the checkpoint, or save and ask for a restart."""
        if self.step < self.last:
            self.save()
            log.info(
                "stopped after step %d of %d (%s); start again to continue", self.step, self.last, self.stop.reason
            )
            return TRY_AGAIN
        if self.group.leader:
            from finallyse.models.checkpoint import save_checkpoint

            generator, discriminators = self.trainer.weights()
            save_checkpoint(
                self.checkpoint,
                network=self.experiment["generator"]["name"],
                config=self.experiment,
                step=self.step,
                generator=generator,
                discriminators=discriminators,
                devices=self.devices,
            )
            log.info("%s written after %d steps", self.checkpoint, self.step)
            if self.options["best"] is not None and not self.kept:
                log.warning(
                    "no %s: no validation has measured train.best=%s", self.best_checkpoint, self.options["best"]
                )
        self.group.barrier()
        return 0

    # ------------------------------------------------------------------------------------------------- what it tells

    def read(self) -> None:
        """Copy the losses of the steps since the last call to the host: the only place that waits for the device.

        Writes them to history.csv. Raises UserError if one of those steps was not finite.
        """
        if not self.pending:
            return
        pending, self.pending = self.pending, []
        # concatenated, since steps of `train.balance_step` have more values, so that there is one copy to wait for
        values = iter(torch.cat([vector for *_, vector, _ in pending]).tolist())
        now = time.perf_counter()
        seconds, self.read_at = (now - self.read_at) / len(pending), now
        rows, problem = [], None
        for step, names, keys, _, rates in pending:
            row = {"step": step, **{key: next(values) for key in keys}, **rates, "seconds": seconds}
            withheld = [row.pop(key) for key in keys if key.startswith("withheld_")]
            rows.append(row)
            if any(withheld) and (problem := self._not_finite(step, names, row)):
                break
        self.recent += rows
        if self.history:
            self.history.append(rows)
        if problem:
            raise UserError(problem)

    def report(self) -> None:
        """The progress line and the writers, with means since the last report."""
        self.read()
        rows, self.recent = self.recent, []
        rates = {key: value for key, value in rows[-1].items() if key.startswith("lr_")}
        means = {}
        balance = {key: value for row in rows for key, value in row.items() if key.startswith(BALANCE)}  # the last ones
        for key in rows[-1].keys() - {"step", *rates, *balance}:
            finite = [row[key] for row in rows if math.isfinite(row[key])]  # skipped steps are reported separately
            means[key] = sum(finite) / len(finite) if finite else math.nan
        seconds = means.pop("seconds")
        shown = {key: means[key] for key in rows[-1] if key in means} | rates | {"data_wait": self.waited / len(rows)}
        self.waited = 0.0
        if self.group.leader:
            log.info(self.progress.line(self.step, shown))
            shown["seconds"] = seconds
            self.writers.scalars(self.step, {f"train/{key}": value for key, value in (shown | balance).items()})

    def validate(self) -> None:
        """Compute metrics and log audio; leaves every random number generator unchanged."""
        self.read()
        before = random_state()
        row = self.validation.run(self.step, self.trainer, self.writers)
        set_random_state(before)
        measured = {key: value for key, value in row.items() if key not in ("step", "items", "seconds")}
        for name, value in measured.items():
            best = self.best.get(name)
            if best is None or self.validation.improves(name, value, best["value"]):
                self.best[name] = {"value": value, "step": self.step}
        self._keep_the_best(measured)
        if self.group.leader:
            self.validations.append([row])
            shown = " | ".join(
                f"{key} {value:.4g} (best {self.best[key]['value']:.4g} at {self.best[key]['step']})"
                for key, value in measured.items()
            )
            log.info(
                "validation after step %d: %s | %d items in %.1f s", self.step, shown, row["items"], row["seconds"]
            )
            self.writers.scalars(self.step, {f"validation/{key}": value for key, value in measured.items()})
        self.read_at = time.perf_counter()

    def _keep_the_best(self, measured: Mapping[str, float]) -> None:
        """Keep the validated weights in memory if they are the best so far; the next `save` writes them."""
        metric = self.options["best"]
        if metric not in measured:  # not requested, or not computed for any item: `Validation` has logged why
            return
        value = measured[metric]
        if self.kept and not self.validation.improves(metric, value, self.kept["value"]):
            return
        self.kept = {"metric": metric, "value": value, "step": self.step}
        if self.group.leader:
            generator, discriminators = self.trainer.weights()
            self.kept |= {
                "devices": dict(self.devices),
                "generator": _copies(generator),
                "discriminators": {name: _copies(weights) for name, weights in discriminators.items()},
            }

    def _best_is_written(self) -> bool:
        from finallyse.models.checkpoint import load_checkpoint

        if not self.best_checkpoint.is_file():
            return False
        try:
            found = load_checkpoint(self.best_checkpoint)
        except UserError as error:
            log.warning("%s; it is written anew from the state", error)
            return False
        ours = self.kept["generator"]
        return found.generator.keys() == ours.keys() and all(torch.equal(found.generator[n], ours[n]) for n in ours)

    def _write_best(self) -> None:
        from finallyse.models.checkpoint import save_checkpoint

        save_checkpoint(
            self.best_checkpoint,
            network=self.experiment["generator"]["name"],
            config=self.experiment,
            **{key: self.kept[key] for key in ("step", "devices", "generator", "discriminators")},
        )
        log.info("%s written: best %s, at step %d", self.best_checkpoint, self.kept["metric"], self.kept["step"])

    def _not_finite(self, step: int, names: list[str], row: Mapping[str, float]) -> str | None:
        """Count and log a skipped step, or return the message with which to stop: what, where, which items."""
        bad = [
            key.replace("grad_norm_", "gradient of the ").replace(BALANCE, "gradient at the waveform of ")
            for key, value in row.items()
            if not math.isfinite(value)
        ]
        items = [name for share in self.group.gather(names) for name in share]
        what = f"step {step}: not finite: {', '.join(bad)}; items: {', '.join(items)}"
        if self.options["on_nonfinite"] == "skip" and self.skips < self.options["max_skips"]:
            self.skips += 1
            log.warning("%s. No update made (skip %d of at most %d)", what, self.skips, self.options["max_skips"])
            return None
        kept = self.states.newest(step) if self.group.leader else None
        return (
            f"{what}. The update was not made; "
            + (f"the last good state is {kept}" if kept else "no state was saved before")
            + (f"; {self.skips} steps were skipped before (train.max_skips)" if self.skips else "")
            + ". Look at these items, lower the learning rate, set train.clip or train.on_nonfinite=skip"
        )

    def save(self) -> None:
        """Write the resume state."""
        self.read()
        if self.saved_step == self.step and self.states.has(self.step):
            return
        if self.group.leader:
            self.history.sync()
            self.validations.sync()
            self.states.save(
                self.step,
                {
                    "trainer": self.trainer.state_dict(),
                    "skips": self.skips,
                    "best": self.best,
                    "kept": self.kept,
                    "wandb_id": self.wandb_id,
                    "devices": self.devices,
                    "random": random_state(),
                },
            )
            # Last, and only what a state contains: whenever a run is killed, and whichever state is resumed, the file
            # can be rebuilt from what that state has kept.
            if self.kept.get("step", 0) > self.saved_step:
                self._write_best()
        self.group.barrier()
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.read_at = time.perf_counter()


class StopRequests:
    """Signals and the time limit: recorded immediately, acted on after the current step.

    A second SIGINT (Ctrl-C) ends the process immediately. A second SIGTERM does not: at a time limit SLURM sends two.
    """

    def __init__(self, minutes: float | None):
        self.reason: str | None = None
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._minutes = minutes
        self._before: dict = {}

    def listen(self) -> None:
        """Start handling SIGTERM and SIGINT."""
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}

    def due(self, out_of_time: bool = True) -> bool:
        """Whether to stop; the time limit counts only if `out_of_time`."""
        if out_of_time and self._deadline is not None and time.monotonic() >= self._deadline:
            self.reason = self.reason or f"train.stop_after={self._minutes} minutes"
        return self.reason is not None

    def restore(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.reason = f"signal {signal.Signals(number).name}"
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])


def prepare_pytorch(experiment: Mapping, device: torch.device) -> None:
    """Set threads, precision of matrix products, determinism, and memory allocation on a CPU."""
    options = experiment["exp"]
    if options["threads"]:
        torch.set_num_threads(options["threads"])
    torch.set_float32_matmul_precision("high" if experiment["train"]["tf32"] else "highest")
    torch.backends.cudnn.allow_tf32 = experiment["train"]["tf32"]
    torch.backends.cudnn.benchmark = device.type == "cuda" and not options["deterministic"]
    torch.use_deterministic_algorithms(options["deterministic"])
    if options["deterministic"]:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cpu":
        keep_freed_memory()


def _copies(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}


def _dataset(part: Mapping):
    from finallyse.datasets import datasets_registry

    return datasets_registry[part["name"]](**part["args"])


def _check_rates(trainer: BaseTrainer, train_set, validation_set) -> None:
    generator = trainer.generator
    if train_set.output_rate != trainer.output_rate:
        raise UserError(
            f"data.train: targets at {train_set.output_rate} Hz; the generator makes {trainer.output_rate} Hz"
        )
    for kind, dataset in (("train", train_set), ("validation", validation_set)):
        if dataset.input_rate != generator.input_rate:
            raise UserError(
                f"data.{kind}: inputs at {dataset.input_rate} Hz; the generator takes {generator.input_rate} Hz"
            )
