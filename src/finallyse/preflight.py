"""What would stop a workflow, found before a byte is fetched: `finallyse check`, and at every start of Snakemake.

For each network, and those that it starts from: user files exist, networks are built, the weights that they start from
fit, and a step is made on the meta device (:mod:`finallyse.training.rehearsal`). Memory, disk and hours are estimated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import finallyse
from finallyse import plugins
from finallyse.config import network_checkpoints, read_config, starts
from finallyse.corpora.plan import costs
from finallyse.corpora.space import RESERVE, free_space
from finallyse.errors import UserError, nearest, one_line_errors
from finallyse.options import Experiment, from_dict
from finallyse.progress import data_size, duration
from finallyse.status import read_history
from finallyse.sweep import read_sweep

# Options that hold the path of a file or folder of the user's, unless the workflow makes it.
PATHS = ("manifest", "folder", "weights", "wavlm", "init_from", "path")
TFLOPS = 20  # sustained by a GPU on these networks: an example, not a measurement (docs/cluster.md)
STATE_BYTES = 12  # of a resume state per trained value: the weight and AdamW's two moments
IRRELEVANT = ("run_name", "config_path", "seed", "lr", "steps")  # in which the networks of a sweep may differ
PASSED = Path(".snakemake/finallyse/checked")  # experiments that have passed, by a hash of everything that counts


def check(targets: Sequence[str], arguments: Sequence[str]) -> int:
    """`finallyse check`: print what was found; 2 if a training would fail, otherwise 0."""
    config = read_config(arguments)
    return report(config, networks_of(config, targets), PASSED, again=True)


def networks_of(config: Mapping, targets: Sequence[str]) -> list[str]:
    """The networks that targets (networks, sweeps, checkpoints; none: all) are made with, in the order of training."""
    experiments = config["experiments"]
    by_path = network_checkpoints(config)
    sweeps = {name: list(read_sweep(name, entry).networks) for name, entry in config["sweep"].items()}
    sweeps = {name: members for name, members in sweeps.items() if set(members) <= experiments.keys()}
    named = {name: [name] for name in experiments} | sweeps
    for target in targets:
        if by_path.get(target, target) not in named:
            raise UserError(f"{target}: no network or sweep of this config; {nearest(target, named)}")
    asked = [name for target in targets for name in named[by_path.get(target, target)]] or list(experiments)
    ordered: list[str] = []

    def visit(name: str, chain: tuple[str, ...]) -> None:
        if name in chain:
            raise UserError(f"networks.{name} starts from itself: {' <- '.join([*chain, name])}")
        for source in starts(experiments[name]):
            if source in by_path:
                visit(by_path[source], (*chain, name))
        if name not in ordered:
            ordered.append(name)

    for name in asked:
        visit(name, ())
    return ordered


def report(config: Mapping, names: Sequence[str], passed: Path, again: bool) -> int:
    """Check networks and print a line for each, then disk space. again: also those that have passed before."""
    failed = 0
    trained: dict[str, int] = {}
    for name in names:
        marker = passed / _hash(config, name)
        if marker.is_file() and not again:
            continue
        with _quietly():
            lines, errors, trained[name] = _network(config, name)
        for line in lines:
            print(f"{name}: {line}", flush=True)
        for error in errors:
            print(f"error: networks.{name}: {error}", file=sys.stderr, flush=True)
        failed += bool(errors)
        if not errors:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.touch()
    for line in _space(config, names, trained):
        print(line, flush=True)
    return 2 if failed else 0


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Context without the lines that belong in a training's own log."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _network(config: Mapping, name: str) -> tuple[list[str], list[str], int]:
    """What a network's training needs, what would stop it, and the number of its trained values."""
    options = config["experiments"][name]
    errors = list(_missing(config, options))
    if errors:
        return [], errors, 0
    from finallyse.training.rehearsal import rehearse  # imports PyTorch

    settings = config["networks"][name]
    experiment = from_dict(Experiment, options)
    try:
        made = rehearse(experiment, _Weights(config), settings["gpus"])
    except UserError as error:
        return [], [str(error)], 0
    lines = [f"not tried: {reason}" for reason in made.left_out]
    if math.isnan(made.flop):
        return [*lines, "a step can be made"], [], 0
    step, pace = read_history(Path(config["results"], "state", name, "history.csv"))
    left = max(0, experiment.train.steps - step)
    if pace:
        hours = f"{duration(left * pace)} left at {pace:.2g} s a step"
    else:
        seconds = left * made.flop / (TFLOPS * 1e12) / settings["gpus"]
        hours = f"{duration(seconds)} at {TFLOPS} TFLOP/s" + (" on each GPU" if settings["gpus"] > 1 else "")
    per_gpu = " on each GPU" if settings["gpus"] > 1 else ""
    lines.append(
        f"a step can be made: {made.trained / 1e6:.1f} M values trained, {made.flop / 1e12:.2g} TFLOP, about "
        f"{data_size(int(made.memory))} of memory for {made.microbatch} items at once{per_gpu}; "
        f"{left} steps: {hours}"
    )
    lines += _memory(made.memory, options["exp"]["device"], settings["mem_gb"])
    return lines, [], made.trained


