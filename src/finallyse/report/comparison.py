"""Networks side by side: `finallyse compare` enhances or finds the same recordings, measures them, and writes a page.

With recordings (`--data`), each checkpoint enhances them as `finallyse enhance` does. Without, networks of folders of
results are compared by the validation items that all of them have enhanced, each against its own reference.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from finallyse import __version__, atomic
from finallyse.audio.io import decode, mono
from finallyse.audio.resample import resample
from finallyse.compare import Run, run_of, slug
from finallyse.errors import UserError
from finallyse.metrics import MetricSet, Scores, Summary, headlines, label_of, metric_of, metrics_registry, summarise
from finallyse.metrics.base import LENGTH_TOLERANCE_S
from finallyse.metrics.evaluate import evaluate, files_by_name
from finallyse.options import defines_run
from finallyse.pretrained import checkpoint_file
from finallyse.report.collect import flat_options, read_config_of, read_history, read_validation
from finallyse.report.figures import Interval, counted, number, style_of, with_interval
from finallyse.report.html import ARROWS, COLOURS, curves, legend, render_page
from finallyse.report.listen import Sounds, player, spread
from finallyse.report.paired import paired_difference, verdict

CLEAN, NOISY = "clean", "noisy"  # folders of pairs
INPUT, REFERENCE = "Input", "Clean"  # rows of the tables beside the systems
KEYS = {"noisy": "input", "reference": "reference"}  # their kinds -> the class of their keys
UNTOLD = ("exp.config_path", "exp.run_name", "exp.results", "exp.resources")  # names and folders
SAME_RATE, SAME = 8000, 0.5  # Hz; correlation above which two references are of the same recording
CHECKED = 12  # references that are compared, evenly spread


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared, and how.

    data: folder of recordings, or of folders clean/ and noisy/; None: the validation items of the systems.
    metrics: their names; None: the headlines that can be computed; ["all"]: all that can.
    limit: number of recordings, evenly spread over the list; None: all.
    threads, device, wavlm: of the enhancement; jobs: processes that measure.
    utterances, seconds: number of players, and how much each has of a recording.
    """

    data: Path | None = None
    metrics: Sequence[str] | None = None
    resources: str = "resources"
    limit: int | None = None
    device: str = "auto"
    threads: int | None = None
    jobs: int | None = None
    wavlm: str | None = None
    utterances: int = 6
    seconds: float = 8.0
    force: bool = False


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A system of the comparison: a checkpoint, or a network of a folder of results.

    run: whose configuration and training it is; of a checkpoint that stands in a folder of results as well.
    has_items: whether the run's enhanced files are its own: those beside a `.best.ckpt` are of the last step.
    """

    title: str
    source: str
    checkpoint: Path | None
    run: Run | None
    has_items: bool


@dataclasses.dataclass
class Row:
    """Signals that are measured: those of a system, the input, or the reference. Names -> files, and their scores.

    kind: of the player's tracks: noisy, enhanced, compared (and its colour), reference.
    summaries: of each number that can be computed for them.
    """

    title: str
    kind: str
    files: dict[str, Path]
    references: dict[str, Path]
    scores: dict[str, Scores] = dataclasses.field(default_factory=dict)
    summaries: dict[str, Summary] = dataclasses.field(default_factory=dict)
    unreadable: list[str] = dataclasses.field(default_factory=list)

    @property
    def table(self) -> pandas.DataFrame:
        """A row for each recording: `utterance`, and a column for each number."""
        rows = [{"utterance": name, **scores.values} for name, scores in self.scores.items()]
        return pandas.DataFrame(rows, columns=["utterance", *self.summaries])


def compare(systems: Sequence[str], output: Path, options: Options) -> int:
    """Compare systems, write the page, print its tables; returns the exit status: 1 if a recording could not be read.

    Args:
        systems: checkpoints, names of networks that come with the package, or RESULTS:NETWORK; each may be given
            another title by TITLE=... The first is the one that the others are compared with.
        output: the page, .html.

    Raises:
        UserError: before anything is computed, for systems, recordings and metrics that are not there.
    """
    if output.suffix != ".html":
        raise UserError(f"{output}: the page's name must end in .html")
    if output.exists() and not options.force:
        raise UserError(f"{output}: exists; give --force to replace it")
    candidates = parse_systems(systems)
    if len(candidates) < 2:
        raise UserError(f"{systems[0]}: give two systems or more to compare; the first is the one compared with")
    given = _recordings(options.data, candidates) if options.data else _validation_items(candidates)
    metrics = _metrics(options, given.has_reference)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compare-", dir=output.parent) as work:
        rows, failures = _signals(candidates, given, options, Path(work))
        _measure(rows, metrics, options, Path(work))
        page = _page(candidates, rows, given, failures, options)
        atomic.write_bytes(output, page.encode())
    for line in _told(rows, candidates):
        print(line)
    print(f"{output}: {counted(len(rows[-1].files), 'recording')}, {len(page.encode()) / 1e6:.1f} MB")
    return 1 if failures or any(row.unreadable for row in rows) else 0


# ---------------------------------------------------------------------------------------------------------------------
# What is compared


def parse_systems(texts: Sequence[str]) -> list[Candidate]:
    """The systems of the command line, with titles that differ."""
    found = [_parse(text) for text in texts]
    seen = collections.Counter(candidate.title for candidate in found)
    named = []
    for candidate in found:
        title = candidate.title
        if seen[title] > 1:
            title = f"{title} ({candidate.source})"
        if title in (INPUT, REFERENCE) or title in [other.title for other in named]:
            raise UserError(f"{candidate.source}: another signal is called {title!r}; name it: NAME={candidate.source}")
        named.append(dataclasses.replace(candidate, title=title))
    return named


def _parse(text: str) -> Candidate:
    title, equals, rest = text.partition("=")
    if not (equals and title and rest) or "/" in title or Path(text).exists():
        title, rest = "", text
    run = None if Path(rest).is_file() else run_of(rest)
    if run:
        checkpoint = run.checkpoint if run.checkpoint.is_file() else None
        if not (checkpoint or run.signals.is_dir()):
            raise UserError(f"{rest}: {run.results} has neither {run.checkpoint.name} nor enhanced/{run.network}")
        return Candidate(title or run.network, rest, checkpoint, run, run.signals.is_dir())
    if Path(rest).is_dir():
        raise UserError(f"{rest}: is a folder; a network of a folder of results is given as {rest.rstrip('/')}:NETWORK")
    folder, colon, _ = rest.rpartition(":")
    if colon and not Path(rest).is_file():
        raise UserError(f"{rest}: no such folder of results: {folder}")
    checkpoint = checkpoint_file(rest)
    beside = Run(checkpoint.parent, checkpoint.stem.removesuffix(".best"))
    run = beside if (beside.results / "state" / beside.network).is_dir() else None
    return Candidate(title or checkpoint.stem, rest, checkpoint, run, False)


@dataclasses.dataclass
class Given:
    """The recordings that are compared: name -> input, name -> reference; and remarks about those left out.

    of: without `--data`, the outputs and references of each candidate, by its title.
    """

    what: str
    inputs: dict[str, Path]
    references: dict[str, Path]
    notes: list[str]
    of: dict[str, tuple[dict[str, Path], dict[str, Path]]] = dataclasses.field(default_factory=dict)

    @property
    def has_reference(self) -> bool:
        return bool(self.references) or any(references for _, references in self.of.values())


def _recordings(data: Path, candidates: Sequence[Candidate]) -> Given:
    for candidate in candidates:
        if candidate.checkpoint is None:
            raise UserError(f"{candidate.source}: no {candidate.run.checkpoint}, which --data needs; leave --data out")
    pairs = [(data / name).is_dir() for name in (CLEAN, NOISY)]
    if not all(pairs):
        if any(pairs):
            raise UserError(
                f"{data}: has {CLEAN}/ or {NOISY}/ but not both; --data is a folder of pairs, or of any files"
            )
        return Given(f"recordings of {data}", files_by_name(data), {}, [])
    clean, noisy = files_by_name(data / CLEAN), files_by_name(data / NOISY)
    both = [name for name in noisy if name in clean]
    if not both:
        raise UserError(
            f"{data}: no file of {NOISY}/ has the name of one of {CLEAN}/ (e.g. {min(noisy)!r} and {min(clean)!r})"
        )
    notes = [
        f"{counted(len(files) - len(both), 'file')} of {data / name} without a counterpart"
        for name, files in ((CLEAN, clean), (NOISY, noisy))
        if len(files) > len(both)
    ]
    return Given(f"pairs of {data}", {n: noisy[n] for n in both}, {n: clean[n] for n in both}, notes)


def _validation_items(candidates: Sequence[Candidate]) -> Given:
    """The validation items that all candidates have enhanced, with the first one's inputs and references."""
    of, inputs, all_references = {}, {}, {}
    for candidate in candidates:
        if not candidate.has_items:
            raise UserError(
                f"{candidate.source}: without --data DIR, all systems must be RESULTS:NETWORK with enhanced files"
            )
        run = candidate.run
        folders = {kind: run.signals / kind for kind in ("enhanced", "reference", "noisy")}
        files = {kind: files_by_name(at) if at.is_dir() else {} for kind, at in folders.items()}
        of[candidate.title] = (files_by_name(run.enhanced), files["reference"])
        inputs[candidate.title], all_references[candidate.title] = files["noisy"], files["reference"]
    first, *others = of
    names = [name for name in of[first][0] if all(name in of[other][0] for other in others)]
    if not names:
        raise UserError(f"{candidates[0].source} and the others have no validation items in common; give --data DIR")
    for candidate in candidates[1:]:
        for name in spread(names, CHECKED):
            pair = [all_references[title].get(name) for title in (first, candidate.title)]
            if all(pair) and not _same_recording(*pair):
                sources = f"{candidates[0].source} and {candidate.source}"
                raise UserError(f"{sources}: different recordings are called {name!r}; give --data DIR")
    notes = [
        f"{counted(len(files) - len(names), 'validation item')} of {title}, which not all systems have"
        for title, (files, _) in of.items()
        if len(files) > len(names)
    ]
    return Given(
        "validation items",
        {name: inputs[first][name] for name in names if name in inputs[first]},
        {name: all_references[first][name] for name in names if name in all_references[first]},
        notes,
        {
            title: ({n: files[n] for n in names}, {n: references[n] for n in names if n in references})
            for title, (files, references) in of.items()
        },
    )


