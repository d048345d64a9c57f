"""Reads everything that the report shows from a folder of results into one typed structure.

Nothing is drawn here and nothing is guessed: absent files are listed in `missing`; unreadable ones stop the report with
their path.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy
import pandas
import yaml

from finallyse import __version__, plugins
from finallyse.checks import dataclass_schema, validate
from finallyse.compare import System
from finallyse.config import read_file
from finallyse.datasets.base import Task
from finallyse.errors import UserError, nearest
from finallyse.hardware import cores, processor
from finallyse.metrics import Better, goodness, label_of, metric_of, metrics_registry
from finallyse.metrics.evaluate import files_by_name, from_text
from finallyse.options import Experiment, defines_run, from_dict
from finallyse.report.figures import Interval, number
from finallyse.report.paired import Change, Verdict, level_verdict, paired_change, paired_difference, verdict
from finallyse.sweep import Sweep

if TYPE_CHECKING:
    from finallyse.report.swept import Swept

PACKAGES = ("torch", "torchaudio", "transformers", "numpy", "scipy", "pesq", "pystoi", "soundfile", "snakemake")
"""Packages whose versions can change a number of the report."""


@dataclasses.dataclass(frozen=True)
class Score:
    """One metric of one network over its validation set."""

    metric: str
    output: Interval | None
    input: Interval | None
    change: Change | None
    """Of the output against the input, utterance by utterance; None if no input was measured."""
    reference: Interval | None
    scored: int
    failed: int
    reason: str
    """Why there is no value, or why `failed` utterances have none."""
    better: Better
    unit: str
    about: str

    @property
    def label(self) -> str:
        """The metric's usual name."""
        return label_of(self.metric)

    @property
    def verdict(self) -> Verdict | None:
        """By the change, or by the output alone for metrics that are best at 0; None if there is none."""
        if self.better == "zero":
            return level_verdict(self.output) if self.output else None
        return verdict(self.change.interval, self.better) if self.change and self.change.pairs else None

    @property
    def missing(self) -> bool:
        """Whether there is no value at all."""
        return self.output is None


@dataclasses.dataclass(frozen=True)
class Scale:
    """A run compared with its recipe: steps, batch, size of the generator."""

    steps: int
    recipe_steps: int | None
    batch_size: int
    recipe_batch_size: int | None
    parameters: int | None
    recipe_parameters: int | None
    recipe_source: str

    @property
    def share(self) -> float:
        """The smallest of the run's shares of the recipe; 1 if it is the recipe, or if there is none."""
        pairs = [
            (self.steps, self.recipe_steps),
            (self.batch_size, self.recipe_batch_size),
            (self.parameters, self.recipe_parameters),
        ]
        return min([1.0, *(have / want for have, want in pairs if have is not None and want)])


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """The training data of a network according to its manifests, each counted once."""

    files: int
    hours: float


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One validation utterance: paths of its signals, and scores."""

    name: str
    paths: dict[str, Path]  # "noisy", "enhanced", "reference"
    scores: dict[str, float]
    input_scores: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Compared:
    """Another system's output for the validation set of a network."""

    system: System
    scores: list[Score]
    differences: dict[str, Change]
    """Metric -> the network's output minus the system's, utterance by utterance."""
    utterances: dict[str, Utterance]
    """By name; only those that the system has a file of."""
    history: pandas.DataFrame | None = None
    validation: pandas.DataFrame | None = None
    """Of the training of a run in another folder of results."""

    def verdict(self, score: Score) -> Verdict | None:
        """Whether the network is better in the metric of `score`; None for those best at 0, and without pairs."""
        difference = self.differences.get(score.metric)
        if score.better == "zero" or not (difference and difference.pairs):
            return None
        return verdict(difference.interval, score.better)