def _memory(needed: float, device: str, mem_gb: float) -> Iterator[str]:
    """A warning if the estimate is beyond what there is."""
    import torch

    if device != "cpu" and torch.cuda.is_available():
        there, what = torch.cuda.get_device_properties(0).total_memory, "the GPU has"
    elif device == "cpu":
        there, what = mem_gb * 1e9, "mem_gb is"
    else:
        return
    if needed > there:
        needs = f"about {data_size(int(needed))} of memory are needed, {what} {data_size(int(there))}"
        yield f"warning: {needs}: lower data.sub_batch_size"


class _Weights:
    """The weights of a checkpoint, or the shapes that a network of the config will have when it is trained."""

    def __init__(self, config: Mapping):
        self.config = config

    def __call__(self, path: str, part: str) -> Mapping:
        from finallyse.models.checkpoint import load_checkpoint

        name = network_checkpoints(self.config).get(path)
        if name is None:
            return getattr(load_checkpoint(path), part)
        options = self.config["experiments"][name]
        if path.endswith(".best.ckpt") and not options["train"]["best"]:
            raise UserError(f"{path} will not be made: networks.{name} has train.best=null; start from {name}.ckpt")
        return self._shapes(options, part)

    def _shapes(self, options: Mapping, part: str) -> Mapping:
        import torch

        from finallyse.models import models_registry

        with torch.device("meta"):
            if part == "generator":
                generator = options["generator"]
                return models_registry[generator["name"]](**generator["args"]).state_dict()
            parts = options["discriminators"]["parts"]
            return {n: models_registry[n](**(p or {}).get("args", {})).state_dict() for n, p in parts.items()}


def _missing(config: Mapping, options: Mapping) -> Iterator[str]:
    """Errors for files of the user's that do not exist."""
    resources, made = config["resources"], network_checkpoints(config)
    for key, path in _paths(options, ""):
        workflows = path in made or path.startswith((f"{resources}/prepared/", f"{resources}/weights/"))
        if not workflows and not Path(path).exists():
            yield f"{key}: {path}: no such file or folder"


def _paths(value: Any, at: str) -> Iterator[tuple[str, str]]:
    """The dotted key and the value of every option that holds a path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _paths(inner, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, at)
    elif isinstance(value, str) and not at.startswith("exp."):
        last = at.rpartition(".")[2]
        if last in PATHS or last.endswith(tuple(f"_{name}" for name in PATHS)):
            yield at, value


def _space(config: Mapping, names: Iterable[str], trained: Mapping[str, int]) -> Iterator[str]:
    """Lines on the disk space that downloads and states take."""
    needed = set(names)
    left = sum(cost.left for cost in costs(config) if needed & set(cost.needed_by))
    keep = {name: config["experiments"][name]["train"]["keep"] for name in names}
    states = sum(trained.get(name, 0) * (STATE_BYTES * (keep[name] + 1) + 4) for name in names)
    for bytes_, folder, what in (
        (left, config["resources"], "to download, and as much again or more to unpack and prepare"),
        (states, config["results"], "of states and checkpoints"),
    ):
        if bytes_:
            free = free_space(folder)
            enough = "" if free > bytes_ + RESERVE else ": not enough"
            yield f"{folder}: {data_size(bytes_)} {what}; {data_size(free)} are free{enough}"


def _hash(config: Mapping, name: str) -> str:
    """A name for all that the check of a network depends on: experiments, code, and the files that it starts from."""
    options, checkpoints, begins = config["experiments"], network_checkpoints(config), []
    for source in starts(options[name]):
        begins += [source, options[checkpoints[source]] if source in checkpoints else _changed(source)]
    files = [*Path(finallyse.__file__).parent.rglob("*.py"), *(p for p in plugins.loaded() if p.endswith(".py"))]
    code = max(Path(file).stat().st_mtime_ns for file in files)
    counted = [_without(IRRELEVANT, part) for part in (options[name], begins)]
    text = json.dumps([counted, config["networks"][name]["gpus"], code], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _changed(path: str) -> int | None:
    return Path(path).stat().st_mtime_ns if Path(path).exists() else None


def _without(keys: Collection[str], value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(keys, inner) for key, inner in value.items() if key not in keys}
    return [_without(keys, inner) for inner in value] if isinstance(value, list) else value


def main(words: Sequence[str]) -> int:
    """Called by the workflow: `python -m finallyse.preflight NETWORK ... < config as JSON`."""
    plugins.load_inherited()
    return report(json.load(sys.stdin), words, PASSED, again=False)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(sys.argv[1:]))
