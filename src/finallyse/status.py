"""Status of outputs, running jobs and trainings: read from files, without PyTorch or Snakemake.

The running jobs are not contacted, so this works on a login node, while they run elsewhere and after they ended:

    <results>/state/<network>/history.csv      a row for each step made
    <results>/state/<network>/validation.csv   a row for each validation
    <results>/logs/train_network/<network>.log how long a step waits for data; the mistake that has ended a training
    <results>/state/<network>/step-*.json      states that a stopped training continues from
    <results>/state/<network>/lock             locked by the training process for as long as it lives
    .snakemake/incomplete/                     a record for each output that has a job, with the cluster's job id
    .snakemake/locks/                          there while Snakemake runs, and after it was killed
"""

from __future__ import annotations

import base64
import csv
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from finallyse.config import network_checkpoints, paths_below, read_config, starts
from finallyse.finished import kept, read
from finallyse.options import Experiment, from_dict
from finallyse.progress import data_size, duration
from finallyse.project import project_file
from finallyse.recipe import ArgumentDefaults, Recipe, describe, recipe_beside
from finallyse.schema import argument_defaults, read_schema

PACE_STEPS = 200  # recent steps whose mean duration gives the time left, without start-up
FRESH_S = 180  # a history written to within so many seconds counts as alive where files cannot be locked
NUMBER = r"[0-9]+(\.[0-9]*)?(e[+-]?[0-9]{1,2})?"  # as history.csv has them
SQUEUE_S = 1.0  # a busy SLURM controller must not make this wait longer
END_BYTES = 1 << 16  # that are read of the end of a table or log
LOOKS = 5  # attempts at reading files that are replaced at this moment


@dataclasses.dataclass
class Job:
    """A job that Snakemake has started or submitted and that has not ended."""

    output: str
    cluster_id: str | None = None  # None: a process on this machine
    state: str | None = None  # according to squeue: RUNNING, PENDING, ...; None: unknown
    reason: str | None = None  # why it is pending


@dataclasses.dataclass
class Data:
    """A manifest or the weights that trainings read."""

    name: str  # corpus, rate and split, or the weights' name
    path: str
    clips: int | None  # rows of the manifest; None if it is missing, or for weights
    there: bool
    downloaded_bytes: int  # of its corpus, so far


@dataclasses.dataclass
class Network:
    """One trained network."""

    name: str
    state: str  # trained | changed | training | queued | starting | stopped | ready | waiting
    detail: str  # what is waited for, the cluster's job, what was made with it, why it would be trained again
    step: int
    steps: int
    seconds_per_step: float | None
    pace_of: str = ""  # the network whose pace that is, if it has none of its own
    starts_from: tuple[str, ...] = ()  # networks whose checkpoints it starts from
    validations_left: int = 0
    seconds_per_validation: float = 0.0
    data_wait: float | None = None  # share of the recent time spent waiting for data; None: unknown
    validation: str = ""  # step and numbers of the last one
    error: str = ""  # with which the last attempt ended

    @property
    def eta_s(self) -> float | None:
        """Seconds of training left: steps at the recent pace, and validations as long as those before."""
        if self.seconds_per_step is None or self.step >= self.steps:
            return None
        validations_s = self.validations_left * self.seconds_per_validation
        return (self.steps - self.step) * self.seconds_per_step + validations_s


@dataclasses.dataclass
class Left:
    """The training left in the whole workflow: an estimate by the `eta_s` of each network."""

    order: list[str]  # networks that are to be trained, each after those that it starts from
    in_turn_s: float  # if they are trained one after another
    at_once_s: float  # if each is trained as soon as those that it starts from are there
    unknown: list[str]  # those without a pace, which are not counted
    as_fast_as: dict[str, str]  # network without steps -> the one whose pace it is given


@dataclasses.dataclass
class Status:
    """The status of the whole workflow."""

    results: str
    data: list[Data]
    networks: list[Network]
    jobs: list[Job]
    report: bool
    locked: bool  # Snakemake runs in this folder, or was killed there


# ---------------------------------------------------------------------------------------------------------------------
# Looking


