"""Several metrics of one utterance, and their means over many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from finallyse.errors import UserError
from finallyse.metrics.base import Better, Metric, Unscored, Utterance


@dataclass
class Scores:
    """Scores of one utterance, and the reason for each missing one."""

    values: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """One column over utterances: mean, half width of its 95 % confidence interval, how many were scored."""

    mean: float
    ci95: float
    n: int
    unscored: int
    reasons: dict[str, int]

    @property
    def reasons_text(self) -> str:
        """`7 x too short; 1 x silent`, the most frequent first."""
        return "; ".join(f"{count} x {reason}" for reason, count in self.reasons.items())


class MetricSet:
    """Metrics selected by name, in the given order.

    Args:
        names: registry names; an unknown or repeated one raises UserError.
        resources: folder that contains `weights/`.
        device: "cpu", "cuda" or "auto".

    Attributes:
        missing: name -> reason, of the metrics whose weights or packages are missing; they are not computed.
    """

    def __init__(self, names: Sequence[str], resources: str = "resources", device: str = "auto"):
        from finallyse.metrics import metrics_registry

        repeated = [name for name, count in Counter(names).items() if count > 1]
        if repeated:
            raise UserError(f"metric {repeated[0]!r} is named twice")
        self.metrics: dict[str, Metric] = {
            name: metrics_registry[name](resources=str(resources), device=device) for name in names
        }
        reasons = {name: metric.missing() for name, metric in self.metrics.items()}
        self.missing = {name: reason for name, reason in reasons.items() if reason}

    def columns(self, *, reference: bool | None = None) -> list[str]:
        """Names of the numbers; with `reference`, only those of metrics that do or do not need one."""
        return [
            column
            for metric in self.metrics.values()
            if reference in (None, metric.needs.reference)
            for column in metric.columns
        ]

    def missing_columns(self) -> dict[str, str]:
        """The numbers that are not computed, each with the reason."""
        return {column: reason for name, reason in self.missing.items() for column in self.metrics[name].columns}

    def better(self, column: str) -> Better:
        """What is better in this column."""
        return next(metric.better for metric in self.metrics.values() if column in metric.columns)

    def score(self, utterance: Utterance, *, only_without_reference: bool = False) -> Scores:
        """Every available score of this utterance; for the others, the reason."""
        scores = Scores()
        for name, metric in self.metrics.items():
            if name in self.missing or (only_without_reference and metric.needs.reference):
                continue
            try:
                values = metric.score(utterance)
            except Unscored as reason:
                scores.reasons.update(dict.fromkeys(metric.columns, str(reason)))
                continue
            for column, value in values.items():
                if math.isfinite(value):
                    scores.values[column] = value
                else:
                    scores.reasons[column] = f"the computation gave {value}"
        return scores


def summarise(all_scores: Iterable[Scores], columns: Sequence[str]) -> dict[str, Summary]:
    """Mean and 95 % confidence interval (Student's t over utterances) of each column, and counts of missing scores."""
    all_scores = list(all_scores)
    summaries = {}
    for column in columns:
        values = [scores.values[column] for scores in all_scores if column in scores.values]
        reasons = Counter(scores.reasons[column] for scores in all_scores if column in scores.reasons)
        summaries[column] = Summary(
            *mean_and_interval(values), len(values), reasons.total(), dict(sorted(reasons.items(), key=_frequent_first))
        )
    return summaries


def describe(
    summaries: Mapping[str, Summary], missing: Mapping[str, str], inputs: Mapping[str, Summary] | None = None
) -> str:
    """The summaries as text, one line per column, with the reason of a missing one and the mean of the inputs."""
    lines = []
    width = max(map(len, summaries), default=0)
    for column, summary in summaries.items():
        line = f"{summary.mean:8.3f} ± {summary.ci95:.3f}  n {summary.n}"
        if column in (inputs or {}):
            line += f"  (input {inputs[column].mean:.3f})"
        line += f"  unscored: {summary.reasons_text}" if summary.unscored else ""
        lines.append(f"{column:{width}}  {missing.get(column, line)}")
    return "\n".join(lines)


def _frequent_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % confidence interval (Student's t); NaN if there are too few values."""
    n = len(values)
    if n == 0:
        return math.nan, math.nan
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    return mean, t_quantile(n - 1) * deviation / math.sqrt(n)


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))
