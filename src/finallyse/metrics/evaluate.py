"""Scores folders of enhanced files against folders of references: one row per utterance, one summary row per number.

Files are matched by name: their path below the folder without its suffix. Each row is saved beside the output as soon
as it is available, so that a killed run resumes; both tables are written atomically at the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from finallyse.audio.folders import audio_files
from finallyse.audio.io import decode, mono
from finallyse.corpora.manifest import write_csv
from finallyse.errors import UserError
from finallyse.hardware import cores
from finallyse.journal import Journal
from finallyse.metrics import metric_of
from finallyse.metrics.base import Utterance
from finallyse.metrics.measure import MetricSet, Scores, Summary, summarise
from finallyse.processes import process_pool
from finallyse.progress import Progress


@dataclasses.dataclass(frozen=True)
class Task:
    """One utterance to score: its files by role."""

    utterance: str
    paths: dict[str, str]
    score: tuple[str, ...]

    @property
    def stamp(self) -> list:
        """Changes whenever one of the files changes."""
        stats = [(role, path, Path(path).stat()) for role, path in sorted(self.paths.items())]
        return [[role, path, stat.st_size, stat.st_mtime_ns] for role, path, stat in stats]


@dataclasses.dataclass
class Row:
    """Results of one utterance; `scores` by role ("enhanced", and "noisy", "reference" if requested).

    unreadable: the errors of files that could not be read, or that could not be measured at all.
    """

    utterance: str
    seconds: float
    length_difference_s: float
    scores: dict[str, Scores]
    unreadable: list[str]


@dataclasses.dataclass
class Evaluation:
    """All results, by role and column; `missing`: column -> why it could not be computed at all."""

    rows: list[Row]
    summaries: dict[str, dict[str, Summary]]
    missing: dict[str, str]

    @property
    def unreadable(self) -> list[str]:
        """The error of each file that could not be read or measured."""
        return [message for row in self.rows for message in row.unreadable]

    @property
    def failed(self) -> dict[str, str]:
        """Metric -> reason, of those that could not be computed for any enhanced file."""
        reasons: dict[str, str] = {}
        for column, summary in self.summaries["enhanced"].items():
            if not summary.n:
                reason = self.missing.get(column) or f"no file could be scored: {summary.reasons_text}"
                reasons.setdefault(metric_of(column), reason)
        return reasons


def evaluate(
    enhanced: Path,
    metrics: Sequence[str],
    output: Path,
    *,
    reference: Path | None = None,
    noisy: Path | None = None,
    score_reference: bool = False,
    only_referenced: bool = False,
    resources: str = "resources",
    device: str = "auto",
    jobs: int | None = None,
    accept_cut: bool = False,
) -> Evaluation:
    """Score the files of `enhanced` and write `output` (.csv) and the summary beside it (.summary.csv).

    Channels are averaged. Unreadable files and missing scores are counted with the reason; the others are scored.

    Args:
        reference: folder of clean files of the same names.
        noisy: folder of unprocessed files, scored the same way.
        score_reference: also score the references, by the metrics that need none.
        only_referenced: leave out files without a reference, and name the references without a file.
        jobs: number of processes; None: one per core.
        accept_cut: measure what there is of files that are cut short or damaged.

    Raises:
        UserError: for a folder without audio, names that match none of the references, unknown metrics.
    """
    if output.suffix != ".csv":
        raise UserError(f"--output {output}: must end in .csv")
    metric_set = MetricSet(metrics, resources, device)
    tasks, notes = _tasks(enhanced, reference, noisy, score_reference, only_referenced)
    output.parent.mkdir(parents=True, exist_ok=True)
    definition = {
        "metrics": list(metrics),
        "missing": metric_set.missing,
        "roles": list(tasks[0].score),
        "accept_cut": accept_cut,
        "weights": [
            [str(m.weights), m.weights.stat().st_size, m.weights.stat().st_mtime_ns]
            for m in metric_set.metrics.values()
            if m.weights and m.weights.exists()
        ],
    }
    journal = Journal(output.with_name(output.name + ".partial"), definition)
    rows = _resume(journal, tasks)
    left = [task for task in tasks if task.utterance not in rows]
    with Progress("evaluate", len(tasks), "files", every_s=10) as progress, journal.appending() as append:
        progress.say(*(f"evaluate: {note}" for note in (*notes, *metric_set.missing.values())))
        if rows:
            progress.say(f"evaluate: {len(rows)} of {len(tasks)} files were measured before")
        progress.keep(len(rows))
        for task, row in _measure_all(left, (list(metrics), str(resources), device), accept_cut, jobs or cores()):
            rows[task.utterance] = row
            append(_entry(task, row))
            progress.add(1)
    ordered = [rows[task.utterance] for task in tasks]
    result = Evaluation(ordered, _summaries(ordered, metric_set, tasks[0].score), metric_set.missing_columns())
    for path, (header, table) in (
        (output.with_suffix(".summary.csv"), _summary_table(result, metric_set)),
        (output, _row_table(result)),
    ):
        write_csv(path, header, (dict(zip(header, row, strict=True)) for row in table))
    journal.path.unlink()
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Which files


def files_by_name(folder: Path) -> dict[str, Path]:
    """Name -> path of every recording below `folder`; the name is the relative path without its suffix, in NFC."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for relative in audio_files(folder):
        path = folder / relative
        # macOS decomposes letters with accents in names, other systems do not.
        name = unicodedata.normalize("NFC", Path(relative).with_suffix("").as_posix())
        if name in files:
            raise UserError(f"{folder}: {files[name].name} and {path.name} have the same name; keep one of them")
        files[name] = path
    if not files:
        raise UserError(f"{folder}: contains no audio files")
    return files


