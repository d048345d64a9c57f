"""The report as one HTML file: the collected results in words, charts and players."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import pandas
import yaml
from markupsafe import Markup

from finallyse import __version__, atomic
from finallyse.errors import UserError
from finallyse.losses import losses_registry
from finallyse.metrics import headlines, label_of, metrics_registry
from finallyse.report import figures, paired
from finallyse.report.collect import Compared, Network, Report, Score
from finallyse.report.figures import Interval, Series, counted, number, style_of, with_interval
from finallyse.report.listen import (
    SIGNALS,
    Options,
    Sounds,
    chosen,
    network_players,
    player,
    ranking_metric,
    shared_utterances,
)
from finallyse.report.paired import LEVEL_TOLERANCE_DB, Trend, trends
from finallyse.report.swept import Cell, Setting, Swept

FOLDER = Path(__file__).parent

FAR = 0.5
"""A run with less than this share of the recipe's steps, batch or parameters counts as far from it."""

SHOWN_ABSENT = 5
"""Names of a sweep's networks without results."""


def write(report: Report, output: Path, options: Options, augmentations: Path | None = None) -> int:
    """Render `report` to `output`, atomically; returns its size in bytes.

    Args:
        augmentations: the executed notebooks/augmentations.ipynb, which the page links to.
    """
    if options.rank_by:
        check_ranking(report, options.rank_by)
    output.parent.mkdir(parents=True, exist_ok=True)
    link = quote(os.path.relpath(augmentations, output.parent)) if augmentations else None
    page = render(report, options, link).encode()
    atomic.write_bytes(output, page)
    return len(page)


def render(report: Report, options: Options, augmentations: str | None = None) -> str:
    """The page; `augmentations`: address of the page of augmentations, relative to it."""
    sounds = Sounds(options.seconds)
    stages = _stages(report, options, sounds)  # first, since a sound is embedded at its first use
    networks = [_network(network, report, options, sounds) for network in report.networks]
    published = _published(report)
    rules = _rules(report)
    sections = [("overview", "Overview")] if networks or report.absent else []
    sections += [("stages", "FINALLY’s stages")] if stages else []
    sections += [("sweeps", "Sweeps")] if report.sweeps else []
    sections += [("networks", "Networks")] if networks else []
    sections += [("published", "Published numbers")] if published else []
    sections += [("missing", "Missing"), ("run", "The run")]
    return render_page(
        "report.html.j2",
        title=report.title,
        subtitle=f"{_what(report)} · {report.results} · {report.made:%d %B %Y, %H:%M %Z}",
        sections=sections,
        banner=_banner(report),
        overview=_overview(report),
        absent=report.absent,
        stages=stages,
        sweeps=[_sweep(swept) for swept in report.sweeps],
        networks=networks,
        published=published,
        published_note=_published_note(report),
        missing=_missing(report),
        augmentations=augmentations,
        environment=list(report.environment.items()),
        rules=rules,
        rules_note=(
            "Time and peak resident memory as Snakemake measured them, summed over the jobs of each rule. Jobs too "
            "short to be sampled have no memory. A training that was interrupted counts from its last start."
        ),
        jobs=[
            {
                "name": f"{job.rule} {job.name}".strip(),
                "time": duration(job.seconds),
                "cpu": duration(job.cpu_seconds),
                "memory": megabytes(job.memory_mb),
            }
            for job in report.jobs
        ],
        footer=(
            f"Made by finallyse {report.environment['finallyse']} from {report.results}. The players use MP3 "
            f"at 64 kbit/s (16 kHz) and 128 kbit/s (48 kHz), cut to {options.seconds:g} s; the metrics were computed "
            f"from the whole WAV files in {report.results}/enhanced. This file loads nothing from elsewhere."
        ),
    )