def _same_recording(one: Path, other: Path) -> bool:
    """Whether two references are of the same recording, at whatever rate and level."""
    wavs = [resample(mono(wav), rate, SAME_RATE) for wav, rate in (decode(one), decode(other))]
    if abs(len(wavs[0]) - len(wavs[1])) > LENGTH_TOLERANCE_S * SAME_RATE:
        return False
    length = min(map(len, wavs))
    a, b = (wav[:length].astype(np.float64) for wav in wavs)
    return float(a @ b) > SAME * math.sqrt(float(a @ a) * float(b @ b)) or not (a.any() or b.any())


def _metrics(options: Options, has_reference: bool) -> list[str]:
    """The metrics to compute. UserError for a named one that cannot be."""
    named = options.metrics if options.metrics and list(options.metrics) != ["all"] else None
    wanted = named or (list(metrics_registry) if options.metrics else headlines())
    found = MetricSet(wanted, options.resources, options.device)
    possible = []
    for name, metric in found.metrics.items():
        reason = found.missing.get(name)
        if metric.needs.reference and not has_reference:
            reason = "needs references, which there are none of"
        if reason and named:
            raise UserError(f"--metrics {name}: {reason.removeprefix('missing: ')}")
        possible += [] if reason else [name]
    if not possible:
        raise UserError("no metric can be computed; name one by --metrics to see what it needs")
    return possible


