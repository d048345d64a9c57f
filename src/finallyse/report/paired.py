"""Whether a network's output is better than its input, and whether a training got anywhere.

Utterances differ more from each other than an output from its input, so that the two means, each with an interval, say
little. The verdict is therefore based on the difference between each utterance's output and its input.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pandas

from finallyse.metrics import Better, goodness, metric_of, metrics_registry
from finallyse.metrics.measure import mean_and_interval
from finallyse.report.figures import Interval

LEVEL_TOLERANCE_DB = 1.0
"""A mean level within so many dB of the reference's is right."""

Verdict = Literal["better", "worse", "no clear difference", "right level", "wrong level"]


@dataclasses.dataclass(frozen=True)
class Change:
    """The mean over utterances of output minus input, with its 95 % interval (Student's t; NaN of fewer than two)."""

    interval: Interval
    pairs: int
    unpaired: int
    """Utterances whose output or input has no number; they are left out."""


def paired_change(table: pandas.DataFrame, metric: str) -> Change | None:
    """The change in `metric`, from the rows of scripts/evaluate.py; None if no input was measured.

    Raises ValueError for a cell that is not a number.
    """
    if metric not in table or f"noisy_{metric}" not in table:
        return None
    output, given = (pandas.to_numeric(table[column]).to_numpy(float) for column in (metric, f"noisy_{metric}"))
    differences = output - given
    differences = differences[np.isfinite(differences)]
    mean, half = mean_and_interval(differences.tolist())
    return Change(Interval(mean, mean - half, mean + half), len(differences), len(table) - len(differences))


def verdict(change: Interval, better: Better) -> Verdict:
    """The verdict of a paired change in a metric whose higher, or lower, numbers are better."""
    if not (change.low > 0 or change.high < 0):
        return "no clear difference"
    return "better" if goodness(change.mean, better) > 0 else "worse"


def level_verdict(output: Interval) -> Verdict:
    """Whether the mean level against the reference, dB, is right; the input's level does not matter."""
    return "right level" if abs(output.mean) <= LEVEL_TOLERANCE_DB else "wrong level"


@dataclasses.dataclass(frozen=True)
class Trend:
    """A metric of the validations during a training: its first, last and best value, each with its step."""

    metric: str
    first: tuple[int, float]
    last: tuple[int, float]
    best: tuple[int, float]

    @property
    def direction(self) -> Literal["rising", "falling", "unchanged"]:
        """The last value compared with the first."""
        (_, first), (_, last) = self.first, self.last
        return "rising" if last > first else "falling" if last < first else "unchanged"


def trends(validation: pandas.DataFrame | None) -> list[Trend]:
    """The trend of each metric in the table of validations; metrics with fewer than two values have none."""
    found = []
    for column in [] if validation is None else validation.columns:
        name = metric_of(column)
        present = validation[["step", column]].dropna() if name else []
        if len(present) < 2:
            continue
        points = [(int(step), float(value)) for step, value in present.itertuples(index=False)]
        better = metrics_registry[name].better
        best = max(points, key=lambda point: goodness(point[1], better))  # the first of equals, as in training
        found.append(Trend(column, points[0], points[-1], best))
    return found