def _tasks(
    enhanced: Path, reference: Path | None, noisy: Path | None, score_reference: bool, only_referenced: bool
) -> tuple[list[Task], list[str]]:
    """One task per enhanced file, and remarks about names that do not match."""
    if only_referenced and reference is None:
        raise UserError("--only-referenced needs --reference DIR")
    files, notes = _referenced(enhanced, reference) if only_referenced else (files_by_name(enhanced), [])
    folders = {"enhanced": files}
    for role, folder in (("reference", reference), ("noisy", noisy)):
        if folder is None:
            continue
        folders[role] = files_by_name(folder)
        absent = [name for name in folders["enhanced"] if name not in folders[role]]
        if len(absent) == len(folders["enhanced"]):
            raise UserError(
                f"no file of {enhanced} has a counterpart in {folder} "
                f"(e.g. {absent[0]!r} and {next(iter(folders[role]))!r}); names must agree up to the suffix"
            )
        if absent:
            notes.append(f"{len(absent)} files of {enhanced} have no counterpart in {folder}, e.g. {absent[0]}")
        unused = [name for name in folders[role] if name not in folders["enhanced"]]
        if unused and not only_referenced:
            notes.append(f"{len(unused)} files of {folder} have no counterpart in {enhanced}, e.g. {unused[0]}")
    if score_reference and reference is None:
        raise UserError("--score-reference needs --reference DIR")
    score = ("enhanced",) + (("noisy",) if noisy else ()) + (("reference",) if score_reference else ())
    tasks = [
        Task(name, {role: str(files[name]) for role, files in folders.items() if name in files}, score)
        for name in folders["enhanced"]
    ]
    return tasks, notes


def _referenced(enhanced: Path, reference: Path) -> tuple[dict[str, Path], list[str]]:
    """The files of `enhanced` that have a reference, in the order of these, and remarks about all others."""
    wanted = files_by_name(reference)
    present = files_by_name(enhanced)
    found = {name: present[name] for name in wanted if name in present}
    if not found:
        raise UserError(
            f"{enhanced}: none of its {len(present)} files is called like one of the {len(wanted)} references, e.g. "
            f"{next(iter(wanted))}{next(iter(present.values())).suffix}"
        )
    notes = []
    if missing := [name for name in wanted if name not in found]:
        notes.append(f"{len(missing)} of {len(wanted)} files are missing in {enhanced}: {', '.join(missing)}")
    if others := len(present) - len(found):
        notes.append(f"{others} files of {enhanced} have no reference and are left out")
    return found, notes


def _entry(task: Task, row: Row) -> dict:
    return {"stamp": task.stamp, "row": dataclasses.asdict(row)}


def _resume(journal: Journal, tasks: list[Task]) -> dict[str, Row]:
    """Rows of an interrupted run of the same measurement whose files have not changed since."""
    rows: dict[str, Row] = {}
    stamps = {task.utterance: task.stamp for task in tasks}
    for entry in journal.read():
        with contextlib.suppress(KeyError, TypeError, AttributeError):  # a damaged entry: it is measured again
            scores = {role: Scores(**scores) for role, scores in entry["row"]["scores"].items()}
            row = Row(**entry["row"] | {"scores": scores})
            if stamps.get(row.utterance) == entry["stamp"]:
                rows[row.utterance] = row
    journal.write(_entry(task, rows[task.utterance]) for task in tasks if task.utterance in rows)
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Measuring, in processes


def measure(task: Task, metric_set: MetricSet, accept_cut: bool = False) -> Row:
    """Read the files of one utterance and score it."""
    signals, unreadable, reasons = {}, [], {}
    for role, path in task.paths.items():
        try:
            wav, rate = decode(path, accept_cut)
            signals[role] = (mono(wav), rate)
        except UserError as error:
            unreadable.append(str(error))
            reasons[role] = f"{role} file cannot be read"
    scores, measured = {}, None
    for role in task.score:
        if role not in signals:
            scores[role] = _nothing(metric_set, reasons.get(role, f"no {role} file"), role == "reference")
            continue
        target = () if role == "reference" or "reference" not in signals else signals["reference"]
        utterance = Utterance(*signals[role], *target)
        scores[role] = metric_set.score(utterance, only_without_reference=role == "reference")
        if "reference" in reasons:  # there is one, but unreadable: report that rather than "no reference"
            intrusive = set(metric_set.columns(reference=True)) & set(scores[role].reasons)
            scores[role].reasons.update(dict.fromkeys(intrusive, reasons["reference"]))
        if role == "enhanced":
            measured = utterance
    seconds = measured.seconds if measured else math.nan
    return Row(task.utterance, seconds, measured.length_difference_s if measured else math.nan, scores, unreadable)