def render_page(template: str, **content: Any) -> str:
    """A page that extends page.html.j2, which needs title, subtitle, sections (id, title), banner and footer."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        version=__version__,
        style=Markup((FOLDER / "style.css").read_text() + figures.CHART_STYLE),
        script=Markup((FOLDER / "player.js").read_text()),
        **content,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Words and numbers


def duration(seconds: float) -> str:
    """12.3 s, 4 min 5 s, 3 h 20 min."""
    if not math.isfinite(seconds):
        return "–"
    if seconds < 99.95:
        return f"{number(seconds, 2)} s" if seconds < 1 else f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def megabytes(value: float) -> str:
    """Snakemake's MB (in fact MiB) as MiB or GiB."""
    if not math.isfinite(value):
        return "–"
    return f"{value / 1024:.1f} GiB" if value >= 1024 else f"{value:.0f} MiB"


def count(value: int | float | None) -> str:
    """12,345 or 76.97 M."""
    if value is None:
        return "–"
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value:,.0f}"


def speech(hours: float) -> str:
    """Hours, or minutes below an hour."""
    return f"{hours:,.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def percent(share: float) -> str:
    """A share in per cent, to two significant digits."""
    return f"{number(100 * share, 2)} %"


def _between(values: Sequence[str]) -> str:
    values = list(dict.fromkeys(values))
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"


def _anchor(name: str) -> str:
    return "net-" + re.sub(r"[^A-Za-z0-9_-]", "-", name)


# ---------------------------------------------------------------------------------------------------------------------
# Banner and overview


def _banner(report: Report) -> dict[str, Any] | None:
    """How far the run is from the recipes, by configurations and checkpoints alone, and what it shows."""
    scaled = [n for n in report.networks if n.scale and n.scale.recipe_steps]
    short = [n for n in scaled if n.scale.share < 1]
    shown = findings(report)
    if not short:
        return {"level": "note", "headline": "What this run shows", "lines": shown} if shown else None
    far = [n for n in short if n.scale.share < FAR]
    words = []
    named = far or short
    fewer = [n.scale for n in named if n.scale.steps < n.scale.recipe_steps]
    if fewer:
        have, want = sorted({s.steps for s in fewer}), sorted({s.recipe_steps for s in fewer})
        words.append(
            f"{_between([f'{v:,}' for v in have])} training steps instead of {_between([f'{v:,}' for v in want])}"
        )
    smaller = [n.scale for n in named if n.scale.parameters and (n.scale.recipe_parameters or 0) > n.scale.parameters]
    if smaller:
        shares = sorted(s.parameters / s.recipe_parameters for s in smaller)
        words.append(f"generators with {_between([percent(v) for v in shares])} of the parameters")
    batches = [n.scale for n in named if n.scale.recipe_batch_size and n.scale.batch_size < n.scale.recipe_batch_size]
    if batches:
        have = sorted({s.batch_size for s in batches})
        want = sorted({s.recipe_batch_size for s in batches})
        words.append(f"batches of {_between([str(v) for v in have])} instead of {_between([str(v) for v in want])}")
    hours = [n.data.hours for n in named if n.data]
    if hours:
        words.append(f"on {_between([speech(v) for v in sorted(hours)])} of speech")
    which = "Every network here was" if len(named) == len(report.networks) else f"{', '.join(n.name for n in named)}:"
    if far:
        return {
            "level": "warning",
            "headline": "A demonstration, not a reproduction",
            "lines": [
                f"{which} trained far below its recipe: {', '.join(words)}.",
                *shown,
                "This is about the networks as trained in this run, not about the methods trained by their recipes.",
            ],
        }
    return {
        "level": "note",
        "headline": "Close to the recipe, not equal to it",
        "lines": [f"{which} trained with less than its recipe: {', '.join(words)}.", *shown],
    }