@dataclasses.dataclass
class Network:
    """Everything known about one trained network."""

    name: str
    task: Task
    config: dict[str, Any] | None
    """Its configuration file as written, possibly by another version."""
    experiment: Experiment | None
    """The same, typed."""
    checkpoint: dict[str, Any] | None
    scale: Scale | None
    data: TrainingData | None
    history: pandas.DataFrame | None
    validation: pandas.DataFrame | None
    scores: list[Score]
    utterances: list[Utterance]
    facts: list[tuple[str, str]]
    """Further (name, value) pairs: version, device, WavLM."""
    recipe: str | None
    """The recipe that it is trained by, whatever the network is called; None: none of those known."""
    differences: list[tuple[str, str, str]]
    """(option, the recipe's value, this run's value)."""
    missing: list[str]
    compared: list[Compared] = dataclasses.field(default_factory=list)

    @property
    def is_finally(self) -> bool:
        """Whether it is one of FINALLY's stages."""
        return bool(self.experiment) and str(self.experiment.trainer).startswith("finally_")


@dataclasses.dataclass(frozen=True)
class Published:
    """One published number (a row of resources/paper/results.csv)."""

    network: str
    """The recipe of the network that it is of."""
    metric: str
    dataset: str
    value: str
    reference_value: str
    mark: str
    system: str
    source: str
    url: str
    differs: str