def collect(config: dict) -> Status:
    """The status of the workflow that `config` (of `read_config`) describes, by its files."""
    jobs = snakemake_jobs(Path(".snakemake"))
    locked = _has_files(Path(".snakemake/locks"))
    defaults = argument_defaults(read_schema(project_file("config/schema.json")))
    if jobs:
        jobs = with_slurm_states(jobs, {f"{config['results']}/{name}.ckpt" for name in config["experiments"]})
    networks = [_network(config, name, jobs, locked, defaults) for name in config["experiments"]]
    _lend_paces(config["experiments"], networks)
    return Status(
        results=config["results"],
        data=_data(config),
        networks=networks,
        jobs=[job for job in jobs if locked or job.state],  # the cluster's jobs outlive a Snakemake that was killed
        report=Path(config["results"], "report.html").is_file(),
        locked=locked,
    )


def look(config: dict) -> Status:
    """`collect`, again if a file was deleted or replaced between its listing and its reading, as trainings do."""
    for _ in range(LOOKS - 1):
        try:
            return collect(config)
        except FileNotFoundError:
            continue
    return collect(config)


def training_left(networks: Sequence[Network]) -> Left:
    """What is left to be trained of `networks`, in order, and how long it takes."""
    by_name = {network.name: network for network in networks if network.state != "trained"}
    done_in: dict[str, float] = {}  # in the order of training

    def add(network: Network, after: tuple[str, ...] = ()) -> None:
        if network.name in done_in:
            return
        before = [name for name in network.starts_from if name in by_name and name not in (*after, network.name)]
        for name in before:
            add(by_name[name], (*after, network.name))
        done_in[network.name] = max((done_in[name] for name in before), default=0.0) + (network.eta_s or 0.0)

    for network in sorted(by_name.values(), key=lambda network: network.state not in ("training", "starting")):
        add(network)
    return Left(
        order=list(done_in),
        in_turn_s=sum(network.eta_s or 0.0 for network in by_name.values()),
        at_once_s=max(done_in.values(), default=0.0),
        unknown=[name for name in done_in if by_name[name].seconds_per_step is None],
        as_fast_as={name: by_name[name].pace_of for name in done_in if by_name[name].pace_of},
    )


class Running:
    """Tells of trainings while they run, of each again once it has made another hundredth of its steps.

    Args:
        results: folder of results.
        steps: network -> steps of its training.
    """

    def __init__(self, results: str | Path, steps: Mapping[str, int]):
        self.results, self.steps = Path(results), steps
        self._told: dict[str, int] = {}  # network -> step

    def lines(self) -> list[str]:
        """`hifigan: step 1,200 of 80,000, 0.35 s/step, 7:40:00 left` for each training that there is news of."""
        lines = []
        for name, steps in self.steps.items():
            folder = self.results / "state" / name
            step, pace = read_history(folder / "history.csv")
            news = name not in self._told or abs(step - self._told[name]) >= steps / 100
            if step and pace and step < steps and news and _is_alive(folder):
                self._told[name] = step
                left = duration((steps - step) * pace)
                lines.append(f"{name}: step {step:,} of {steps:,}, {pace:.3g} s/step, {left} left")
        return lines


def _data(config: dict) -> list[Data]:
    resources = config["resources"]
    rows = []
    for path in sorted({p for e in config["experiments"].values() for p in paths_below(e, f"{resources}/")}):
        if not _below(path, resources):  # a checkpoint, where results and resources are one folder
            continue
        kind, corpus = Path(path).relative_to(resources).parts[:2]
        there = Path(path).is_file() or _has_files(Path(path))
        downloads = Path(resources, "downloads" if kind == "prepared" else "weights", corpus)
        rows.append(
            Data(
                name=" ".join(Path(path).relative_to(resources).with_suffix("").parts[1:]),
                path=path,
                clips=_rows(Path(path)) if there and path.endswith(".csv") else None,
                there=there,
                downloaded_bytes=sum(f.stat().st_size for f in downloads.rglob("*") if f.is_file()),
            )
        )
    return rows


