"""A resolved experiment with the source of each value: `finallyse config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from finallyse.config import (
    Layer,
    experiment_layers,
    load_experiment,
    load_pipeline,
    network_experiment,
    override_experiment,
    parse_overrides,
    pipeline_layers,
    project_files,
)
from finallyse.errors import UserError, nearest
from finallyse.schema import build_schema
from finallyse.sweep import nested, read_sweep


def show(name: str, overrides: Sequence[str], files: Sequence[str]) -> None:
    """Print the complete experiment of a network of the pipeline, or of an experiment file, changed by `overrides`.

    `files`: config files over config/config.yaml, as for Snakemake; they do not count for an experiment file.
    """
    schema = build_schema()
    if Path(name).is_file():
        experiment = dataclasses.asdict(load_experiment([f"exp.config_path={name}", *overrides], schema))
        layers = [*experiment_layers(name, schema), Layer("command line", {"exp": {"config_path": name}})]
    else:
        experiment, layers = _of_pipeline(name, overrides, files, schema)
    print(resolved(experiment, [*layers, *_typed(overrides)]), end="")


def _of_pipeline(name: str, overrides: Sequence[str], files: Sequence[str], schema: dict) -> tuple[dict, list[Layer]]:
    files = project_files(files)
    config = load_pipeline(files, {}, schema)
    if name not in config["networks"]:
        known = f"no such experiment file and no network of {', '.join(map(str, files))}"
        raise UserError(f"{name}: {known}; {nearest(name, config['networks'])}")
    incomplete, source = network_experiment(config, name, schema)
    layers = experiment_layers(config["networks"][name]["experiment"], schema)
    of_files = pipeline_layers(files, {}, schema)
    layers.append(Layer("name of the network", {"exp": {"run_name": name}}))
    defaults = {"exp": dict.fromkeys(("results", "resources", "seed"))}
    layers += [Layer("default of the pipeline", defaults)]
    layers += [Layer(layer.source, {"exp": layer.values}) for layer in of_files]
    layers += [Layer(f"{layer.source}: common", layer.values.get("common", {})) for layer in of_files]
    sweeps = [read_sweep(sweep, entry) for sweep, entry in config["sweep"].items()]
    sweep = next((sweep for sweep in sweeps if name in sweep.networks), None)
    of_network = sweep.base if sweep else name
    for layer in of_files:
        network = (layer.values.get("networks") or {}).get(of_network) or {}
        layers.append(Layer(f"{layer.source}: networks.{of_network}.override", network.get("override", {})))
    if sweep:
        layers.append(Layer(f"sweep.{sweep.name}.grid", nested(sweep.networks[name])))
    return override_experiment(incomplete, overrides, source, schema), layers


def _typed(overrides: Sequence[str]) -> list[Layer]:
    """A layer for each override, which contains only its key."""
    layers = []
    for override in parse_overrides(overrides):
        values: Any = {}
        for key in reversed(override.key_or_group.split(".")):
            values = {key: values}
        layers.append(Layer("command line", values))
    return layers


def resolved(experiment: dict, layers: Sequence[Layer]) -> str:
    """`experiment` as YAML, each value with the last of `layers` that sets it as a comment; none: a default."""
    rows = list(_rows(experiment, (), layers))
    width = min(80, max(len(text) for text, _ in rows))
    return "".join(f"{text:<{width}}  # {source}".rstrip(" #") + "\n" for text, source in rows)


def _rows(value: dict, path: tuple[str, ...], layers: Sequence[Layer]) -> Iterator[tuple[str, str]]:
    """Lines of YAML, each with its source, empty if it has none."""
    for key, inner in value.items():
        at, indent = (*path, str(key)), "  " * len(path)
        if isinstance(inner, dict) and inner:
            yield f"{indent}{_flow(key)}:", ""
            yield from _rows(inner, at, layers)
        elif isinstance(inner, list) and any(isinstance(item, dict) for item in inner):
            yield f"{indent}{_flow(key)}:", _source(at, layers)
            yield from ((f"{indent}  - {_flow(item)}", "") for item in inner)
        else:
            yield f"{indent}{_flow(key)}: {_flow(inner)}", _source(at, layers)


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


def _source(path: tuple[str, ...], layers: Sequence[Layer]) -> str:
    """The last layer that sets the value at `path`, or a section as a whole that it belongs to."""
    for layer in reversed(layers):
        inside: Any = layer.values
        for key in path:
            if not isinstance(inside, dict) or key not in inside:
                break
            inside = inside[key]
        else:
            return layer.source
    return "default"
