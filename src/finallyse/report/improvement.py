"""Whether each network learnt: a table of its gains over its input, and a check of the goals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas

from finallyse.errors import UserError, nearest
from finallyse.metrics import goodness, metric_of
from finallyse.report.collect import Score, read_scores, read_validation
from finallyse.report.figures import counted, number, with_interval
from finallyse.report.paired import LEVEL_TOLERANCE_DB, level_verdict, trends

CURVE_ROWS = 12
"""Validations of a network that are listed, evenly spaced from the first to the last."""


@dataclasses.dataclass(frozen=True)
class Goals:
    """Metrics in which a network must beat its input, and means that its output must reach."""

    improves: Mapping[str, Sequence[str]]
    """Network -> metrics."""
    reaches: Mapping[str, Mapping[str, float]]
    """Network -> metric -> number."""

    def __bool__(self) -> bool:
        return bool(self.improves or self.reaches)


def parse_goals(improves: Sequence[str], reaches: Sequence[str], networks: Sequence[str]) -> Goals:
    """Goals from `NETWORK.METRIC` and `NETWORK.METRIC=NUMBER`; UserError for unknown names and other values."""

    def split(option: str, text: str, name: str) -> tuple[str, str]:
        network, _, metric = name.rpartition(".")
        if network not in networks:
            raise UserError(f"{option} {text}: no network {network!r} among --networks; {nearest(network, networks)}")
        if metric_of(metric) is None:
            raise UserError(f"{option} {text}: no metric {metric!r}; `python scripts/evaluate.py --help` lists them")
        return network, metric

    better: dict[str, list[str]] = {}
    numbers: dict[str, dict[str, float]] = {}
    for text in improves:
        network, metric = split("--improves", text, text)
        better.setdefault(network, []).append(metric)
    for text in reaches:
        name, _, value = text.partition("=")
        network, metric = split("--reaches", text, name)
        try:
            numbers.setdefault(network, {})[metric] = float(value)
        except ValueError:
            raise UserError(f"--reaches {text}: must be NETWORK.METRIC=NUMBER") from None
    return Goals(better, numbers)


@dataclasses.dataclass(frozen=True)
class Row:
    """One metric of one network, with its goals and the reason for each goal that is not met."""

    network: str
    score: Score
    trend: str
    asked: tuple[str, ...]
    unmet: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Improvement:
    """All networks' metrics and validations."""

    rows: list[Row]
    validations: dict[str, pandas.DataFrame | None]

    @property
    def unmet(self) -> list[str]:
        """A line for each goal that is not met."""
        return [line for row in self.rows for line in row.unmet]


def improvement(results: Path, networks: Sequence[str], goals: Goals) -> Improvement:
    """Read the tables of `networks` under `results` and judge them.

    Raises UserError for missing or unreadable tables, and for goals in metrics that were not measured.
    """
    rows, validations = [], {}
    for network in networks:
        scores = {score.metric: score for score in read_scores(results, network)}
        validations[network] = read_validation(results, network)
        directions = {trend.metric: trend.direction for trend in trends(validations[network])}
        better, reaches = goals.improves.get(network, ()), goals.reaches.get(network, {})
        for metric in [*better, *reaches]:
            if metric not in scores:
                raise UserError(
                    f"{results / 'metrics' / network}.summary.csv: has no {metric}, by which {network} is to be "
                    "judged; measure it again with that metric"
                )
        for metric, score in scores.items():
            demands = []
            if metric in better:
                clear = " in the mean" if score.verdict == "no clear difference" else ""
                demands.append((f"better{clear}", _not_better(score)))
            if metric in reaches:
                value = reaches[metric]
                sign = "≤" if score.better == "lower" else "≥"
                demands.append((f"{sign} {value:g}", _not_reached(score, value)))
            if score.better == "zero" and better:  # a vocoder's level is reported, but is no goal
                demands.append((f"within {LEVEL_TOLERANCE_DB:g} dB", _wrong_level(score)))
            rows.append(
                Row(
                    network,
                    score,
                    directions.get(metric, "") if score.input is None else "",
                    tuple(f"{what}: {'not met' if reason else 'met'}" for what, reason in demands),
                    tuple(f"{network}: {metric} {reason}" for _, reason in demands if reason),
                )
            )
    return Improvement(rows, validations)