def _network(config: dict, name: str, jobs: list[Job], locked: bool, defaults: ArgumentDefaults) -> Network:
    experiment, results = config["experiments"][name], Path(config["results"])
    checkpoint, folder = results / f"{name}.ckpt", results / "state" / name
    steps = experiment["train"]["steps"]
    history = folder / "history.csv"
    last_step, pace = read_history(history)
    age = max(0.0, time.time() - history.stat().st_mtime) if last_step else None
    job = next((job for job in jobs if Path(job.output) == checkpoint), None)
    alive = _is_alive(folder)
    log = _last_lines(results / "logs" / "train_network" / f"{name}.log")
    validation = _last_rows(folder / "validation.csv")
    made = _made(from_dict(Experiment, experiment), checkpoint, folder, defaults)

    if alive or (job and job.state == "RUNNING"):
        state, detail, step = "training", "", last_step
    elif job and job.state == "PENDING":
        state, detail, step = "queued", job.reason or "", made.step
    elif checkpoint.is_file() and made.why:
        state, detail, step = "changed", made.why, made.step
    elif checkpoint.is_file():
        count = sum(1 for _ in (results / "enhanced" / name / "enhanced").glob("*.wav"))
        measured = (results / "metrics" / f"{name}.csv").is_file()
        done = [f"{count} files enhanced"] * (count > 0) + ["measured"] * measured
        state, detail, step = "trained", ", ".join(done), steps
    elif job and locked:
        state, detail, step = "starting", "", made.step
    else:
        step = made.step
        missing = [p for p in _inputs(config, experiment) if not (Path(p).is_file() or _has_files(Path(p)))]
        waits = [Path(p).stem for p in missing if not _below(p, config["resources"])]
        waits += ["data"] if len(missing) > len(waits) else []  # which data: the table of data says so
        state = "waiting" if waits else "stopped" if step else "ready"
        detail = f"needs {' and '.join(waits)}" if waits else made.why
    if state == "training" and age is not None:
        detail = f"last step {duration(age)} ago"
    if job and job.cluster_id and state in ("training", "queued", "starting"):
        detail = ", ".join(filter(None, [f"job {job.cluster_id}", detail]))
    step, every = min(step, steps), experiment["train"]["val_step"] or steps
    validation_s = [float(row["seconds"]) for row in validation if re.fullmatch(NUMBER, row.get("seconds") or "")]
    return Network(
        name=name,
        state=state,
        detail=detail,
        step=step,
        steps=steps,
        seconds_per_step=pace,
        starts_from=_starts_from(config, experiment),
        validations_left=math.ceil(steps / every) - step // every if step < steps else 0,
        seconds_per_validation=sum(validation_s) / len(validation_s) if validation_s else 0.0,
        data_wait=_data_wait(log, pace) if state == "training" else None,
        validation=_validation(validation),
        error="" if state in ("training", "trained", "queued") else _last_error(log),
    )


def _starts_from(config: dict, experiment: dict) -> tuple[str, ...]:
    """The networks of the workflow whose checkpoints an experiment starts from."""
    checkpoints = network_checkpoints(config)
    return tuple(dict.fromkeys(checkpoints[path] for path in starts(experiment) if path in checkpoints))


def _lend_paces(experiments: dict, networks: Sequence[Network]) -> None:
    """Give networks that have not made a step the pace of one whose steps cost the same."""

    def cost(name: str) -> str:
        of = experiments[name]
        data = [of["data"]["batch_size"], of["data"]["train"]["name"], of["data"]["train"]["args"].get("segment")]
        return json.dumps([of["trainer"], of["generator"]["name"], of["generator"]["args"], of["losses"], data])

    known = {cost(network.name): network for network in networks if network.seconds_per_step is not None}
    for network in networks:
        if network.seconds_per_step is None and (other := known.get(cost(network.name))):
            network.seconds_per_step, network.pace_of = other.seconds_per_step, other.name
            network.seconds_per_validation = other.seconds_per_validation


def _is_alive(folder: Path) -> bool:
    """Whether the training with this state folder runs."""
    held, history = _is_locked(folder / "lock"), folder / "history.csv"
    return held if held is not None else history.is_file() and time.time() - history.stat().st_mtime < FRESH_S


def _data_wait(log: Sequence[str], seconds_per_step: float | None) -> float | None:
    """The share of a step's time that it waits for data, according to the last line of progress in the log."""
    found = [match for line in log if (match := re.search(r"\| data_wait ([\d.e+-]+)$", line))]
    if not found or not seconds_per_step:
        return None
    return min(1.0, float(found[-1][1]) / seconds_per_step)


