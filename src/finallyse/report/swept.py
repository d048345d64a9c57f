"""The networks of a sweep beside one another: means and standard deviations over seeds, and paired differences.

A setting is one combination of the varied options but the seed. Its networks, one for each seed, count as repetitions:
the spread of their means tells how much of a difference between settings is chance of the training. The paired
intervals are of the mean over its seeds of each utterance, and tell how much is chance of the utterances.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas

from finallyse.report.collect import Score, read_scores, read_table
from finallyse.report.paired import Change, paired_change, paired_difference
from finallyse.sweep import SEED, Sweep


@dataclasses.dataclass(frozen=True)
class Cell:
    """One metric of one setting."""

    mean: float
    deviation: float
    """Standard deviation of the seeds' means (n - 1); NaN for fewer than two."""
    change: Change | None
    """Of the output against the input; None if no input was measured."""
    difference: Change | None
    """Of the setting against the first one; None for that itself."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """The networks that differ in their seeds only."""

    values: tuple[str, ...]
    networks: list[str]
    measured: list[str]
    """Those with results."""
    cells: dict[str, Cell]


@dataclasses.dataclass(frozen=True)
class Swept:
    """The results of a sweep."""

    sweep: Sweep
    settings: list[Setting]
    scores: list[Score]
    """Of the first network with results: what was measured, or why not."""

    @property
    def options(self) -> list[str]:
        """The varied options but the seed."""
        return [option for option in self.sweep.options if option != SEED]

    @property
    def has_seeds(self) -> bool:
        """Whether the seed is varied."""
        return SEED in self.sweep.grid

    @property
    def absent(self) -> list[str]:
        """Networks without results."""
        return [name for setting in self.settings for name in setting.networks if name not in setting.measured]


def read_swept(results: Path, sweep: Sweep) -> Swept:
    """The results of a sweep's networks under `results`, as far as they are there."""
    settings: list[Setting] = []
    scores: list[Score] = []
    first: pandas.DataFrame | None = None
    for values, networks in sweep.settings().items():
        measured = [name for name in networks if (results / "metrics" / f"{name}.summary.csv").is_file()]
        tables = [read_table(results / "metrics" / f"{name}.csv", ["utterance"]) for name in measured]
        if measured and not scores:
            scores = read_scores(results, measured[0])
        metrics = [score.metric for score in scores if any(score.metric in table for table in tables)]
        mean = _mean_over_seeds(tables)
        cells = {metric: cell for metric in metrics if (cell := _cell(metric, tables, mean, first))}
        settings.append(Setting(values, networks, measured, cells))
        first = mean if first is None and measured else first
    return Swept(sweep, settings, scores)


def _mean_over_seeds(tables: Sequence[pandas.DataFrame]) -> pandas.DataFrame:
    """Each utterance's mean over the tables; NaN where one of them has no number."""
    if not tables:
        return pandas.DataFrame()
    numbers = [table.set_index("utterance").select_dtypes("number") for table in tables]
    total = sum(numbers[1:], numbers[0])  # by name: an utterance or a metric that one of them lacks becomes NaN
    return (total / len(numbers)).reset_index()


def _cell(
    metric: str, tables: Sequence[pandas.DataFrame], mean: pandas.DataFrame, first: pandas.DataFrame | None
) -> Cell | None:
    columns = [table[metric].to_numpy(float) for table in tables if metric in table]
    means = [float(np.mean(present)) for column in columns if len(present := column[np.isfinite(column)])]
    if not means:
        return None
    return Cell(
        mean=statistics.fmean(means),
        deviation=statistics.stdev(means) if len(means) > 1 else math.nan,
        change=paired_change(mean, metric),
        difference=None if first is None else paired_difference(mean, first, metric),
    )