# ---------------------------------------------------------------------------------------------------------------------
# Signals and their scores


def _signals(
    candidates: Sequence[Candidate], given: Given, options: Options, work: Path
) -> tuple[list[Row], list[str]]:
    """The signals of the input, of each system, and of the reference; and the errors of those that cannot be made.

    All rows have the same recordings, but for inputs and references that there are none of.
    """
    outputs = given.of or {}
    names = list(given.inputs) if not outputs else list(next(iter(outputs.values()))[0])
    names = spread(names, options.limit or len(names))
    failures: list[str] = []
    if not outputs:
        for candidate in candidates:
            made, failed = _enhance(candidate, {n: given.inputs[n] for n in names}, options, work)
            outputs[candidate.title] = (made, given.references)
            failures += failed
        names = [name for name in names if all(name in files for files, _ in outputs.values())]
        if not names:
            raise UserError(f"no recording could be enhanced by all systems: {failures[0]}")

    def of(files: Mapping[str, Path]) -> dict[str, Path]:
        return {name: files[name] for name in names if name in files}

    rows = [Row(INPUT, "noisy", of(given.inputs), of(given.references))] if given.inputs else []
    for tone, candidate in enumerate(candidates):
        kind = f"compared {style_of(tone)}" if tone else "enhanced"
        files, references = outputs[candidate.title]
        rows.append(Row(candidate.title, kind, of(files), of(references)))
    rows += [Row(REFERENCE, "reference", of(given.references), {})] if given.references else []
    return rows, list(dict.fromkeys(failures))