def findings(report: Report) -> list[str]:
    """The findings in words, one per line: paired differences in the headline metrics, levels, vocoders."""
    having = [(n, [s for s in n.scores if not s.missing]) for n in report.networks]
    judged = [(n.name, s.label, s.verdict) for n, scores in having for s in scores if s.metric in headlines()]
    judged = [(name, label, verdict) for name, label, verdict in judged if verdict]
    lines = []
    if judged:
        of = "95 % interval of the paired differences over the validation set"
        better, worse = (_by_network(judged, verdict) for verdict in ("better", "worse"))
        unclear = sum(verdict == "no clear difference" for *_, verdict in judged)
        lines.append(f"Better than its input ({of}): {better or 'no network in any metric'}.")
        lines.append(f"Worse: {worse or 'none'}. No clear difference: {unclear} of {len(judged)} comparisons.")
    wrong = [n.name for n, scores in having if any(s.verdict == "wrong level" for s in scores)]
    if wrong:
        lines.append(f"More than {LEVEL_TOLERANCE_DB:g} dB off the reference’s level: {', '.join(wrong)}.")
    for network, scores in having:
        if scores and all(s.input is None for s in scores):  # a vocoder
            found = [_trend(t) for t in trends(network.validation) if t.metric in headlines()]
            if found:
                lines.append(f"{network.name} has no input to compare with; its validations: {'; '.join(found)}.")
    return lines


def _by_network(judged: Sequence[tuple[str, str, str]], wanted: str) -> str:
    """`a, b in WB-PESQ, STOI; c in STOI`: networks and the metrics in which their verdict is `wanted`."""
    metrics: dict[str, list[str]] = {}
    for name, label, verdict in judged:
        if verdict == wanted:
            metrics.setdefault(name, []).append(label)
    groups: dict[tuple[str, ...], list[str]] = {}
    for name, labels in metrics.items():
        groups.setdefault(tuple(labels), []).append(name)
    return "; ".join(f"{', '.join(names)} in {', '.join(labels)}" for labels, names in groups.items())


def _trend(trend: Trend) -> str:
    """`WB-PESQ rising from 1.05 at step 15 to 1.30 at step 30`."""
    (began, first), (ended, last) = trend.first, trend.last
    label = label_of(trend.metric)
    return f"{label} {trend.direction} from {number(first)} at step {began:,} to {number(last)} at step {ended:,}"


def _overview(report: Report) -> dict[str, Any]:
    computed = {s.metric for n in report.networks for s in n.scores if not s.missing}
    metrics = [m for m in headlines() if m in computed][:3]
    times = {job.name: job.seconds for job in report.jobs if job.rule == "train_network"}
    rows = []
    for network in report.networks:
        scale = network.scale
        scores = {s.metric: s for s in network.scores}
        rows.append(
            {
                "id": _anchor(network.name),
                "name": network.name,
                "task": network.task.text,
                "steps": f"{scale.steps:,}" if scale else "–",
                "steps_recipe": f"of {scale.recipe_steps:,}" if scale and scale.recipe_steps else "",
                "parameters": count(scale.parameters) if scale else "–",
                "parameters_recipe": f"of {count(scale.recipe_parameters)}"
                if scale and scale.recipe_parameters
                else "",
                "speech": speech(network.data.hours) if network.data else "–",
                "time": duration(times.get(network.name, math.nan)),
                "cells": [
                    {
                        "output": _mean(scores[m].output) if m in scores else "–",
                        "input": _mean(scores[m].input) if m in scores and scores[m].input else "",
                        "verdict": COLOURS.get(scores[m].verdict, "") if m in scores else "",
                    }
                    for m in metrics
                ],
            }
        )
    labels = [_label(m, report) for m in metrics]
    return {
        "rows": rows,
        "metrics": labels,
        "note": "Steps and generator parameters: of this run, of the recipe. Speech: length of the training set. "
        "Metrics: means over the validation set, of the output, from the input; coloured where the 95 % interval of "
        "the paired differences excludes 0.",
    }


def _label(metric: str, report: Report) -> str:
    return next(s.label for n in report.networks for s in n.scores if s.metric == metric)


def _mean(interval: Interval | None) -> str:
    return number(interval.mean) if interval else "–"


# ---------------------------------------------------------------------------------------------------------------------
# One network