@dataclasses.dataclass(frozen=True)
class Job:
    """One job of the workflow, from its benchmark file."""

    rule: str
    name: str
    seconds: float
    memory_mb: float
    cpu_seconds: float


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that the report shows."""

    title: str
    results: Path
    made: datetime.datetime
    networks: list[Network]
    published: list[Published]
    jobs: list[Job]
    environment: dict[str, str]
    absent: list[str]
    """Networks without any results yet."""
    sweeps: list[Swept] = dataclasses.field(default_factory=list)


def collect(
    results: Path,
    networks: Sequence[str],
    *,
    paper: Path | None = None,
    experiments: Path | None = None,
    schema: Path | None = None,
    compare: Sequence[System] = (),
    sweeps: Sequence[Sweep] = (),
    title: str = "Run report",
    require_all: bool = False,
) -> Report:
    """Read the results of `networks` under `results` and the published numbers under `paper`.

    Args:
        experiments: folder of the recipes (config/experiments) to compare the runs' configurations with.
        schema: JSON schema (config/schema.json) with the defaults that complete both.
        compare: other systems to show beside the networks.
        sweeps: sweeps to show, whose networks need not be among `networks`.
        require_all: a network with anything missing is an error; otherwise the report lists what is missing.
    """
    if not results.is_dir():
        raise UserError(f"{results}: no such folder of results; --results must be the folder that the workflow writes")
    if len(set(networks)) != len(networks):
        raise UserError(f"--networks names a network twice: {' '.join(networks)}")
    for system in compare:
        if system.network not in networks:
            raise UserError(f"--compare {system.name}: {system.network} is not one of --networks")
    sizes = {row["network"]: row for row in _of_paper(paper / "recipes.csv").to_dict("records")} if paper else {}
    recipes = Recipes(experiments, _schema(schema), sizes) if experiments else None
    found, absent = [], []
    for name in networks:
        network = _network(results, name, recipes)
        network.compared = [_compared(results, system) for system in compare if system.network == name]
        if require_all and network.missing:
            raise UserError(f"{name}: {network.missing[0]}; run the workflow up to it, or leave out --require-all")
        if network.config is None and network.checkpoint is None and not network.scores:
            absent.append(name)
        else:
            found.append(network)
    from finallyse.report.swept import read_swept  # which reads tables as this module does

    swept = [read_swept(results, sweep) for sweep in sweeps]
    if not found and not any(sweep.scores for sweep in swept):
        names = ", ".join([*networks, *(sweep.name for sweep in sweeps)])
        raise UserError(f"{results}: no results of {names} yet; run the workflow first")
    return Report(
        title=title,
        results=results,
        made=datetime.datetime.now().astimezone(),
        networks=found,
        published=_published(paper / "results.csv") if paper else [],
        jobs=_jobs(results / "benchmarks"),
        environment=_environment(),
        absent=absent,
        sweeps=swept,
    )


def _csv(path: Path, **options: Any) -> pandas.DataFrame:
    """A table as pandas reads it with these options. Raises UserError if it is none."""
    try:
        return pandas.read_csv(path, **options)
    except (ValueError, OverflowError) as error:  # pandas' parser errors are ValueErrors, as are those of UTF-8
        raise UserError(f"{path}: not readable as CSV: {' '.join(str(error).split())}") from error


def read_table(path: Path, columns: Sequence[str] = ()) -> pandas.DataFrame:
    """A CSV file, checked for `columns`."""
    table = _csv(path, skipinitialspace=True, dtype={"utterance": str})  # not the number 1 for 001
    if "utterance" in table:
        table["utterance"] = table["utterance"].map(from_text, na_action="ignore")
    for column in columns:
        if column not in table:
            raise UserError(f"{path}: has no column {column!r} (found: {', '.join(map(str, table.columns))})")
    return table


def _numbers(path: Path) -> pandas.DataFrame:
    """A table of numbers by step, as a training writes it."""
    table = read_table(path, ["step"])
    for column in table:
        try:
            table[column] = pandas.to_numeric(table[column])
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}: column {column}: {error}; it is not as a training writes it") from error
    if not numpy.isfinite(table["step"].to_numpy(float)).all():
        raise UserError(f"{path}: column step: a step is missing; it is not as a training writes it")
    return table


def _network(results: Path, name: str, recipes: Recipes | None) -> Network:
    missing: list[str] = []

    def present(path: Path, what: str) -> Path | None:
        if path.exists():
            return path
        missing.append(f"{what} ({path})")
        return None

    config_path = present(results / "configs" / f"{name}.yaml", "configuration")
    checkpoint_path = present(results / f"{name}.ckpt", "checkpoint")
    history_path = present(results / "state" / name / "history.csv", "losses of the training")
    validation_path = present(results / "state" / name / "validation.csv", "validations during the training")
    scores_path = present(results / "metrics" / f"{name}.csv", "metrics of each utterance")
    summary_path = present(results / "metrics" / f"{name}.summary.csv", "summary of the metrics")
    audio = present(results / "enhanced" / name, "enhanced utterances")

    config = read_file(config_path) if config_path else None
    if config:
        plugins.load([*config.get("plugins", []), *config.get("metric_plugins", [])])
    experiment = _experiment(config, config_path) if config else None
    checkpoint = _checkpoint(checkpoint_path) if checkpoint_path else None
    validation = _numbers(validation_path) if validation_path else None
    trained_by = recipes.find(config) if config and recipes else None
    recipe = recipes.complete(trained_by, config) if trained_by else None
    size = recipes.sizes.get(trained_by) if trained_by else None
    return Network(
        name=name,
        task=_task(experiment),
        config=config,
        experiment=experiment,
        checkpoint=checkpoint,
        scale=_scale(experiment, checkpoint, recipe, size) if experiment else None,
        data=_training_data(experiment) if experiment else None,
        history=_numbers(history_path) if history_path else None,
        validation=validation,
        scores=_scores(summary_path, scores_path) if summary_path else [],
        utterances=_utterances(audio, scores_path) if audio else [],
        facts=_facts(experiment, checkpoint) + _best(experiment, validation),
        recipe=trained_by,
        differences=_differences(config, recipe) if config and recipe else [],
        missing=missing,
    )


def _schema(path: Path | None) -> dict:
    from finallyse.schema import read_schema

    if path is None:
        raise UserError("comparing with the recipes needs a schema: give --schema config/schema.json as well")
    return read_schema(path)


def _experiment(config: dict[str, Any], path: Path) -> Experiment:
    """A configuration as written, possibly by another version: of the right types, with any names and values."""
    from finallyse.datasets import datasets_registry  # slow to import

    validate(config, _types_only(dataclass_schema(Experiment)), str(path))
    experiment = from_dict(Experiment, config)
    if experiment.data.train.name not in datasets_registry:
        raise UserError(f"{path}: data.train.name: {nearest(experiment.data.train.name, datasets_registry)}")
    return experiment


def _types_only(schema: dict) -> dict:
    """`schema` with the types of values as the only condition."""
    kept: dict[str, Any] = {key: schema[key] for key in {"type", "items", "anyOf"} & schema.keys()}
    if "properties" in schema:
        kept["properties"] = {name: _types_only(inner) for name, inner in schema["properties"].items()}
    return kept


def _task(experiment: Experiment | None) -> Task:
    from finallyse.datasets import datasets_registry

    if experiment is None:
        return Task("", "Input", "the input")
    train = experiment.data.train
    try:
        task = datasets_registry[train.name].task_of(**train.args)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"data.train.args of a network: {error}; they are not those of {train.name}") from error
    return task or Task(f"trained on {train.name}", "Input", "the input")


def _of_paper(path: Path) -> pandas.DataFrame:
    if not path.exists():
        raise UserError(f"{path}: no such file; --paper is the folder of the published results (resources/paper)")
    return _csv(path, dtype=str, keep_default_na=False)


def _published(path: Path) -> list[Published]:
    names = [field.name for field in dataclasses.fields(Published)]
    table = _of_paper(path)
    if list(table.columns) != names:
        raise UserError(f"{path}: its columns must be {', '.join(names)}")
    for url in table["url"]:
        if not re.match(r"https?://", url):
            raise UserError(f"{path}: url {url!r}: must begin with https://")
    return [Published(**row) for row in table.to_dict("records")]


def _scale(
    experiment: Experiment,
    checkpoint: Mapping[str, Any] | None,
    recipe: Experiment | None,
    size: Mapping[str, str] | None,
) -> Scale:
    return Scale(
        steps=checkpoint["step"] if checkpoint else experiment.train.steps,
        recipe_steps=recipe.train.steps if recipe else None,
        batch_size=experiment.data.batch_size,
        recipe_batch_size=recipe.data.batch_size if recipe else None,
        parameters=checkpoint["parameters"] if checkpoint else None,
        recipe_parameters=int(size["generator_parameters"]) if size else None,
        recipe_source=size["source"] if size else "",
    )


def _checkpoint(path: Path) -> dict[str, Any]:
    """What the report shows of a checkpoint; of its weights, only the number of generator parameters."""
    from finallyse.models.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    # The gains of the weight norm are left out, as in published counts.
    counted = [tensor.numel() for name, tensor in checkpoint.generator.items() if not name.endswith("original0")]
    return {
        "step": checkpoint.step,
        "version": checkpoint.package_version,
        "devices": checkpoint.devices,
        "parameters": sum(counted),
    }


def _facts(experiment: Experiment | None, checkpoint: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    facts = []
    wavlm = Path(experiment.wavlm) / "config.json" if experiment and experiment.wavlm else None
    if wavlm and wavlm.is_file():
        try:
            shape = json.loads(wavlm.read_text(encoding="utf-8"))
            facts.append(("WavLM", f"{shape['num_hidden_layers']} layers of {shape['hidden_size']}"))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{wavlm}: not the configuration of a WavLM ({type(error).__name__}: {error})") from error
    if checkpoint:
        facts.append(("Trained by", f"finallyse {checkpoint['version']}"))
        devices = checkpoint["devices"]
        parts = [name + (f" ({steps:,} steps)" if len(devices) > 1 else "") for name, steps in devices.items()]
        facts += [("Trained on", ", ".join(parts))] if parts else []
    return facts


def _best(experiment: Experiment | None, validation: pandas.DataFrame | None) -> list[tuple[str, str]]:
    """The step whose weights `train.best` keeps, with their number."""
    column = experiment.train.best if experiment else None
    name = metric_of(column)
    if name is None or validation is None or column not in validation or validation[column].isna().all():
        return []
    better = metrics_registry[name].better
    at = validation[column].map(lambda value: goodness(value, better)).idxmax()  # the first of equals, as in training
    value, step = validation.loc[at, column], int(validation.loc[at, "step"])
    return [("Best validation", f"{label_of(column)} {number(value)} at step {step:,}")]


class Recipes:
    """The recipes that a run is compared with, which it is told to be one of by what is trained, not by its name.

    A network is of the recipe with the same trainer, the same generator, and the same training dataset with the same
    task (for bandwidth extension: the same cut-off), according to the configuration that the workflow has written. So
    another name, sizes, steps, folders and corpora make no difference, nor does an experiment file of one's own that
    extends a recipe; another task does. Of several such recipes, one of a publication comes first, then the one with
    the fewest differences.

    Args:
        folder: the recipes' experiment files, `<recipe>.yaml`.
        schema: JSON schema with the defaults that complete them.
        sizes: recipe -> its row of resources/paper/recipes.csv.
    """

    def __init__(self, folder: Path, schema: dict, sizes: Mapping[str, Mapping[str, str]]):
        from finallyse.config import read_yaml

        self.schema, self.sizes = schema, sizes
        self._files = {path.stem: (path, read_yaml(path)) for path in sorted(folder.glob("*.yaml"))}
        if not self._files:
            raise UserError(f"--experiments {folder}: contains no experiment files")
        self._kinds = {name: self._kind_of_file(*file) for name, file in self._files.items()}

    def find(self, config: Mapping[str, Any]) -> str | None:
        """The recipe of a network trained with the complete experiment `config`; None: none."""
        kind = _kind(from_dict(Experiment, config))
        of_kind = [name for name, other in self._kinds.items() if kind == other]
        if len(of_kind) < 2:
            return next(iter(of_kind), None)

        def distance(name: str) -> tuple[bool, int]:
            return name not in self.sizes, len(_differences(config, self.complete(name, config)))

        return min(of_kind, key=distance)

    def complete(self, name: str, config: Mapping[str, Any]) -> Experiment:
        """The complete experiment of a recipe, with the folders of the run of `config`."""
        from finallyse.config import complete_experiment, merge

        path, values = self._files[name]
        return from_dict(Experiment, complete_experiment(merge(values, {"exp": config["exp"]}), str(path), self.schema))

    def _kind_of_file(self, path: Path, values: dict) -> tuple[str | None, ...] | None:
        """None for a file that is not complete, which only others extend."""
        from finallyse.schema import check_required

        experiment = from_dict(Experiment, values)
        try:
            check_required(values, self.schema["$defs"]["experiment"], self.schema, str(path))
        except UserError:
            return None
        return _kind(experiment) if experiment.data.train.name else None


def _kind(experiment: Experiment) -> tuple[str | None, ...]:
    """Trainer, generator, dataset and task."""
    return experiment.trainer, experiment.generator.name, experiment.data.train.name, _task(experiment).text


def _differences(config: Mapping[str, Any], recipe: Experiment) -> list[tuple[str, str, str]]:
    """Options that define the result and differ between run and recipe, both complete with their defaults."""
    of_recipe, of_run = flat_options(dataclasses.asdict(recipe)), flat_options(config)
    keys = [key for key in [*of_run, *(k for k in of_recipe if k not in of_run)] if defines_run(key)]
    return [
        (key, of_recipe.get(key, "–"), of_run.get(key, "–")) for key in keys if of_recipe.get(key) != of_run.get(key)
    ]


def flat_options(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested options as `a.b.c` -> value in YAML's flow style; lists are values."""
    if isinstance(value, Mapping) and value:
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= flat_options(inner, f"{prefix}.{key}" if prefix else str(key))
        return flat
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False).strip()
    return {prefix: text.removesuffix("...").strip()}


