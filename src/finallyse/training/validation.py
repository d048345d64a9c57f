"""Validation during training: metrics over a fixed part of the validation set, and a few waveforms to listen to."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finallyse.audio.io import write_wav
from finallyse.errors import UserError
from finallyse.inference.renderer import Renderer
from finallyse.metrics import MetricSet, Utterance, goodness, summarise
from finallyse.models.checkpoint import load_checkpoint, save_checkpoint
from finallyse.options import Experiment
from finallyse.recipe import Recipe
from finallyse.training.batches import collate
from finallyse.training.distributed import Group
from finallyse.training.log import Writers
from finallyse.training.trainers import BaseTrainer

log = logging.getLogger(__name__)

SAMPLES = 3  # items whose waveforms are kept
OUTPUTS = 5  # validations whose outputs are kept


class Validation:
    """Enhances items of the validation set, in windows if they are long, and measures them.

    Args:
        dataset: whole utterances; `train.val_items` of them, spread evenly, are measured.
        experiment: the experiment.
        folder: folder of samples/<item>/{input,target,output-<step>}.wav.
        group: the processes that share the work.
    """

    def __init__(self, dataset, experiment: Experiment, folder: Path, group: Group):
        self.dataset, self.folder, self.group = dataset, folder / "samples", group
        self.metrics = MetricSet(experiment.metrics, experiment.exp.resources, group.device.type)
        count = min(len(dataset), experiment.train.val_items or len(dataset))
        self.indices = sorted({int(i) for i in np.linspace(0, len(dataset) - 1, count)})
        for name, reason in self.metrics.missing.items():
            log.warning("metric %s: %s", name, reason)

    def check(self, column: str) -> None:
        """Raise a UserError if no validation will compute `column`, named by `train.best`."""
        of = next((name for name, metric in self.metrics.metrics.items() if column in metric.columns), None)
        if of is None:
            known = ", ".join(self.metrics.columns()) or "none"
            raise UserError(
                f"train.best={column}: not among the numbers of `metrics` ({known}); choose one of them, or null"
            )
        if of in self.metrics.missing:
            raise UserError(f"train.best={column}: metric {of} is {self.metrics.missing[of]}; or use train.best=null")
        if self.metrics.metrics[of].needs.reference and self.dataset[(0, self.indices[0])].get("wav") is None:
            raise UserError(
                f"train.best={column}: needs a reference, which data.validation does not have; choose another metric"
            )

    def run(self, step: int, trainer: BaseTrainer, writers: Writers | None) -> dict[str, Any]:
        """A row for validation.csv: step, the mean of each metric (absent if it could not be computed), seconds."""
        began = time.perf_counter()
        listened = set(self.indices[:: max(1, len(self.indices) // SAMPLES)][:SAMPLES])
        scores, kept = [], []
        with trainer.inference():
            for index in self.group.share(self.indices):
                item = self.dataset[(0, index)]
                output = InTraining(trainer, item).output()
                utterance = Utterance(output, trainer.output_rate, item.get("wav"), self.dataset.output_rate)
                scores.append(self.metrics.score(utterance))
                if index in listened:
                    kept.append((item, output))
        scores = [one for share in self.group.gather(scores) for one in share]
        for item, output in (one for share in self.group.gather(kept) for one in share):
            if self.group.leader:
                self._write_samples(step, item, output, trainer.output_rate, writers)
        row: dict[str, Any] = {"step": step}
        for column, summary in summarise(scores, self.metrics.columns()).items():
            if summary.n:
                row[column] = summary.mean
            if summary.unscored:
                unscored = f"{summary.unscored} of {len(scores)} not scored: {summary.reasons_text}"
                log.warning("validation, %s: %s", column, unscored)
        row["items"], row["seconds"] = len(scores), time.perf_counter() - began
        return row

    def improves(self, column: str, value: float, best: float) -> bool:
        """Whether `value` is better than `best` in this column."""
        better = self.metrics.better(column)
        return goodness(value, better) > goodness(best, better)

    def _write_samples(self, step: int, item: Mapping, output: np.ndarray, rate: int, writers: Writers | None):
        folder = self.folder / str(item["name"]).replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        for role, key, own_rate in (
            ("input", "input_wav", self.dataset.input_rate),
            ("target", "wav", self.dataset.output_rate),
        ):
            if item.get(key) is not None and not (folder / f"{role}.wav").is_file():
                write_wav(folder / f"{role}.wav", np.asarray(item[key]), own_rate, overload="scale")
        if not np.isfinite(output).all():
            log.warning("validation: the output for %s is not finite, not written", item["name"])
            return
        write_wav(folder / f"output-{step:08d}.wav", output, rate, overload="scale")
        for old in sorted(folder.glob("output-*.wav"))[:-OUTPUTS]:
            old.unlink()
        if writers:
            writers.audio(step, str(item["name"]), output, rate)


class InTraining(Renderer):
    """The network of a trainer, as it is, over an item of the validation set.

    Args:
        trainer: in its `inference` context.
        item: a whole utterance; what it has beside the waveform or the mel is given to every window.
    """

    def __init__(self, trainer: BaseTrainer, item: Mapping):
        super().__init__(trainer.generator, trainer.wavlm)
        self.trainer, self.item = trainer, collate([item]).to(trainer.device)

    def output(self) -> np.ndarray:
        """float32 [T] at `output_rate`."""
        if self.input_kind == "mel":
            return self.render_mel(self.item["mel"][0].cpu().numpy(), self.trainer.generator.hop)
        return self.render_whole(self.item["input_wav"][0].cpu().numpy())[0]

    def generate(
        self, wav: np.ndarray | None, ssl: np.ndarray | None = None, mel: np.ndarray | None = None
    ) -> np.ndarray:
        given = {"input_wav": None if wav is None else wav[:, None], "ssl": ssl, "mel": mel}
        window = {key: self._tensor(value) for key, value in given.items() if value is not None}
        output = self.trainer.synthesize_wavs(dataclasses.replace(self.item, tensors=self.item.tensors | window))
        return output[:, 0].float().cpu().numpy()

    def hidden_state(self, wav: np.ndarray) -> np.ndarray:
        return self.trainer.hidden_state(self._tensor(wav)).float().cpu().numpy()

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.trainer.device)


class Best:
    """The best value of each metric so far, and the weights of the best validation by `train.best`.

    The weights are kept in memory and in the resume state until `write` writes them to a checkpoint.

    Args:
        experiment: the experiment.
        validation: its validation, which knows what is better.
        path: the checkpoint, `<run_name>.best.ckpt`.
        group: the processes that train together; the leader keeps the weights.
        state: the resume state, empty at the start of a run.
        recipe: the run's recipe, for the checkpoint.

    Attributes:
        values: metric -> {value, step}.
        kept: metric, value, step and, in the leader, devices and weights of the best validation; empty before it.
    """

    def __init__(
        self,
        experiment: Experiment,
        validation: Validation,
        path: Path,
        group: Group,
        state: Mapping,
        recipe: Recipe,
    ):
        self.recipe = recipe
        self.experiment, self.validation, self.path, self.group = experiment, validation, path, group
        self.metric = experiment.train.best
        if self.metric is not None:
            validation.check(self.metric)
        self.values: dict[str, dict] = dict(state.get("best", {}))
        kept = state.get("kept") or {}  # absent in states of versions before `train.best`
        if kept.get("metric") != self.metric:
            kept = {}
        self.kept = kept if group.leader else {key: kept[key] for key in ("metric", "value", "step") if key in kept}

    @property
    def step(self) -> int:
        """Step of the kept weights; 0 if there are none."""
        return self.kept.get("step", 0)

    def update(self, row: Mapping[str, float], trainer: BaseTrainer, devices: Mapping[str, int]) -> None:
        """Compare a validation's row with the best ones, and keep the trainer's weights if they are the best."""
        step = row["step"]
        for name, value in row.items():
            if name in ("step", "items", "seconds"):
                continue
            if name not in self.values or self.validation.improves(name, value, self.values[name]["value"]):
                self.values[name] = {"value": value, "step": step}
        if self.metric not in row:  # not set, or not computed for any item: `Validation` has logged why
            return
        value = row[self.metric]
        if self.kept and not self.validation.improves(self.metric, value, self.kept["value"]):
            return
        self.kept = {"metric": self.metric, "value": value, "step": step}
        if self.group.leader:
            self.kept |= {"devices": dict(devices), **_copies(trainer.weights())}

    def write(self) -> None:
        """Write the kept weights to the checkpoint."""
        save_checkpoint(
            self.path,
            network=self.experiment.generator.name,
            config=dataclasses.asdict(self.experiment),
            recipe=self.recipe.record(),
            **{key: self.kept[key] for key in ("step", "devices", "generator", "discriminators")},
        )
        log.info("%s written: best %s, at step %d", self.path, self.metric, self.step)

    def restore(self) -> None:
        """Write the checkpoint if it does not contain the weights kept in the state that is resumed."""
        if self.kept and not self._is_written():
            self.write()

    def _is_written(self) -> bool:
        if not self.path.is_file():
            return False
        try:
            written = load_checkpoint(self.path).generator
        except UserError as error:
            log.warning("%s; it will be rewritten from the state", error)
            return False
        kept = self.kept["generator"]
        return written.keys() == kept.keys() and all(torch.equal(written[name], kept[name]) for name in kept)


def _copies(weights: Tensor | Mapping) -> Any:
    """Copies of nested tensors on the CPU."""
    if torch.is_tensor(weights):
        return weights.detach().to("cpu", copy=True)
    return {name: _copies(value) for name, value in weights.items()}