def _enhance(
    candidate: Candidate, inputs: Mapping[str, Path], options: Options, work: Path
) -> tuple[dict[str, Path], list[str]]:
    """Enhance recordings into `work`; returns the outputs by name, and the errors of those that could not be."""
    import torch

    from finallyse.inference.enhancer import Enhancer, tune_process
    from finallyse.inference.files import Options as Writing
    from finallyse.inference.files import enhance_files

    if options.threads:
        torch.set_num_threads(options.threads)
    tune_process()
    enhancer = Enhancer.from_checkpoint(candidate.checkpoint, wavlm=options.wavlm, device=options.device)
    print(f"{candidate.title}: {candidate.checkpoint}", flush=True)
    folder = Path(tempfile.mkdtemp(dir=work))
    targets = {name: folder / f"{name}.wav" for name in inputs}
    pairs = [(str(path), str(targets[name])) for name, path in inputs.items()]
    failures = enhance_files(enhancer, pairs, Writing(subtype="FLOAT", force=True))
    return {name: path for name, path in targets.items() if path.is_file()}, failures


def _measure(rows: Sequence[Row], metrics: Sequence[str], options: Options, work: Path) -> None:
    """Score all signals; those without references by the metrics that need none."""
    found = MetricSet(metrics, options.resources, options.device)
    folders = {f"{index}-{slug(row.title)}": row for index, row in enumerate(rows)}
    files, references = {}, {}
    for folder, row in folders.items():
        if row.references or found.columns(reference=False):
            files |= {f"{folder}/{name}": path for name, path in row.files.items()}
            references |= {f"{folder}/{name}": path for name, path in row.references.items()}
    _link(files, work / "signals")
    _link(references, work / "references")
    done = evaluate(
        work / "signals",
        metrics,
        work / "scores.csv",
        reference=work / "references" if references else None,
        resources=options.resources,
        device=options.device,
        jobs=options.jobs,
    )
    for measured in done.rows:
        folder, _, name = measured.utterance.partition("/")
        folders[folder].scores[name] = measured.scores["enhanced"]
        folders[folder].unreadable += measured.unreadable
    for row in rows:
        row.summaries = summarise(row.scores.values(), found.columns(reference=None if row.references else False))


def _link(files: Mapping[str, Path], folder: Path) -> None:
    """Make links to `files` in `folder`, under their names."""
    for name, path in files.items():
        link = folder / f"{name}{path.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _columns(rows: Sequence[Row]) -> list[str]:
    """The numbers that were measured, those that a report shows first at the front."""
    columns = list(dict.fromkeys(column for row in rows for column in row.summaries))
    return sorted(columns, key=lambda c: headlines().index(c) if c in headlines() else len(headlines()))


def _interval(summary: Summary | None) -> Interval | None:
    if summary is None or not summary.n:
        return None
    return Interval(summary.mean, summary.mean - summary.ci95, summary.mean + summary.ci95)


def _differences(rows: Sequence[Row], candidates: Sequence[Candidate]) -> list[dict[str, Any]]:
    """For each system but the first: its numbers minus those of the first, recording by recording."""
    by_title = {row.title: row for row in rows}
    first = by_title[candidates[0].title].table
    found = []
    for candidate in candidates[1:]:
        table, cells = by_title[candidate.title].table, {}
        for column in _columns(rows):
            change = paired_difference(table, first, column)
            better = metrics_registry[metric_of(column)].better
            judged = verdict(change.interval, better) if change and change.pairs and better != "zero" else None
            cells[column] = {
                "text": with_interval(change.interval, signed=True) if change and change.pairs else "–",
                "pairs": change.pairs if change else 0,
                "verdict": judged,
                "colour": COLOURS.get(judged, ""),
            }
        found.append({"title": candidate.title, "cells": cells})
    return found