def read_scores(results: Path, network: str) -> list[Score]:
    """The metrics of a network; its tables must exist."""
    paths = [results / "metrics" / f"{network}{suffix}" for suffix in (".summary.csv", ".csv")]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: no such file; run the workflow up to it, or leave {network} out")
    return _scores(*paths)


def read_validation(results: Path, network: str) -> pandas.DataFrame | None:
    """The validations during a network's training: `step` and a column for each metric; None if there are none."""
    return _of_training(results, network, "validation.csv")


def read_config_of(results: Path, network: str) -> dict[str, Any] | None:
    """The complete experiment of a network, as the workflow has written it; None if it has not."""
    path = results / "configs" / f"{network}.yaml"
    return read_file(path) if path.exists() else None


def read_history(results: Path, network: str) -> pandas.DataFrame | None:
    """The losses of a network's training: `step` and a column for each of them; None if there are none."""
    return _of_training(results, network, "history.csv")


def _of_training(results: Path, network: str, table: str) -> pandas.DataFrame | None:
    path = results / "state" / network / table
    return _numbers(path) if path.exists() and path.stat().st_size else None


def _scores(path: Path, utterances: Path | None) -> list[Score]:
    """The summary of the metrics as scripts/evaluate.py writes it, with the changes by its table of `utterances`."""
    rows = read_table(utterances, ["utterance"]) if utterances else pandas.DataFrame()
    table = _csv(path, dtype=str, keep_default_na=False) if path.stat().st_size else pandas.DataFrame()
    needed = ["metric", "mean", "ci95", "n", "unscored", "reasons", "missing", "unit", "better", "paper"]
    for column in needed:
        if column not in table:
            raise UserError(f"{path}: has no column {column!r}; it is not a summary of scripts/evaluate.py")

    def interval(row: Mapping[str, str], role: str) -> Interval | None:
        if not row.get(f"{role}mean"):
            return None
        mean = float(row[f"{role}mean"])
        half = float(row[f"{role}ci95"] or "nan")
        return Interval(mean, mean - half, mean + half)

    scores = []
    for row in table.to_dict("records"):
        try:
            scores.append(
                Score(
                    metric=row["metric"],
                    output=interval(row, ""),
                    input=interval(row, "noisy_"),
                    change=_change(rows, utterances, row["metric"]),
                    reference=interval(row, "reference_"),
                    scored=int(row["n"]),
                    failed=int(row["unscored"]),
                    reason=row["missing"] or row["reasons"] or ("" if int(row["n"]) else "no utterance was measured"),
                    better=_better(row["better"]),
                    unit=row["unit"],
                    about=row["paper"],
                )
            )
        except ValueError as error:
            raise UserError(
                f"{path}: the row of {row['metric']} is not as scripts/evaluate.py writes it ({error})"
            ) from error
    return scores


