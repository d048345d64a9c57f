"""The training loop of all trainers: resumes from a saved state, logs, validates, saves, stops on a signal."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finallyse import finished
from finallyse.errors import TRY_AGAIN, TemporaryError, UserError
from finallyse.hardware import keep_freed_memory
from finallyse.models.checkpoint import save_checkpoint
from finallyse.options import Experiment, Part, from_dict
from finallyse.recipe import recipe_of
from finallyse.training import debugging, trainers_registry
from finallyse.training.batches import Batch, Batches
from finallyse.training.distributed import Group, process_device
from finallyse.training.log import SkippedSteps, TrainingLog
from finallyse.training.sampling import Order
from finallyse.training.state import StateFolder, random_state, seed_everything, set_random_state
from finallyse.training.trainers import BaseTrainer
from finallyse.training.validation import Best, Validation

log = logging.getLogger(__name__)


def train(experiment: Experiment | Mapping) -> int:
    """Train one network, from its saved state if there is one.

    Args:
        experiment: the complete experiment, also as nested dicts.

    Returns:
        The exit status of the process. 0: the checkpoint `<results>/<run_name>.ckpt` is written
        (`<run_name>.best.ckpt`, if `train.best` is set, exists from the first validation on). 75: stopped by a signal
        or `train.stop_after` and saved, to be continued.

    Raises:
        UserError: for anything that the user can fix.
    """
    experiment = debugging.adapted(from_dict(Experiment, experiment))
    device = process_device(experiment.exp.device)
    prepare_pytorch(experiment, device)
    group = Group(device)
    try:
        if experiment.train.debug and group.leader:
            debugging.clear(experiment)
        files = Files(experiment, group)
        if files.finished and not files.at_end:
            files.restore()
            return 0
        with Run(experiment, group, files) as run, debugging.profiler(experiment, files.folder) as after_step:
            for step, batch in run.steps():
                run.trainer.begin(step, run.order.epoch(step))
                losses = run.trainer.train_step(batch)
                run.after(step + 1, batch, losses)
                after_step()
            status = run.finish()
        if group.leader and status == 0:
            debugging.tell(experiment, files.folder)
        return status
    finally:
        group.close()


class Files:
    """The files of a run, and what of it has been made before. Creating it locks the run's folder.

    Attributes:
        checkpoint, best: `<results>/<run_name>.ckpt` and `.best.ckpt`.
        folder, states: `<results>/state/<run_name>` and the saved states there.
        state: the state to continue from; None: none.
        finished: the checkpoint of this recipe after `train.steps` steps, here or kept; None: none.

    Raises:
        TemporaryError: if another process trains into the folder.
    """

    def __init__(self, experiment: Experiment, group: Group):
        self.group, self.steps = group, experiment.train.steps
        results, name = Path(experiment.exp.results), experiment.exp.run_name
        self.checkpoint, self.best = results / f"{name}.ckpt", results / f"{name}.best.ckpt"
        self.folder, self.recipe = results / "state" / name, recipe_of(experiment, argument_defaults)
        self.states = StateFolder(self.folder, self.recipe, experiment.train.keep)
        found = None, None
        if group.leader:
            self.states.lock()
            made = finished.find(self.checkpoint, self.folder, self.recipe, self.steps)
            found = self.states.newest(self.steps), made
        self.state, self.finished = group.from_leader(found)

    @property
    def at_end(self) -> bool:
        """Whether the state to continue from is that after the last step."""
        return self.state is not None and self.state.name == self.states.path(self.steps).name

    def take_over(self) -> None:
        """Before the first step of a run that is set up: keep what other recipes have made under this name."""
        if self.group.leader:
            if self.finished != self.checkpoint:
                finished.keep(self.checkpoint, self.folder)
            finished.keep_other(self.best, self.folder, self.recipe)
            self.states.take_over()

    def restore(self) -> None:
        """Put the finished checkpoint in its place, where it may be already: nothing is left to train."""
        if self.group.leader:
            self.take_over()
            finished.restore(self.finished, self.checkpoint, self.folder)
            if self.finished != self.checkpoint:
                log.info("%s: restored from %s", self.checkpoint, self.finished)
            log.info("%s: finished after %d steps, nothing to do", self.checkpoint, self.steps)
        self.states.unlock()
        self.group.barrier()


class Run:
    """One run of one experiment: its parts, and everything around a step.

    Steps are counted from 0 while they are made, and from 1 once they have been made: after `step` steps.
    """

    def __init__(self, experiment: Experiment, group: Group, files: Files):
        self.experiment, self.options, self.group, self.files = experiment, experiment.train, group, files
        self.stop = StopRequests(self.options.stop_after)
        self.states, folder, found = files.states, files.folder, files.state
        state = self.states.read(found) if found else {}

        seed_everything(experiment.exp.seed)
        dataset, validation_set = _dataset(experiment.data.train), _dataset(experiment.data.validation)
        dataset = debugging.training_set(experiment, dataset)
        self.order = Order(len(dataset), experiment.data.batch_size, experiment.exp.seed)
        self.batches = Batches(dataset, self.order, group, self.options.steps, experiment.data.num_workers)
        trainer = trainers_registry[experiment.trainer]
        self.trainer: BaseTrainer = trainer(experiment, group, set(dataset[(0, 0)]), resumes=bool(state))
        check_rates(self.trainer.generator, dataset, validation_set)
        self.validation = Validation(validation_set, experiment, folder, group)
        self.best = Best(experiment, self.validation, files.best, group, state, files.recipe)

        self.step: int = state.get("step", 0)
        self.devices: dict[str, int] = dict(state.get("devices", {}))  # name -> steps trained there
        if state:
            self.trainer.load_state_dict(state["trainer"])
            set_random_state(state["random"])
            log.info("%s: continuing after step %d of %d", self.states.path(self.step), self.step, self.options.steps)
        self.saved_step, self.saved_at = self.step, time.monotonic()
        files.take_over()
        skipped = SkippedSteps(self.options, self.states, group, state.get("skips", 0))
        self.log = TrainingLog(experiment, folder, self.step, skipped, state.get("wandb_id"), group)
        if group.leader:
            self.best.restore()

    def __enter__(self) -> Run:
        self.stop.listen()
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.batches.close()
        self.stop.restore()
        self.states.unlock()
        self.log.close(finished=error is None and self.step == self.options.steps)

    def steps(self) -> Iterator[tuple[int, Batch]]:
        """The remaining steps and their batches on the device, until the end or a reason to stop.

        Raises:
            UserError: for a batch that cannot be loaded, after saving.
        """
        first = self.step
        while self.step < self.options.steps:
            # a time limit shorter than the start-up must not cause runs that never advance by a step
            if self.group.highest(int(self.stop.due(out_of_time=self.step > first)))[0]:
                return
            began = time.perf_counter()
            batch, failure = None, None
            try:
                batch = self.batches.at(self.step)
            except UserError as error:
                failure = error
            if self.group.highest(int(failure is not None))[0]:  # every process saves, or none could
                if self.step > self.saved_step:
                    self.save()
                raise failure or TemporaryError("another process of this training has no batch; it says why")
            self.log.data_wait += time.perf_counter() - began
            yield self.step, batch

    def after(self, step: int, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """After `step` steps: log, validate, save."""
        self.step, options, is_last = step, self.options, step == self.options.steps
        self.devices[self.group.hardware] = self.devices.get(self.group.hardware, 0) + 1
        rates = {f"lr_{name}": updater.lr for name, updater in self.trainer.updaters().items()}
        self.log.add(step, batch.names, losses, rates)
        if is_last or step % options.log_step == 0:
            self.log.report()
        elif self.group.device.type == "cpu":
            self.log.flush()  # without a device to wait for it costs nothing, and a skipped step is reported at once
        if is_last or (options.val_step and step % options.val_step == 0):
            self.validate()
        due = is_last or step % options.checkpoint_step == 0 or self.best.step == step
        late = time.monotonic() - self.saved_at >= 60 * options.checkpoint_minutes
        if self.group.highest(int(due or late))[0]:
            self.save()

    def validate(self) -> None:
        """Compute metrics and log audio; leaves every random number generator unchanged."""
        self.log.flush()
        before = random_state()
        row = self.validation.run(self.step, self.trainer, self.log.writers)
        set_random_state(before)
        self.best.update(row, self.trainer, self.devices)
        self.log.validation(row, self.best.values)
        self.log.restart_clock()

    def save(self) -> None:
        """Write the resume state."""
        self.log.flush()
        if self.saved_step == self.step and self.states.has(self.step):
            return
        if self.group.leader:
            self.log.sync()
            self.states.save(
                self.step,
                {
                    "trainer": self.trainer.state_dict(),
                    "skips": self.log.skipped.count,
                    "best": self.best.values,
                    "kept": self.best.kept,
                    "wandb_id": self.log.writers.wandb_id,
                    "devices": self.devices,
                    "random": random_state(),
                },
            )
            # Last, and only what a state contains: whenever a run is killed, and whichever state is resumed, the file
            # can be rebuilt from what that state has kept.
            if self.best.step > self.saved_step:
                self.best.write()
        self.group.barrier()
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.log.restart_clock()

    def finish(self) -> int:
        """Write the checkpoint, or save and ask for a restart; returns the exit status."""
        if self.step < self.options.steps:
            self.save()
            where = f"step {self.step} of {self.options.steps}"
            log.info("stopped after %s (%s); run again to continue", where, self.stop.reason)
            return TRY_AGAIN
        if self.group.leader:
            path = self.files.checkpoint
            if self.files.finished and self.files.at_end:
                # as it is, to the last byte: a stage that starts from it then has nothing to do either
                finished.restore(self.files.finished, path, self.files.folder)
                log.info("%s kept: nothing was left to train", path)
            else:
                save_checkpoint(
                    path,
                    network=self.experiment.generator.name,
                    config=dataclasses.asdict(self.experiment),
                    step=self.step,
                    devices=self.devices,
                    recipe=self.files.recipe.record(),
                    **self.trainer.weights(),
                )
                log.info("%s written after %d steps", path, self.step)
            if self.best.metric is not None and not self.best.kept:
                log.warning("no %s: no validation has measured train.best=%s", self.best.path, self.best.metric)
        self.group.barrier()
        return 0


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


def prepare_pytorch(experiment: Experiment, device: torch.device) -> None:
    """Set threads, precision of matrix products, determinism, and memory allocation on a CPU."""
    options, tf32 = experiment.exp, experiment.train.tf32
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = device.type == "cuda" and not options.deterministic
    torch.use_deterministic_algorithms(options.deterministic)
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if device.type == "cpu":
        keep_freed_memory()


def argument_defaults(kind: str, name: str) -> dict[str, Any]:
    """Argument -> default of the constructor of a model, loss, dataset or augmentation."""
    from finallyse.augmentations import augmentations_registry
    from finallyse.datasets import datasets_registry  # slow to import
    from finallyse.losses import losses_registry
    from finallyse.models import models_registry

    registries = {
        "model": models_registry,
        "loss": losses_registry,
        "dataset": datasets_registry,
        "augmentation": augmentations_registry,
    }
    return registries[kind].defaults(name)


def _dataset(part: Part):
    from finallyse.datasets import datasets_registry  # slow to import

    return datasets_registry[part.name](**part.args)


def check_rates(generator, train_set, validation_set) -> None:
    """Raise a UserError unless both datasets have the generator's rates."""
    if train_set.output_rate != generator.output_rate:
        raise UserError(
            f"data.train: targets at {train_set.output_rate} Hz; the generator's output has {generator.output_rate} Hz"
        )
    for kind, dataset in (("train", train_set), ("validation", validation_set)):
        if dataset.input_rate != generator.input_rate:
            raise UserError(
                f"data.{kind}: inputs at {dataset.input_rate} Hz; the generator takes {generator.input_rate} Hz"
            )