def _findings(differences: Sequence[dict], first: str) -> list[str]:
    """`B is better than A in WB-PESQ; worse in SI-SDR; no clear difference in STOI.` for each system but the first."""
    lines = []
    for row in differences:
        by_verdict: dict[str, list[str]] = {}
        for column, cell in row["cells"].items():
            if cell["verdict"]:
                by_verdict.setdefault(cell["verdict"], []).append(label_of(column))
        words = {
            "better": f"better than {first} in",
            "worse": "worse in",
            "no clear difference": "no clear difference in",
        }
        said = [f"{words[key]} {', '.join(by_verdict[key])}" for key in words if key in by_verdict]
        if said and not said[0].startswith("better"):
            said[0] = f"not better than {first} in anything; {said[0]}"
        lines += [f"{row['title']}: {'; '.join(said)}."] if said else []
    return lines


def _told(rows: Sequence[Row], candidates: Sequence[Candidate]) -> Iterator[str]:
    """The means and differences as lines of text."""
    for row in rows:
        measured = [column for column in _columns(rows) if column in row.summaries and row.summaries[column].n]
        means = [f"{label_of(column)} {with_interval(_interval(row.summaries[column]))}" for column in measured]
        if means:
            yield f"{row.title}: {', '.join(means)}"
    for row in _differences(rows, candidates):
        cells = [f"{label_of(c)} {cell['text']}" for c, cell in row["cells"].items() if cell["pairs"]]
        yield f"{row['title']} − {candidates[0].title}: {', '.join(cells)}"


# ---------------------------------------------------------------------------------------------------------------------
# The page


def _page(
    candidates: Sequence[Candidate], rows: Sequence[Row], given: Given, failures: Sequence[str], options: Options
) -> str:
    titles = [candidate.title for candidate in candidates]
    columns, differences = _columns(rows), _differences(rows, candidates)
    count = len(next(row for row in rows if row.title == titles[0]).files)
    players, listen = _players(rows, titles, columns, options)
    facts, different = _configurations(candidates)
    charts, validations, trained = _curves(candidates)
    missing = _missing(rows, given, failures)
    findings = _findings(differences, titles[0])
    now = datetime.datetime.now().astimezone()
    sections = [
        ("scores", "Scores"),
        ("listen", "Listen"),
        ("training", "Training"),
        ("configuration", "Configuration"),
    ]
    return render_page(
        "comparison.html.j2",
        title=", ".join(titles) if len(titles) < 4 else f"{titles[0]} and {len(titles) - 1} others",
        subtitle=f"{counted(count, 'recording')}: {given.what} · {now:%d %B %Y, %H:%M %Z}",
        sections=[*sections, *([("missing", "Missing")] if missing else [])],
        banner={
            "level": "note",
            "headline": f"Compared with {titles[0]}",
            "lines": [*findings, "Better and worse: where the 95 % interval of the paired differences excludes 0."],
        }
        if findings
        else None,
        metrics=[_heading(column) for column in columns],
        rows=[
            {
                "title": row.title,
                "style": style_of(titles.index(row.title)) if row.title in titles else KEYS[row.kind],
                "cells": [with_interval(_interval(row.summaries.get(column))) for column in columns],
            }
            for row in rows
            if row.summaries
        ],
        differences=[
            {"title": row["title"], "cells": [row["cells"][column] for column in columns]} for row in differences
        ],
        first=titles[0],
        count=count,
        own_references=bool(given.of),
        players=players,
        listen=listen,
        systems=facts,
        different=[row for row in different if row["defines"]],
        other=[row for row in different if not row["defines"]],
        titles=titles,
        charts=[chart for chart in charts if not chart["minor"]],
        minor=[chart for chart in charts if chart["minor"]],
        validations=validations,
        legend=legend(trained),
        missing=missing,
        footer=(
            f"Made by finallyse {__version__}. The players use MP3 and are cut to {options.seconds:g} s; what was "
            "measured are the whole signals. This file loads nothing from elsewhere."
        ),
    )


def _heading(column: str) -> dict[str, str]:
    metric = metrics_registry[metric_of(column)]
    arrow, said = ARROWS[metric.better]
    return {"label": label_of(column), "about": metric.needs.paper, "unit": metric.unit, "arrow": arrow, "said": said}