def _change(rows: pandas.DataFrame, path: Path | None, metric: str) -> Change | None:
    try:
        return paired_change(rows, metric)
    except ValueError as error:
        raise UserError(
            f"{path}: the columns of {metric} are not as scripts/evaluate.py writes them ({error})"
        ) from error


def _better(text: str) -> Better:
    if text not in get_args(Better):
        raise ValueError(f"better: {text!r}")
    return text


def _utterances(folder: Path, scores_path: Path | None) -> list[Utterance]:
    """Enhanced utterances with their input, reference and scores, by name."""
    rows: dict[str, dict[str, float]] = {}
    if scores_path:
        table = read_table(scores_path, ["utterance"])
        numeric = table.select_dtypes("number").columns
        rows = {str(row["utterance"]): {c: float(row[c]) for c in numeric} for row in table.to_dict("records")}
    utterances = []
    for path in sorted((folder / "enhanced").rglob("*.wav")):
        name = path.relative_to(folder / "enhanced").with_suffix("").as_posix()
        paths = {kind: folder / kind / f"{name}.wav" for kind in ("noisy", "enhanced", "reference")}
        scores = rows.get(name, {})
        utterances.append(
            Utterance(
                name=name,
                paths={kind: p for kind, p in paths.items() if p.is_file()},
                scores={k: v for k, v in scores.items() if not k.startswith(("noisy_", "reference_"))},
                input_scores={k.removeprefix("noisy_"): v for k, v in scores.items() if k.startswith("noisy_")},
            )
        )
    return utterances


