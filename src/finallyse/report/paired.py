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
    """The mean over utterances of output minus input, with its 95 % interval (Student's t; NaN of fewer than two).

    Or of a network's output minus another system's.
    """

    interval: Interval
    pairs: int
    unpaired: int
    """Utterances of which one of the two has no number; they are left out."""


def paired_change(table: pandas.DataFrame, metric: str) -> Change | None:
    """The change in `metric`, from the rows of scripts/evaluate.py; None if no input was measured.

    Raises ValueError for a cell that is not a number.
    """
    if metric not in table or f"noisy_{metric}" not in table:
        return None
    return _mean_difference(table[metric], table[f"noisy_{metric}"])


def paired_difference(output: pandas.DataFrame, other: pandas.DataFrame, metric: str) -> Change | None:
    """The difference in `metric` of a network's output and another system's, from the rows of scripts/evaluate.py.

    Utterances are matched by name; those that only `other` has do not count. None if one of the two was not measured.
    Raises ValueError for a cell that is not a number.
    """
    if metric not in output or metric not in other:
        return None
    ours, theirs = (table.set_index("utterance")[metric] for table in (output, other))
    return _mean_difference(ours, theirs.reindex(ours.index))


def _mean_difference(output: pandas.Series, other: pandas.Series) -> Change:
    differences = pandas.to_numeric(output).to_numpy(float) - pandas.to_numeric(other).to_numpy(float)
    present = differences[np.isfinite(differences)]
    mean, half = mean_and_interval(present.tolist())
    return Change(Interval(mean, mean - half, mean + half), len(present), len(differences) - len(present))


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
