"""Conversion of published checkpoints to checkpoints of this package.

Supported formats: published HiFi-GAN (`generator` in its own file, `mpd` and `msd` in the `do_` file), the HiFi++
release (the bare state_dict of a generator) and the original course work (`state_dict`); with norms as `weight_g`,
`weight_v` or `weight_orig`, as parametrizations, or folded in. Layers keep their published names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from finallyse.checks import argument_schema, validate
from finallyse.config import yaml_value
from finallyse.errors import UserError
from finallyse.models import models_registry
from finallyse.models.base import Generator
from finallyse.models.checkpoint import FORMAT, save_checkpoint
from finallyse.models.tensors import bounded_by, load_strictly, load_tensors

RENAMED = {"pre_upsampler_proccessing.": "pre_upsampler_processing."}
CONSTANTS = ("spec_transform.window",)  # saved in some formats, computed here


def convert(
    source: str | Path,
    output: str | Path,
    networks: Sequence[str],
    experiment: str | Path | None = None,
    arguments: Mapping[str, Any] | None = None,
    force: bool = False,
) -> list[str]:
    """Convert `source` to `output`; returns a line per network that describes what was converted.

    Args:
        networks: registry names: a generator, or the discriminators in `source`.
        experiment: experiment file that describes these networks; None: networks with their default arguments.
        arguments: constructor arguments that override those.
        force: replace an existing `output`.

    Raises UserError if `output` exists, if a network is not in the file, or for all keys and shapes that differ.
    """
    if Path(output).exists() and not force:
        raise UserError(f"{output}: exists; give --force to replace it")
    content = load_tensors(source)
    if isinstance(content, dict) and content.get("format") == FORMAT:
        raise UserError(f"{source}: is a checkpoint of this package already")
    config = _config(networks, experiment, arguments or {})
    lines, generator, discriminators = [], {}, {}
    for name in networks:
        state, given = _find(content, name, len(networks), source), _arguments(config, name)
        with bounded_by(state, f"{source} as {name}"):
            validate(given, argument_schema(models_registry[name]), "arguments")
            network = models_registry[name](**given)
            state = _modernised(state, network)
        load_strictly(network, state, str(source))
        lines.append(f"{name}: {sum(p.numel() for p in network.parameters()):,} parameters, {len(state)} tensors")
        if _generates(name):
            generator = network.state_dict()
        else:
            discriminators[name] = network.state_dict()
    step = next((content[key] for key in ("steps", "step", "global_step") if isinstance(content.get(key), int)), 0)
    save_checkpoint(
        output, network="+".join(networks), config=config, step=step, generator=generator, discriminators=discriminators
    )
    return lines


def parse_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse `["ssl_dim=768", "use_skip_connect=false"]` to a dict of YAML types; UserError for one that is none."""
    arguments = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"--arg {pair}: write name=value, e.g. --arg upsample_initial_channel=128")
        arguments[key] = yaml_value(value, f"--arg {pair}")
    return arguments


def _generates(name: str) -> bool:
    return issubclass(models_registry[name], Generator)


def _config(networks: Sequence[str], experiment: str | Path | None, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the checkpoint: the resolved experiment, or a minimal one that names the networks."""
    if len({_generates(name) for name in networks}) > 1 or len(set(networks)) < len(networks):
        raise UserError("--network: give one generator, or discriminators of one file, each once")
    if experiment is not None:
        from finallyse.config import load_experiment

        config = dataclasses.asdict(load_experiment([f"exp.config_path={experiment}"]))
    else:
        config = {"generator": {"name": None, "args": {}}, "discriminators": {"parts": {}}}
    for name in networks:
        if not _generates(name):
            config["discriminators"]["parts"].setdefault(name, {})
        elif experiment is None:
            config["generator"]["name"] = name
        elif config["generator"]["name"] != name:
            raise UserError(f"{experiment}: its generator is {config['generator']['name']}, not {name}")
        settings = config["generator"] if _generates(name) else config["discriminators"]["parts"][name]
        settings["args"] = {**(settings.get("args") or {}), **arguments}
    return config


def _arguments(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    return (config["generator"] if _generates(name) else config["discriminators"]["parts"][name])["args"]


def _find(content: Any, name: str, wanted: int, source: str | Path) -> dict[str, Tensor]:
    """Find the state_dict of a network in the contents of a file."""
    found = content
    for key in ("state_dict", name, "generator" if _generates(name) else name):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(map(torch.is_tensor, found.values())):
        held = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{source}: no weights of {name} found; the file holds {held}")
    if found is content and wanted > 1:
        raise UserError(f"{source}: holds one network; give one --network")
    return found


def _modernised(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename the weights to the keys of this package's network."""
    if all(key.startswith("module.") for key in state):  # saved from DataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    for old, new in RENAMED.items():
        state = {key.replace(old, new): value for key, value in state.items()}
    normed = {name for name, layer in network.named_modules() if parametrize.is_parametrized(layer, "weight")}
    own = network.state_dict().keys()
    result = {}
    for key, value in state.items():
        layer, _, part = key.rpartition(".")
        norm = f"{layer}.parametrizations.weight"
        spectral = {"weight_orig": "original", "weight_u": "0._u", "weight_v": "0._v"}
        if f"{layer}.weight_orig" in state and part in spectral:
            result[f"{norm}.{spectral[part]}"] = value
        elif part in ("weight_g", "weight_v"):
            result[f"{norm}.original{'gv'.index(part[-1])}"] = value
        elif part == "weight" and layer in normed and f"{norm}.original1" in own:  # folded: split off the norm again
            result[f"{norm}.original0"] = torch.norm_except_dim(value, 2, 0)
            result[f"{norm}.original1"] = value
        elif not key.endswith(CONSTANTS):
            result[key] = value
    return result