def _network(network: Network, report: Report, options: Options, sounds: Sounds) -> dict[str, Any]:
    scale, facts = network.scale, []
    if scale:
        of = f" of {scale.recipe_steps:,}" if scale.recipe_steps and scale.recipe_steps != scale.steps else ""
        facts.append(("Steps", f"{scale.steps:,}{of}"))
        of = f" of {scale.recipe_batch_size}" if scale.recipe_batch_size not in (None, scale.batch_size) else ""
        facts.append(("Batch", f"{scale.batch_size}{of}"))
        if scale.parameters is not None:
            of = (
                f" of {count(scale.recipe_parameters)}"
                if scale.recipe_parameters and scale.recipe_parameters != scale.parameters
                else ""
            )
            facts.append(("Generator parameters", f"{count(scale.parameters)}{of}"))
    if network.history is not None and "seconds" in network.history and len(network.history):
        facts.append(("Time per step", duration(float(network.history["seconds"].median()))))
    if network.data:
        facts.append(("Training set", f"{counted(network.data.files, 'file')}, {speech(network.data.hours)}"))
    if network.experiment:
        start = network.experiment.generator.init_from
        if start:
            facts.append(("Starts from", Path(start).stem))
    facts += network.facts
    trained = [c for c in network.compared if c.history is not None or c.validation is not None]
    history = curves(network.history, others=[(c.system.name, c.history) for c in trained])
    has_input = any(s.input is not None for s in network.scores)
    score = ranking_metric(network, options.rank_by)
    listen = f"Listen: ranked by {score.label}" if score else "Listen"
    utterances = shared_utterances(network)
    if score and len(utterances) > options.utterances:
        listen += f", {options.utterances} of {counted(len(utterances), 'utterance')}"
    if len(utterances) < len(network.utterances):
        names = " and ".join(compared.system.name for compared in network.compared)
        listen += f" that {names} {'has' if len(network.compared) == 1 else 'have'}"
    return {
        "id": _anchor(network.name),
        "name": network.name,
        "task": network.task.text,
        "facts": facts,
        "missing": network.missing,
        "rows": [_score_row(s) | {"compared": _compared_rows(network, s)} for s in network.scores],
        "has_compared": bool(network.compared),
        "has_input": has_input,
        "has_plot": has_input or any(s.reference is not None for s in network.scores),
        "has_reference": any(s.reference is not None for s in network.scores),
        "input_label": network.task.input_label or "Input",
        "curves": [chart for chart in history if not chart["minor"]],
        "balance": balance(network.history),
        "minor_curves": [chart for chart in history if chart["minor"]],
        "validations": curves(network.validation, True, [(c.system.name, c.validation) for c in trained]),
        "legend": legend([network.name, *(c.system.name for c in trained)]),
        "players": network_players(network, options, sounds),
        "listen": listen,
        "config": yaml.safe_dump(network.config, sort_keys=False, width=100) if network.config else "",
        "differences": network.differences,
    }