def _validation(rows: Sequence[Mapping[str, str]]) -> str:
    """`step 160: wb_pesq 1.93, stoi 0.85` of the last of the rows of validation.csv."""
    if not rows:
        return ""
    scores = {key: value for key, value in rows[-1].items() if key not in NO_METRICS}
    numbers = [f"{key} {float(value):.4g}" for key, value in scores.items() if re.fullmatch(f"-?{NUMBER}", value)]
    return f"step {int(rows[-1]['step']):,}: {', '.join(numbers)}"


NO_METRICS = ("step", "items", "seconds")
"""Columns of validation.csv that are not metrics."""


def _last_error(log: Sequence[str]) -> str:
    """The mistake that ended a training, according to its log; of a traceback the last line; empty: none."""
    mistakes = [line for line in log if line.startswith("error: ")]
    if mistakes:
        return mistakes[-1]
    if not any(line.startswith("Traceback (most recent call last)") for line in log):
        return ""
    return next((line for line in reversed(log) if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit)\b", line)), "")


class Made(NamedTuple):
    """What there is of a training."""

    step: int  # from which it would continue, 0: from the start
    why: str  # why it would be trained, although something was trained under its name; empty: it would not, or nothing


def _made(experiment: Experiment, checkpoint: Path, folder: Path, defaults: ArgumentDefaults) -> Made:
    """What there is of the training of `experiment`, as the training itself will find it."""
    steps = experiment.train.steps

    def differences(recorded: Recipe, path: Path) -> dict:
        return recorded.differences(recipe_beside(experiment, defaults, recorded, path.stat().st_mtime))

    states: list[tuple[int, dict]] = []  # step, and what is different
    for path in sorted([*folder.glob("step-*.json"), *folder.glob("superseded/**/step-*.json")]):
        if match := re.fullmatch(r"step-(\d+)", path.stem):
            recorded = _recorded(path)
            states.append((int(match[1]), differences(recorded, path) if recorded else {}))
    own = max((step for step, different in states if not different and step <= steps), default=0)

    finished = [found for path in (checkpoint, *kept(folder)) if (found := read(path))]
    different = [differences(found.recipe, found.path) for found in finished]
    if any(found.step == steps and not other for found, other in zip(finished, different, strict=True)):
        return Made(steps, "")
    continued = f"continues after step {own}" if own else "would be trained from the start"
    if finished and finished[0].path == checkpoint:
        if different[0]:
            return Made(own, f"{continued}, since {describe(different[0])}")
        return Made(own, f"{continued}, since it was trained for {finished[0].step} steps instead of {steps}")
    others = [(step, other) for step, other in states if other]
    if others and not own:
        step, other = max(others, key=lambda state: state[0])
        return Made(own, f"{continued}, not after step {step}, since {describe(other)}")
    return Made(own, "")


def _recorded(path: Path) -> Recipe | None:
    """The recipe in the record of a state; None: damaged."""
    try:
        return Recipe.from_record(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _inputs(config: dict, experiment: dict) -> list[str]:
    """The inputs of a training: manifests, weights, the checkpoint that it starts from."""
    inputs = [p for p in paths_below(experiment, f"{config['resources']}/") if _below(p, config["resources"])]
    inputs += [p for p in paths_below(experiment, f"{config['results']}/") if p.endswith(".ckpt")]
    return list(dict.fromkeys(inputs))


def _below(path: str, resources: str) -> bool:
    return any(Path(path).is_relative_to(Path(resources, kind)) for kind in ("prepared", "weights"))


def _has_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _rows(manifest: Path) -> int:
    with manifest.open("rb") as file:
        return max(0, sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) - 1)


def read_history(path: Path) -> tuple[int, float | None]:
    """The last step in a history.csv and the recent mean of seconds per step; (0, None) if there is none yet.

    Reads the end of the file only: that of a finished training has tens of megabytes.
    """
    rows = _last_rows(path)[-PACE_STEPS:]
    if not rows:
        return 0, None
    seconds = [float(row["seconds"]) for row in rows if re.fullmatch(NUMBER, row.get("seconds") or "")]
    return int(rows[-1]["step"]), sum(seconds) / len(seconds) if seconds else None


def _last_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows at the end of a table of a training, which may be writing to it; none if there is no table."""
    lines = _last_lines(path)
    if not lines:
        return []
    with path.open(encoding="utf-8", errors="replace") as file:
        header = next(csv.reader([file.readline()]), [])
    rows = [row for row in csv.DictReader(lines, fieldnames=header) if None not in row.values() and None not in row]
    return [row for row in rows if re.fullmatch(r"[0-9]{1,18}", row.get("step", ""))]


def _last_lines(path: Path) -> list[str]:
    """The complete lines at the end of a text file; none if it does not exist."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - END_BYTES))
        lines = file.read().decode(errors="replace").splitlines(keepends=True)
    return [line.rstrip("\n") for line in lines if line.endswith("\n")]


def _is_locked(path: Path) -> bool | None:
    """Whether a process, on this node or another, holds this file's lock; None if the file system cannot know."""
    if not path.is_file():
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.lockf(descriptor, os.F_TEST, 0)  # asks only: taking the lock could make a training that starts now fail
    except OSError as error:
        return True if error.errno in (errno.EACCES, errno.EAGAIN) else None
    finally:
        os.close(descriptor)
    return False


def snakemake_jobs(folder: Path) -> list[Job]:
    """The jobs that Snakemake's records in `folder` (.snakemake) say have begun and not ended."""
    records = folder / "incomplete"
    jobs = []
    for path in sorted(p for p in records.rglob("*") if p.is_file() and p.name != "migration_underway"):
        encoded = "".join(part.removeprefix("@") for part in path.relative_to(records).parts)
        try:
            output = base64.urlsafe_b64decode(encoded).decode()
            record = json.loads(path.read_text() or "{}")
            if not isinstance(record, dict):
                raise ValueError(f"{path}: no record")
        except (ValueError, FileNotFoundError):  # no record of Snakemake's, or the job ended while we looked
            continue
        jobs.append(Job(output, record.get("external_jobid")))
    return jobs


def with_slurm_states(jobs: list[Job], checkpoints: set[str]) -> list[Job]:
    """The jobs with their states according to squeue, if it is available and answers.

    Trainings (of `checkpoints`) are found by the comment that Snakemake gives its jobs: once one has begun, Snakemake's
    process on its node replaces the record of it by one without the job's id.
    """
    if not shutil.which("squeue"):
        return jobs
    try:
        answer = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%i|%T|%r|%k|%Z"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SQUEUE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return jobs
    rows = [row for line in answer.stdout.splitlines() if len(row := line.split("|", 4)) == 5]
    by_id = {row[0]: row for row in rows}
    trainings = {row[3]: row for row in rows if Path(row[4]) == Path.cwd()}
    found = []
    for job in jobs:
        row = by_id.get(job.cluster_id or "")
        if row is None and job.output in checkpoints:
            row = trainings.get(f"rule_train_network_wildcards_{Path(job.output).stem}")
        found.append(dataclasses.replace(job, cluster_id=row[0], state=row[1], reason=row[2]) if row else job)
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Showing

STYLES = {
    "trained": "green",
    "training": "bold cyan",
    "queued": "cyan",
    "starting": "cyan",
    "stopped": "yellow",
    "changed": "yellow",
}


def render(status: Status) -> Group:
    """The status as tables."""
    return Group(_data_table(status), _network_table(status), *_notes(status), *_lines(status))


def render_trainings(status: Status) -> Group:
    """The trainings alone, to be watched, also in a narrow window."""
    details = [
        Text(f"{network.name}: {network.detail}")
        for network in status.networks
        if network.detail and network.state not in ("trained", "waiting")
    ]
    there = sum(data.there for data in status.data)
    data = [] if there == len(status.data) else [Text(f"{there} of {len(status.data)} sets of data are there.")]
    table = _network_table(status, details=False)
    return Group(table, *details, *_notes(status), *data, *_lines(status)[1:])


def _notes(status: Status) -> list[Text]:
    """Last validations, mistakes, and what is left."""
    notes = []
    for network in status.networks:
        if network.validation and network.state != "trained":
            notes.append(Text(f"{network.name}: validation after {network.validation}"))
        if network.error:
            notes.append(Text(f"{network.name}: {network.error}", "red"))
    left = training_left(status.networks)
    if not left.order:
        return notes
    notes.append(Text(f"\nLeft to train, in order: {', '.join(left.order)}."))
    if left.in_turn_s:
        at_once = f", {duration(left.at_once_s)} if none waits but for those that it starts from"
        at_once = at_once if round(left.at_once_s) < round(left.in_turn_s) else ""
        notes.append(
            Text(
                f"About {duration(left.in_turn_s)} one after another{at_once}. An estimate: steps left x recent "
                "seconds per step, and validations; without data, enhancing and measuring."
            )
        )
    if left.as_fast_as:
        as_fast = ", ".join(f"{name} as {other}" for name, other in left.as_fast_as.items())
        notes.append(Text(f"Taken to be as fast as another: {as_fast}."))
    if left.unknown:
        notes.append(Text(f"Not counted, since they have not made a step yet: {', '.join(left.unknown)}."))
    return notes


def _data_table(status: Status) -> Table:
    table = Table(title="Data", title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column, justify in (("", "left"), ("there", "left"), ("clips", "right"), ("downloaded", "right")):
        table.add_column(column, justify=justify)
    for data in status.data:
        table.add_row(
            data.name,
            Text("yes", "green") if data.there else Text("no", "yellow"),
            "" if data.clips is None else f"{data.clips:,}",
            data_size(data.downloaded_bytes) if data.downloaded_bytes else "",
        )
    return table


def _network_table(status: Status, details: bool = True) -> Table:
    table = Table(title="\nNetworks", title_justify="left", box=None, pad_edge=False, header_style="dim")
    table.add_column("", min_width=max((len(network.name) for network in status.networks), default=0))
    for column, justify in (
        ("state", "left"),
        ("step", "right"),
        ("", "right"),
        ("s/step", "right"),
        ("data wait", "right"),
        ("left", "right"),
        *([("", "left")] if details else []),
    ):
        table.add_column(column, justify=justify, no_wrap=bool(column))
    for network in status.networks:
        left, pace = None if network.state == "trained" else network.eta_s, network.seconds_per_step
        about = "~" if network.pace_of else ""
        table.add_row(
            network.name,
            Text(network.state, STYLES.get(network.state, "dim")),
            f"{network.step}/{network.steps}",
            Text(f"{100 * network.step / network.steps:.0f} %", no_wrap=True),
            "" if pace is None else f"{about}{pace:.3g}",
            "" if network.data_wait is None else f"{100 * network.data_wait:.0f} %",
            "" if left is None else f"{about}{duration(left)}",
            *([network.detail] if details else []),
        )
    return table


def _lines(status: Status) -> list[Text]:
    lines = [Text("")]
    checkpoints = {f"{status.results}/{network.name}.ckpt" for network in status.networks}
    others = [job for job in status.jobs if job.output not in checkpoints]
    if others:
        lines.append(Text(f"{len(others)} other outputs are being made:"))
        for job in others[:12]:
            where = f"  (job {job.cluster_id} {(job.state or '').lower()})" if job.cluster_id else ""
            lines.append(Text(f"  {job.output}{where}"))
        if len(others) > 12:
            lines.append(Text(f"  and {len(others) - 12} more"))
    if status.locked:
        lines.append(
            Text("Snakemake runs in this folder. If it does not: it was killed; snakemake --unlock, then again.")
        )
    else:
        lines.append(Text("Snakemake does not run in this folder."))
    lines.append(Text(f"{status.results}/report.html: {'there' if status.report else 'not yet'}"))
    return lines


def show(arguments: Sequence[str]) -> None:
    """Print the status of the workflow that `arguments` (of `read_config`) describe."""
    Console(soft_wrap=True).print(render(look(read_config(arguments))))


def watch(arguments: Sequence[str], every_s: float) -> None:
    """Show the trainings of the workflow every `every_s` seconds, in place, until Ctrl-C.

    What is not a terminal gets them once.
    """
    console = Console()
    if not console.is_terminal:
        Console(soft_wrap=True).print(render_trainings(look(read_config(arguments))))
        return
    try:
        config = read_config(arguments)
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                now = Text(f"{time.strftime('%H:%M:%S')}, every {every_s:g} s; Ctrl-C ends this, no training", "dim")
                live.update(Group(now, render_trainings(look(config))), refresh=True)
                time.sleep(every_s)
    except KeyboardInterrupt:
        return