def _compared(results: Path, system: System) -> Compared:
    name = f"{system.network}/{system.slug}"
    scores = read_scores(results, name)
    ours, theirs = (read_table(results / "metrics" / f"{of}.csv", ["utterance"]) for of in (system.network, name))
    try:
        differences = {score.metric: paired_difference(ours, theirs, score.metric) for score in scores}
    except ValueError as error:
        raise UserError(f"{results}/metrics/{name}.csv: not as scripts/evaluate.py writes it ({error})") from error
    files = files_by_name(system.folder)
    numeric = theirs.select_dtypes("number").columns
    utterances = {
        row["utterance"]: Utterance(
            name=row["utterance"],
            paths={"enhanced": files[row["utterance"]]},
            scores={column: float(row[column]) for column in numeric},
            input_scores={},
        )
        for row in theirs.to_dict("records")
        if row["utterance"] in files
    }
    run = system.run
    return Compared(
        system,
        scores,
        {metric: found for metric, found in differences.items() if found},
        utterances,
        read_history(run.results, run.network) if run else None,
        read_validation(run.results, run.network) if run else None,
    )


def _training_data(experiment: Experiment) -> TrainingData | None:
    manifests = experiment.data.train.args.get("manifest") or []
    manifests = manifests if isinstance(manifests, list) else [manifests]
    paths = [Path(path) for path in dict.fromkeys(map(str, manifests))]
    if not paths or not all(path.is_file() for path in paths):
        return None
    table = pandas.concat([read_table(path, ["samples", "rate"]) for path in paths])
    if not all(pandas.api.types.is_numeric_dtype(table[column]) for column in ("samples", "rate")):
        raise UserError(f"{', '.join(map(str, paths))}: samples and rate must be numbers; prepare the corpus again")
    return TrainingData(files=len(table), hours=float((table["samples"] / table["rate"]).sum()) / 3600)