def curves(
    table: pandas.DataFrame | None,
    dots: bool = False,
    others: Sequence[tuple[str, pandas.DataFrame | None]] = (),
) -> list[dict[str, Any]]:
    """A chart of every quantity over `step`; quantities that are monitored rather than minimised are `minor`.

    others: names and tables of other trainings, drawn over it, the first with tone 1.
    """
    tables = [("", table), *others]
    columns = dict.fromkeys(column for _, of in tables if of is not None for column in of)
    charts = []
    for column in sorted(columns, key=lambda c: c.startswith("disc") or "_disc" in c):  # the generator's first
        if column in ("step", "items", "seconds") or column.startswith(BALANCE):
            continue
        own, *over = [_series(of, column, name, tone) for tone, (name, of) in enumerate(tables)]
        svg = figures.curve(own.steps, own.values, column, dots=dots, others=over)
        if not svg:  # nothing finite
            continue
        values = np.asarray(own.values, dtype=float)
        tenth = max(1, len(values) // 10)  # single steps are noisy: the ends are means of a tenth of the run
        ends = [number(float(part.mean())) for part in (values[:tenth], values[-tenth:])] if len(values) else []
        charts.append(
            {
                "title": _title(column, validation=dots),
                "change": " → ".join(ends[-1:] if dots and len(values) == 1 else ends),
                "minor": column.startswith(("lr_", "grad_norm_")),
                "svg": Markup(svg),
            }
        )
    return charts


def _series(table: pandas.DataFrame | None, column: str, name: str, tone: int) -> Series:
    """A column of a training's table; empty for text, and for the sum of a single loss of weight 1."""
    if table is None or column not in table or not pandas.api.types.is_numeric_dtype(table[column]):
        return Series((), (), name, tone)
    terms = [term for term in SUMS.get(column, ()) if term in table]
    if any(np.allclose(table[term], table[column], equal_nan=True) for term in terms):
        return Series((), (), name, tone)
    present = table[["step", column]].dropna()
    return Series(present["step"], present[column], name, tone)


def legend(names: Sequence[str | None]) -> list[dict[str, str]]:
    """The names of the curves over each other, with their styles; None: one that is not there; () for a single one."""
    if len(names) < 2:
        return []
    return [{"name": name, "style": style_of(tone)} for tone, name in enumerate(names) if name]


def balance(table: pandas.DataFrame | None) -> dict[str, Any] | None:
    """Gradient norms of the generator's losses at the waveform, first and last; None if there is only one loss."""
    columns = [] if table is None else [column for column in table if column.startswith(BALANCE)]
    present = table.dropna(how="all", subset=columns) if len(columns) > 1 else []
    if not len(present):
        return None
    first, last = present.iloc[0], present.iloc[-1]
    most = last[columns].max()
    rows = []
    for column in columns:
        loss = column.removeprefix(BALANCE)
        share = number(float(last[column] / most), 2) if most > 0 else "–"
        values = [number(float(row[column])) for row in (first, last)]
        rows.append({"label": _label_of_loss(loss), "first": values[0], "last": values[1], "share": share})
    return {"rows": rows, "first": f"{int(first['step']):,}", "last": f"{int(last['step']):,}"}


BALANCE = "grad_wav_"
"""Prefix of the columns of history.csv with the norm of a loss's gradient at the waveform."""

SUMS = {"generator": ("lmos", "l1_mel_loss", "gen_loss"), "discriminator": ("disc_loss",)}
"""Columns that are weighted sums, and the losses of which each may consist alone."""

LABELS = {
    "generator": "generator, weighted sum",
    "discriminator": "discriminators, weighted sum",
    "lr_generator": "learning rate, generator",
    "lr_discriminator": "learning rate, discriminators",
    "grad_norm_generator": "gradient norm, generator",
    "grad_norm_discriminator": "gradient norm, discriminators",
}
"""Titles of the columns of history.csv that are not losses."""


def _label_of_loss(name: str) -> str:
    return losses_registry[name].label if name in losses_registry else name


def _title(column: str, validation: bool) -> str:
    """The title of a column of validation.csv or history.csv."""
    if validation:
        return label_of(column)
    return LABELS.get(column) or _label_of_loss(column).replace("_", " ")


ARROWS = {
    "higher": ("↑", "higher is better"),
    "lower": ("↓", "lower is better"),
    "zero": ("→ 0", "nearest to 0 is best"),
}
"""A metric's `better` -> its symbol in the page, and the text for screen readers."""


COLOURS = {"better": "better", "worse": "worse", "right level": "better", "wrong level": "worse"}
"""A score's verdict -> the class that colours it; other verdicts have no colour."""


def _score_row(score: Score) -> dict[str, Any]:
    arrow, said = ARROWS[score.better]
    row: dict[str, Any] = {
        "label": score.label,
        "about": score.about,
        "unit": score.unit,
        "arrow": arrow,
        "arrow_said": said,
        "missing": score.reason if score.missing else "",
        "scored": score.scored,
        "failed": score.failed,
        "reason": score.reason,
    }
    if score.missing:
        return row
    row["reference"] = with_interval(score.reference)
    row |= {"output": with_interval(score.output), "input": with_interval(score.input), "change": "–"}
    row["verdict"], row["unpaired"] = COLOURS.get(score.verdict, ""), ""
    if score.better == "zero":
        row["change"] = score.verdict
    elif score.change:
        row["change"] = with_interval(score.change.interval, signed=True)
        if score.change.unpaired:
            row["unpaired"] = f"of {counted(score.change.pairs, 'pair')}"
    row["plot"] = Markup(figures.interval_pair(score.input, score.output, score.label, score.reference))
    return row


def _compared_rows(network: Network, score: Score) -> list[dict[str, Any]]:
    """The rows of the compared systems in one metric of the network."""
    return [
        _compared_row(compared, theirs, len(network.utterances))
        for compared in network.compared
        for theirs in compared.scores
        if theirs.metric == score.metric and not (theirs.missing and score.missing)
    ]


def _compared_row(compared: Compared, score: Score, items: int) -> dict[str, Any]:
    """The row of a system, whose difference is the network minus the system; `items`: of the validation set."""
    row = _score_row(score)
    have = len(compared.utterances)
    row |= {
        "system": compared.system.name,
        "coverage": f"{have} of {items} items" if have < items else counted(items, "item"),
    }
    difference = compared.differences.get(score.metric)
    row["difference"] = with_interval(difference.interval, signed=True) if difference else "–"
    row["difference_verdict"] = COLOURS.get(compared.verdict(score), "")
    return row


# ---------------------------------------------------------------------------------------------------------------------
# FINALLY's stages


def _stages(report: Report, options: Options, sounds: Sounds) -> dict[str, Any] | None:
    """FINALLY's networks side by side: one chart per metric, the same utterances through every stage."""
    stages = [n for n in report.networks if n.is_finally]
    if len(stages) < 2:
        return None
    charts = []
    for metric in dict.fromkeys(s.metric for n in stages for s in n.scores if not s.missing):
        by_stage = [next((s for s in n.scores if s.metric == metric), None) for n in stages]
        label = next(s.label for s in by_stage if s)
        arrow, _ = ARROWS[next(s.better for s in by_stage if s)]
        rows = [
            (_short(n.name), s.input if s else None, s.output if s else None)
            for n, s in zip(stages, by_stage, strict=True)
        ]
        svg = figures.dot_plot(rows, label)
        if svg:
            charts.append({"title": f"{label} {arrow}", "svg": Markup(svg)})
    named = [{u.name: u for u in n.utterances} for n in stages]
    common = [u for u in stages[-1].utterances if all(u.name in names for names in named)]
    last = dataclasses.replace(stages[-1], utterances=common)
    score = ranking_metric(last, options.rank_by)
    players = []
    for utterance, badge in chosen(last, options):
        signals = []
        for kind in ("noisy", "reference"):
            if kind in utterance.paths:
                label = last.task.input_label or "Input" if kind == "noisy" else SIGNALS[kind]
                signals.append((kind, label, utterance.paths[kind], ""))
        between = []
        for stage, names in zip(stages, named, strict=True):
            value = names[utterance.name].scores.get(score.metric, math.nan) if score else math.nan
            note = f"{score.label} {number(value)}" if score and math.isfinite(value) else ""
            between.append(("enhanced", _short(stage.name), names[utterance.name].paths["enhanced"], note))
        at = 1 if signals and signals[0][0] == "noisy" else 0
        players.append(player(utterance.name, signals[:at] + between + signals[at:], sounds, badge=badge))
    text = f"The same validation utterances through {counted(len(stages), 'network')}, in the order of training."
    if players and score:
        text += f" Best and worst are those of {stages[-1].name} by {score.label}."
    return {"text": text, "charts": charts, "players": players}


def _short(name: str) -> str:
    """stage 3 pretrain for finally_stage3_pretrain."""
    text = re.sub(r"(\d)", r" \1", name.removeprefix("finally_").replace("_", " "))
    return text[:1].upper() + text[1:]


# ---------------------------------------------------------------------------------------------------------------------
# Sweeps


def _what(report: Report) -> str:
    """9 networks, 1 sweep."""
    parts = [counted(len(report.networks), "network")] if report.networks or not report.sweeps else []
    return ", ".join(parts + ([counted(len(report.sweeps), "sweep")] if report.sweeps else []))


def _sweep(swept: Swept) -> dict[str, Any]:
    """A row for each setting, a cell for each metric."""
    scores = [score for score in swept.scores if any(score.metric in setting.cells for setting in swept.settings)]
    text = f"{swept.sweep.base}, varied in {', '.join(swept.sweep.options)}. "
    if swept.has_seeds:
        text += (
            "First line: mean and standard deviation (±) over the seeds of the means over the validation set; without "
            "± there is one seed. "
        )
    else:
        text += "First line: mean over the validation set. "
    if any(cell.change for setting in swept.settings for cell in setting.cells.values()):
        text += "Change: output minus input. "
    text += "Against the first row: this row’s output minus the first row’s. "
    text += "Both are means of each utterance’s difference with the 95 % interval over utterances"
    text += (
        ", of the mean over the seeds: chance of the seeds is not in it, compare with ±." if swept.has_seeds else "."
    )
    return {
        "id": f"sweep-{_anchor(swept.sweep.name)}",
        "name": swept.sweep.name,
        "text": text,
        "options": swept.options,
        "has_seeds": swept.has_seeds,
        "metrics": [
            {
                "label": s.label,
                "unit": s.unit,
                "about": s.about,
                "arrow": ARROWS[s.better][0],
                "said": ARROWS[s.better][1],
            }
            for s in scores
        ],
        "rows": [
            {
                "values": setting.values,
                "networks": ", ".join(setting.networks),
                "seeds": _seeds(setting),
                "cells": [_cell(setting.cells.get(score.metric), score) for score in scores],
            }
            for setting in swept.settings
        ],
    }


def _seeds(setting: Setting) -> str:
    """3, or `2 of 3` where some have no results."""
    have, want = len(setting.measured), len(setting.networks)
    return str(have) if have == want else f"{have} of {want}"


def _cell(cell: Cell | None, score: Score) -> dict[str, str]:
    """The texts of a cell, with the colour of each difference."""
    none = dict.fromkeys(("change", "change_colour", "difference", "difference_colour"), "")
    if cell is None:
        return {"mean": "–", **none}
    spread = Interval(cell.mean, cell.mean - cell.deviation, cell.mean + cell.deviation)
    texts = {"mean": with_interval(spread), **none}
    for key, found in (("change", cell.change), ("difference", cell.difference)):
        if found and found.pairs and score.better != "zero":
            texts[key] = with_interval(found.interval, signed=True)
            texts[f"{key}_colour"] = COLOURS.get(paired.verdict(found.interval, score.better), "")
    return texts


# ---------------------------------------------------------------------------------------------------------------------
# Published numbers, what is missing, the rules


def _published(report: Report) -> list[dict[str, Any]]:
    groups = []
    for network in report.networks:
        scores = {s.metric: s for s in network.scores}
        rows = []
        for entry in report.published:
            if entry.network != network.recipe:
                continue
            score = scores.get(entry.metric)
            label = PUBLISHED_LABELS.get(entry.metric) or label_of(entry.metric)
            rows.append(
                {
                    "metric": label,
                    "ours": with_interval(score.output) if score and not score.missing else "–",
                    "over": counted(score.scored, "utterance") if score and not score.missing else "",
                    "value": entry.value,
                    "reference": f"ground truth {entry.reference_value}" if entry.reference_value else "",
                    "system": entry.system,
                    "dataset": entry.dataset,
                    "source": entry.source,
                    "url": entry.url,
                    "mark": entry.mark,
                    "differs": entry.differs,
                }
            )
        if rows:
            groups.append({"network": network.name, "rows": rows})
    return groups


PUBLISHED_LABELS = {
    "mos": "MOS (listeners)",
    "rtf": "Real-time factor",
    "speed": "Times real time",
    "utmos": "UTMOS",
    "dnsmos": "DNSMOS",
}
"""Labels of published numbers that are not, or may not be, the metric of the same name here."""


def _published_note(report: Report) -> str:
    far = [n for n in report.networks if n.scale and n.scale.share < FAR]
    note = (
        "Published numbers, each with its source and its difference from the number beside it. "
        "This run was measured on its own validation sets."
    )
    if far:
        note += (
            " This run is far below its recipes, so none of these pairs can be compared: they only show where the "
            "numbers of a full run belong."
        )
    return note


def _missing(report: Report) -> list[dict[str, str]]:
    entries = [{"what": f"{name}: no results yet", "where": ""} for name in report.absent]
    for network in report.networks:
        entries += [{"what": f"{network.name}: {what}", "where": ""} for what in network.missing]
    by_reason: dict[tuple[str, str], list[str]] = {}
    for network in report.networks:
        for score in network.scores:
            if score.missing:
                by_reason.setdefault((score.label, score.reason), []).append(network.name)
            elif score.failed:
                what = f"{score.label}: {counted(score.failed, 'utterance')} of {network.name} not scored"
                entries.append({"what": what, "where": score.reason})
        for compared in network.compared:
            absent = [u.name for u in network.utterances if u.name not in compared.utterances]
            if absent:
                of = f"{len(absent)} of {counted(len(network.utterances), 'utterance')} of {network.name}"
                where = f"not in {compared.system.folder}, e.g. {absent[0]}"
                entries.append({"what": f"{compared.system.name}: {of}", "where": where})
    for swept in report.sweeps:
        if swept.absent:
            of = f"{len(swept.absent)} of {counted(len(swept.sweep.networks), 'network')} without results"
            more = ", …" if len(swept.absent) > SHOWN_ABSENT else ""
            entries.append(
                {"what": f"{swept.sweep.name}: {of}", "where": ", ".join(swept.absent[:SHOWN_ABSENT]) + more}
            )
        for score in swept.scores:
            if score.missing:
                by_reason.setdefault((score.label, score.reason), []).append(f"sweep {swept.sweep.name}")
    for (label, reason), names in by_reason.items():
        everywhere = len(names) == len(report.networks) + len(report.sweeps)
        entries.append({"what": f"{label}: {reason}", "where": "" if everywhere else ", ".join(names)})
    measured = {score.metric for shown in [*report.networks, *report.sweeps] for score in shown.scores}
    unrequested = [label_of(name) for name in metrics_registry if name not in measured]
    if measured and unrequested:
        entries.append({"what": f"Not requested: {', '.join(unrequested)}", "where": "(the configuration's metrics)"})
    return entries


def _rules(report: Report) -> list[dict[str, Any]]:
    by_rule: dict[str, list] = {}
    for job in report.jobs:
        by_rule.setdefault(job.rule, []).append(job)
    total = {rule: sum(j.seconds for j in jobs) for rule, jobs in by_rule.items()}
    most = max(total.values(), default=1) or 1
    return [
        {
            "rule": rule,
            "jobs": len(jobs),
            "time": duration(total[rule]),
            "share": 100 * total[rule] / most,
            "longest": duration(max(j.seconds for j in jobs)),
            "memory": megabytes(max((j.memory_mb for j in jobs if math.isfinite(j.memory_mb)), default=math.nan)),
        }
        for rule, jobs in sorted(by_rule.items(), key=lambda item: -total[item[0]])
    ]


def check_ranking(report: Report, metric: str) -> None:
    """Raise UserError if no network was measured with `metric`."""
    known = {s.metric for n in report.networks for s in n.scores if not s.missing}
    if metric not in known:
        raise UserError(f"--rank-by {metric}: not among the metrics of this run ({', '.join(sorted(known)) or 'none'})")


# ---------------------------------------------------------------------------------------------------------------------
# Charts as files, for `snakemake --report`


def write_figures(report: Report, folder: Path) -> None:
    """NETWORK.training.svg and NETWORK.metrics.svg of every network, written atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for network in report.networks:
        training = [(c["title"], c["svg"]) for c in curves(network.history) + curves(network.validation, dots=True)]
        label = network.task.input_label or "Input"
        metrics = [
            (f"{s.label} {ARROWS[s.better][0]} {s.unit}".strip(), figures.dot_plot(rows, s.label))
            for s in network.scores
            if not s.missing
            for rows in [[*([(label, s.input, None)] if s.input else []), ("Output", None, s.output)]]
        ]
        for name, charts in (("training", training), ("metrics", metrics)):
            atomic.write_bytes(folder / f"{network.name}.{name}.svg", figures.standalone(charts).encode())
