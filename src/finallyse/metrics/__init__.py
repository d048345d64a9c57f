"""Metrics of enhanced speech by their published names.

    metrics = MetricSet(["wb_pesq", "dnsmos"], resources="resources")
    scores = metrics.score(Utterance(enhanced, 16000, reference))
    scores.values    # {"wb_pesq": 2.9, "dnsmos": 3.1, "dnsmos_sig": ...}
    scores.reasons   # {column: why it has no value}

Importing this package loads nothing heavy: each metric imports its libraries when it first scores.
"""

from collections.abc import Iterator, Mapping

from finallyse.metrics.base import Better, Metric, Needs, Unscored, Utterance, goodness
from finallyse.registry import Registry, attributes, methods


def _contract(cls: type) -> Iterator[str]:
    yield from methods(cls, Metric, "score")
    yield from attributes(cls, needs=Needs, columns=Mapping)


metrics_registry = Registry("metric", _contract)

# Each module registers its metrics in `metrics_registry`, which must be defined first.
from finallyse.metrics import dnsmos, guards, intrusive, networks  # noqa: E402, F401
from finallyse.metrics.measure import MetricSet, Scores, Summary, summarise  # noqa: E402


def metric_of(column: str) -> str | None:
    """The registry name of the metric that reports this number, or None: dnsmos for dnsmos_sig."""
    return next((name for name, metric in metrics_registry.items() if column in metric.columns), None)


def label_of(column: str) -> str:
    """A number's name in reports: DNSMOS SIG for dnsmos_sig; its own name if no metric reports it."""
    name = metric_of(column)
    return metrics_registry[name].columns[column] if name else column


def headlines() -> list[str]:
    """The metrics that a report shows first and ranks utterances by, in that order."""
    ranked = [name for name, metric in metrics_registry.items() if metric.rank is not None]
    return sorted(ranked, key=lambda name: metrics_registry[name].rank)


__all__ = [
    "Better",
    "Metric",
    "MetricSet",
    "Needs",
    "Scores",
    "Summary",
    "Unscored",
    "Utterance",
    "goodness",
    "headlines",
    "label_of",
    "metric_of",
    "metrics_registry",
    "summarise",
]