def _players(
    rows: Sequence[Row], titles: Sequence[str], columns: Sequence[str], options: Options
) -> tuple[list[dict[str, Any]], str]:
    """Players of recordings, from where the second system gains most over the first to where it loses most."""
    by_title = {row.title: row for row in rows}
    scores = {row.title: row.table.set_index("utterance") for row in rows}
    names = list(by_title[titles[0]].files)
    ranking = next((c for c in columns if c in headlines() and all(c in scores[t] for t in titles[:2])), None)
    order = ""
    if ranking:
        better = metrics_registry[metric_of(ranking)].better
        gains = scores[titles[1]][ranking] - scores[titles[0]][ranking]
        gains = (-gains if better == "lower" else gains).reindex(names).dropna().sort_values(ascending=False)
        names = list(gains.index) or names
        order = f", from where {titles[1]} gains most over {titles[0]} in {label_of(ranking)} to where it gains least"
    picked = spread(names, options.utterances)
    what = counted(len(names), "recording")
    what = f"{len(picked)} of {what}{order}" if len(picked) < len(names) else f"{what}{order}"
    sounds, players = Sounds(options.seconds), []
    for name in picked:
        signals = []
        for row in rows:
            if name not in row.files:
                continue
            table = scores[row.title]
            value = float(table[ranking].get(name, math.nan)) if ranking in table else math.nan
            note = f"{label_of(ranking)} {number(value)}" if math.isfinite(value) else ""
            signals.append((row.kind, row.title, row.files[name], note))
        players.append(player(name, signals, sounds))
    return players, what


def _configurations(candidates: Sequence[Candidate]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What each system is, and the options that are not the same in all of them."""
    from finallyse.models.checkpoint import load_checkpoint

    facts, options = [], []
    for tone, candidate in enumerate(candidates):
        loaded = load_checkpoint(candidate.checkpoint) if candidate.checkpoint else None
        config = loaded.config if loaded else read_config_of(candidate.run.results, candidate.run.network) or {}
        counted_tensors = [t for n, t in loaded.generator.items() if not n.endswith("original0")] if loaded else []
        facts.append(
            {
                "title": candidate.title,
                "style": style_of(tone),
                "source": candidate.source,
                "network": (config.get("generator") or {}).get("name") or "–",
                "parameters": f"{sum(t.numel() for t in counted_tensors):,}" if loaded else "–",
                "steps": f"{loaded.step:,}" if loaded else "–",
                "trained": ", ".join([f"finallyse {loaded.package_version}", *loaded.devices]) if loaded else "–",
            }
        )
        options.append(_portable(config))
    keys = dict.fromkeys(key for of in options for key in of if key not in UNTOLD)
    different = [
        {"key": key, "values": values, "defines": defines_run(key) or key == "train.steps"}
        for key in keys
        if len(set(values := [of.get(key, "–") for of in options])) > 1
    ]
    return facts, different


def _portable(config: Mapping[str, Any]) -> dict[str, str]:
    """The options of an experiment, dotted, with the folders of results and resources left open."""
    folders = config.get("exp") or {}
    options = flat_options(config) if config else {}
    for name in ("resources", "results"):  # in this order: the demo's resources are among its results
        folder = folders.get(name)
        if folder:
            options = {key: value.replace(f"{folder}/", f"${{exp.{name}}}/") for key, value in options.items()}
    return options


def _curves(candidates: Sequence[Candidate]) -> tuple[list[dict], list[dict], list[str | None]]:
    """Charts of losses and of validations over each other; and the systems' titles, None where neither is there."""
    tables = {
        read: [(c.title, read(c.run.results, c.run.network) if c.run else None) for c in candidates]
        for read in (read_history, read_validation)
    }
    charts = []
    for read, ((_, first), *others) in tables.items():
        drawn = curves(first, read is read_validation, others)
        charts.append([chart | {"change": ""} for chart in drawn])  # of the first alone
    there = [any(of is not None for _, of in both) for both in zip(*tables.values(), strict=True)]
    return charts[0], charts[1], [c.title if here else None for c, here in zip(candidates, there, strict=True)]


def _missing(rows: Sequence[Row], given: Given, failures: Sequence[str]) -> list[str]:
    """What could not be enhanced, read or measured, and what was left out."""
    missing = [*failures, *given.notes]
    for row in rows:
        for column, summary in row.summaries.items():
            if summary.unscored:
                counts = f"{summary.unscored} of {counted(len(row.files), 'recording')} not scored"
                missing.append(f"{label_of(column)} of {row.title}: {counts}: {summary.reasons_text}")
        missing += row.unreadable
    return list(dict.fromkeys(missing))