def _jobs(folder: Path) -> list[Job]:
    """Time and memory of every job with a benchmark file, in the order in which they finished."""
    jobs = []
    for path in sorted(folder.rglob("*.tsv"), key=lambda p: p.stat().st_mtime) if folder.is_dir() else []:
        if path == folder / "report.tsv":  # of the previous report
            continue
        try:
            table = pandas.read_csv(path, sep="\t")
            row = table.iloc[-1]  # one row per repetition; the rules have one
            jobs.append(
                Job(
                    rule=path.relative_to(folder).parts[0].removesuffix(".tsv"),
                    name=str(path.relative_to(folder).with_suffix("")).partition(os.sep)[2],
                    seconds=float(row["s"]),
                    # Snakemake writes "-" (or leaves it empty) for a job too short to be sampled.
                    memory_mb=float(pandas.to_numeric(row["max_rss"], errors="coerce")),
                    cpu_seconds=float(pandas.to_numeric(row.get("cpu_time"), errors="coerce")),
                )
            )
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(f"{path}: not a benchmark file of Snakemake ({error})") from error
    return jobs


def _environment() -> dict[str, str]:
    """Versions, commit and machine of the process that writes the report."""
    packages = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not needed for this report
            packages.append(f"{name} {importlib.metadata.version(name)}")
    return {
        "finallyse": __version__,
        "Commit": _commit(),
        "Machine of this report": _machine(),
        "Versions": ", ".join(packages),
    }


def _commit() -> str:
    def git(*arguments: str) -> str | None:
        try:
            # of this package's code, wherever the report is written
            done = subprocess.run(
                ["git", "-C", Path(__file__).parent, *arguments], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return "unknown (not in a git checkout)"
    changed = git("status", "--porcelain", "--untracked-files=no")
    return commit + (" with uncommitted changes" if changed else "")


def _machine() -> str:
    """Processor, cores, memory and GPUs."""
    parts = [processor(), f"{cores()} cores"]
    if sys.platform != "win32":
        parts.append(f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB of memory")
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=False
        )
        gpus = listed.stdout.strip().splitlines() if listed.returncode == 0 else []
    except FileNotFoundError:
        gpus = []
    parts.append(", ".join(gpus) if gpus else "no GPU")
    return "; ".join(parts)