def _nothing(metric_set: MetricSet, reason: str, only_without_reference: bool) -> Scores:
    columns = metric_set.columns(reference=False if only_without_reference else None)
    return Scores({}, {column: reason for column in columns if column not in metric_set.missing_columns()})


_metric_set: MetricSet | None = None


def _start_worker(metrics: list[str], resources: str, device: str) -> None:
    global _metric_set
    _metric_set = MetricSet(metrics, resources, device)


def _measure_in_worker(task: Task, accept_cut: bool) -> Row:
    try:
        return measure(task, _metric_set, accept_cut)
    except Exception as error:  # of any kind: the others are to be measured
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return _unmeasured(task, _metric_set, f"measuring failed ({text})")


def _measure_all(tasks: list[Task], settings: tuple, accept_cut: bool, jobs: int) -> Iterator[tuple[Task, Row]]:
    """Score tasks in `jobs` processes, in no particular order.

    If a process dies (the C code of PESQ can crash), the tasks in progress are repeated one by one, each in its own
    process; one that kills its process again is reported as such, and the rest continue.
    """
    waiting, suspects = deque(tasks), deque()
    while waiting or suspects:
        alone = bool(suspects)
        queue = deque([suspects.popleft()]) if alone else waiting
        under_way: dict = {}
        try:
            with process_pool(1 if alone else min(jobs, len(queue)), _start_worker, *settings) as pool:
                while queue or under_way:
                    while queue and len(under_way) < 2 * jobs:
                        under_way[pool.submit(_measure_in_worker, queue[0], accept_cut)] = queue[0]
                        queue.popleft()  # only now: a pool that has died refuses the task
                    finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in finished:
                        row = future.result()
                        yield under_way.pop(future), row
        except BrokenProcessPool:
            if alone:
                task = next(iter([*under_way.values(), *queue]))
                yield task, _unmeasured(task, MetricSet(*settings), "the process that measured it died")
            else:
                suspects.extend(under_way.values())


def _unmeasured(task: Task, metric_set: MetricSet, reason: str) -> Row:
    """The row of an utterance that could not be scored at all."""
    scores = {role: _nothing(metric_set, reason, role == "reference") for role in task.score}
    return Row(task.utterance, math.nan, math.nan, scores, [f"{task.paths['enhanced']}: {reason}"])


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _summaries(rows: list[Row], metric_set: MetricSet, roles: Sequence[str]) -> dict[str, dict[str, Summary]]:
    return {
        role: summarise(
            [row.scores[role] for row in rows], metric_set.columns(reference=False if role == "reference" else None)
        )
        for role in roles
    }


def as_text(text: str) -> str:
    """A cell with `text`, after an apostrophe if a spreadsheet would take it for a formula; see `from_text`."""
    return f"'{text}" if re.match(r"'*[=+\-@]", text) else text


def from_text(cell: str) -> str:
    """The text in a cell of `as_text`."""
    return cell.removeprefix("'") if re.match(r"'+[=+\-@]", cell) else cell


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"


def _row_table(result: Evaluation) -> tuple[list[str], list[list[str]]]:
    prefixed = [
        (role, column, column if role == "enhanced" else f"{role}_{column}")
        for role, summaries in result.summaries.items()
        for column in summaries
    ]
    header = ["utterance", "seconds", "length_difference_s", *(name for _, _, name in prefixed), "unscored"]
    table = []
    for row in result.rows:
        reasons = [
            f"{name}: {row.scores[role].reasons[column]}"
            for role, column, name in prefixed
            if column in row.scores[role].reasons
        ]
        values = [_number(row.scores[role].values.get(column, math.nan)) for role, column, _ in prefixed]
        table.append(
            [
                *(as_text(row.utterance), _number(row.seconds), _number(row.length_difference_s)),
                *(*values, as_text("; ".join(reasons))),
            ]
        )
    return header, table


def _summary_table(result: Evaluation, metric_set: MetricSet) -> tuple[list[str], list[list[str]]]:
    header = ["metric", "mean", "ci95", "n", "unscored", "reasons", "missing"]
    others = [role for role in result.summaries if role != "enhanced"]
    for role in others:
        header += [f"{role}_{name}" for name in ("mean", "ci95", "n", "unscored", "reasons")]
    header += ["unit", "better", "needs", "paper"]
    table = []
    for metric in metric_set.metrics.values():
        for column in metric.columns:
            line = [column, *_cells(result.summaries["enhanced"][column]), result.missing.get(column, "")]
            for role in others:
                summary = result.summaries[role].get(column)
                line += _cells(summary) if summary else [""] * 5
            table.append([*line, metric.unit, metric.better, str(metric.needs), metric.needs.paper])
    return header, table


def _cells(summary: Summary) -> list[str]:
    return [
        _number(summary.mean),
        _number(summary.ci95),
        str(summary.n),
        str(summary.unscored),
        summary.reasons_text,
    ]
