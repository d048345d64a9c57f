"""Validation during training: metrics over a fixed part of the validation set, and a few waveforms to listen to."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from finallyse.audio.io import write_wav
from finallyse.errors import UserError
from finallyse.training.base import BaseTrainer
from finallyse.training.batches import collate
from finallyse.training.distributed import Group
from finallyse.training.history import Writers

log = logging.getLogger(__name__)

SAMPLES = 3  # items whose waveforms are kept
OUTPUTS = 5  # validations whose outputs are kept


class Validation:
    """Enhances items of the validation set and measures them.

    Args:
        dataset: whole utterances.
        metrics: names in the metrics registry.
        resources: folder with the weights that some metrics need.
        limit: number of items measured, spread evenly over the set; None: all.
        folder: folder of samples/<item>/{input,target,output-<step>}.wav.
        group: the processes that share the work.
    """

    def __init__(self, dataset, metrics: Sequence[str], resources: str, limit: int | None, folder: Path, group: Group):
        from finallyse.metrics import MetricSet

        self.dataset, self.folder, self.group = dataset, folder / "samples", group
        self.metrics = MetricSet(metrics, resources, group.device.type)
        count = min(len(dataset), limit or len(dataset))
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
            raise UserError(f"train.best={column}: metric {of} is {self.metrics.missing[of]}; fetch it, or choose null")
        if self.metrics.metrics[of].needs.reference and self.dataset[(0, self.indices[0])].get("wav") is None:
            raise UserError(
                f"train.best={column}: needs a reference, which data.validation does not give; choose a metric without"
            )

    def run(self, step: int, trainer: BaseTrainer, writers: Writers | None) -> dict[str, Any]:
        """A row for validation.csv: step, the mean of each metric (absent if it could not be computed), seconds."""
        from finallyse.metrics import summarise

        began = time.perf_counter()
        listened = set(self.indices[:: max(1, len(self.indices) // SAMPLES)][:SAMPLES])
        scores, kept = [], []
        with trainer.inference():
            for index in self.group.share(self.indices):
                item = self.dataset[(0, index)]
                batch = collate([item]).to(self.group.device)
                output = trainer.synthesize_wavs(batch)[0, 0].float().cpu().numpy()
                scores.append(self._score(item, output, trainer.output_rate))
                if index in listened:
                    kept.append((item, output))
        scores = [one for share in self.group.gather(scores) for one in share]
        for item, output in (one for share in self.group.gather(kept) for one in share):
            if self.group.leader:
                self._keep(step, item, output, trainer.output_rate, writers)
        row: dict[str, Any] = {"step": step}
        for column, summary in summarise(scores, self.metrics.columns()).items():
            if summary.n:
                row[column] = summary.mean
            if summary.unscored:
                log.warning(
                    "validation, %s: %d of %d not scored: %s",
                    column,
                    summary.unscored,
                    len(scores),
                    summary.reasons_text,
                )
        row["items"], row["seconds"] = len(scores), time.perf_counter() - began
        return row

    def improves(self, column: str, value: float, best: float) -> bool:
        """Whether `value` is better than `best` in this column."""
        from finallyse.metrics import goodness

        better = self.metrics.better(column)
        return goodness(value, better) > goodness(best, better)

    def _score(self, item: Mapping, output: np.ndarray, rate: int):
        from finallyse.metrics import Utterance

        target = item.get("wav")
        if target is None:
            return self.metrics.score(Utterance(output, rate), only_without_reference=True)
        return self.metrics.score(Utterance(output, rate, np.asarray(target), self.dataset.output_rate))

    def _keep(self, step: int, item: Mapping, output: np.ndarray, rate: int, writers: Writers | None) -> None:
        folder = self.folder / str(item["name"]).replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        for role, key, own_rate in (
            ("input", "input_wav", self.dataset.input_rate),
            ("target", "wav", self.dataset.output_rate),
        ):
            if item.get(key) is not None and not (folder / f"{role}.wav").is_file():
                write_wav(folder / f"{role}.wav", np.asarray(item[key]), own_rate, overload="scale")
        if not np.isfinite(output).all():
            log.warning("validation: the output for %s is not finite, not kept", item["name"])
            return
        write_wav(folder / f"output-{step:08d}.wav", output, rate, overload="scale")
        for old in sorted(folder.glob("output-*.wav"))[:-OUTPUTS]:
            old.unlink()
        if writers:
            writers.audio(step, str(item["name"]), output, rate)