def _not_better(score: Score) -> str | None:
    """Why the network does not beat its input in the mean of this metric; None if it does.

    Whether the interval excludes 0 is left to the verdict, since it also depends on the number of utterances.
    """
    if score.change is None:
        return f"must be better than the input's, which was not measured{_because(score)}"
    if score.change.pairs < 2:
        return f"must be better than the input's: {counted(score.change.pairs, 'pair')} to judge by{_because(score)}"
    if goodness(score.change.interval.mean, score.better) > 0:
        return None
    change = f"{with_interval(score.change.interval, signed=True)} over {counted(score.change.pairs, 'pair')}"
    means = f"output {number(score.output.mean)}, input {number(score.input.mean)}"
    return f"must be better than the input's: {score.verdict}, change {change} ({means})"


def _not_reached(score: Score, value: float) -> str | None:
    """Why the mean does not reach `value`; None if it does."""
    if score.output is None:
        return f"must reach {value:g}: it was not measured{_because(score)}"
    reached = score.output.mean <= value if score.better == "lower" else score.output.mean >= value
    return None if reached else f"must reach {value:g}: its mean is {_mean(score)}"


def _wrong_level(score: Score) -> str | None:
    """Why the level is not that of the reference; None if it is."""
    wanted = f"must be within {LEVEL_TOLERANCE_DB:g} dB of the reference's"
    if score.output is None:
        return f"{wanted}: it was not measured{_because(score)}"
    return None if level_verdict(score.output) == "right level" else f"{wanted}: its mean is {_mean(score)}"


def _because(score: Score) -> str:
    return f" ({score.reason})" if score.reason else ""


def _mean(score: Score) -> str:
    unit = f" {score.unit}" if score.unit else ""
    return f"{with_interval(score.output)}{unit} over {counted(score.scored, 'utterance')}"


def markdown(found: Improvement) -> str:
    """The table of gains, what is not met, and the validations of each network."""
    lines = [
        "# Does each network beat its input?",
        "",
        "Means over the validation set. Change: the mean of each utterance's output minus its own input, ± its 95 % "
        "interval (Student's t over utterances); better or worse where that interval excludes 0. n: utterances with "
        "both numbers (with the output's, if there is no input). A vocoder has no input: rising or falling is the "
        "trend of the validations during its training.",
        "",
        "| network | metric | input | output | change | n | verdict | asked for |",
        "|---|---|--:|--:|--:|--:|---|---|",
    ]
    for row in found.rows:
        score, change = row.score, row.score.change
        unit = f" ({score.unit})" if score.unit else ""
        cells = [
            row.network,
            f"`{score.metric}`{unit}",
            with_interval(score.input),
            with_interval(score.output),
            with_interval(change.interval, signed=True) if change else "–",
            _n(score),
            score.verdict or row.trend or ("not measured" if score.missing else "–"),
            "; ".join(row.asked),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if any(row.asked for row in found.rows):
        lines += ["", "## Not met", "", *([f"- {line}" for line in found.unmet] or ["Nothing: all is met."])]
    lines += ["", "## Validations during training"]
    for network, table in found.validations.items():
        lines += ["", f"### {network}", "", *_curve(table)]
    return "\n".join(lines) + "\n"


def _n(score: Score) -> str:
    """How many utterances the verdict is based on, out of how many."""
    n = score.change.pairs if score.change else score.scored
    left_out = score.change.unpaired if score.change else score.failed
    return f"{n} of {n + left_out}" if left_out else str(n)


def _curve(table: pandas.DataFrame | None) -> list[str]:
    """The trend of each metric, and a table of at most CURVE_ROWS validations."""
    if table is None or table.empty:
        return ["No validation yet."]
    columns = [column for column in table if metric_of(column)]
    lines = [
        f"- `{t.metric}` {t.direction}: {number(t.first[1])} at step {t.first[0]:,}, {number(t.last[1])} at step "
        f"{t.last[0]:,}; best {number(t.best[1])} at step {t.best[0]:,}"
        for t in trends(table)
    ]
    kept = sorted({int(i) for i in np.linspace(0, len(table) - 1, CURVE_ROWS).round()})
    lines += ["", f"{len(kept)} of {len(table)} validations:"] if len(kept) < len(table) else []
    lines += ["", f"| step | {' | '.join(f'`{column}`' for column in columns)} |", "|--:" * (1 + len(columns)) + "|"]
    for index in kept:
        step, values = int(table["step"].iloc[index]), [float(table[column].iloc[index]) for column in columns]
        texts = [number(value) if math.isfinite(value) else "–" for value in values]
        lines.append(f"| {' | '.join([f'{step:,}', *texts])} |")
    return lines
