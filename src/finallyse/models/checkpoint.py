"""Checkpoint files: `results/<network>.ckpt`.

A checkpoint is a dict of plain values and tensors that `torch.load(weights_only=True)` reads:

    format "finallyse checkpoint", format_version, package_version, network, config (the resolved experiment),
    level {"peak": largest magnitude of each waveform that the network was trained on} or None (levels as recorded),
    step, devices {name: steps trained there}, generator (state_dict), discriminators {name: state_dict},
    recipe (what defined the training: finallyse.recipe; only of trained checkpoints), card (model card, Markdown;
    only of packed checkpoints)

It is written atomically and loaded strictly.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finallyse import __version__
from finallyse.checks import argument_schema, validate
from finallyse.errors import UserError
from finallyse.finished import FORMAT
from finallyse.models import models_registry
from finallyse.models.base import Generator
from finallyse.models.tensors import bounded_by, load_strictly, load_tensors, save_tensors

FORMAT_VERSION = 1
# Published networks trained on waveforms with the peak `datasets.base.PEAK`.
PUBLISHED_AT_PEAK = ("hifigan_gen", "hifi++_gen", "a2a_hifi++_gen")


@dataclasses.dataclass
class Checkpoint:
    """Contents of a checkpoint file."""

    path: Path
    network: str
    config: dict[str, Any]
    level: dict[str, float] | None
    step: int
    package_version: str
    devices: dict[str, int]
    generator: dict[str, Tensor]
    discriminators: dict[str, dict[str, Tensor]]
    card: str = ""

    def build_generator(self) -> nn.Module:
        """Build the generator that the config describes, in eval mode, and strictly load the checkpoint's weights."""
        if not self.generator:
            raise UserError(f"{self.path}: holds no generator, only {', '.join(self.discriminators) or 'a config'}")
        settings = self.config.get("generator") or {}
        if settings.get("name") not in models_registry and (files := self.config.get("plugins")):
            raise UserError(
                f"{self.path}: its network {settings.get('name')!r} is of a plugin, {', '.join(map(str, files))}: "
                "give that file with --plugin (finallyse.load: plugins=[...])"
            )
        with bounded_by(self.generator, str(self.path)):
            network, args = models_registry[settings.get("name")], settings.get("args") or {}
            if not issubclass(network, Generator):
                raise UserError(f"{settings['name']} is no generator")
            validate(args, argument_schema(network), "generator.args")
            generator = network(**args)
            if generator.alignment < 1:
                raise UserError(f"{settings['name']} with these arguments has no output")
        load_strictly(generator, self.generator, str(self.path))
        return generator.eval()


def save_checkpoint(
    path: str | Path,
    *,
    network: str,
    config: dict[str, Any],
    step: int,
    generator: Mapping[str, Tensor],
    discriminators: Mapping[str, Mapping[str, Tensor]],
    devices: Mapping[str, int] | None = None,
    recipe: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint atomically: a reader sees the old file or the new one, never a partial one.

    config: the resolved experiment as plain values; the level is that of its training data, or of the publication if it
    has none. Raises UserError if the file cannot be written.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "network": network,
        "config": json.loads(json.dumps(config)),  # plain values only: fail here, not at loading
        "level": _level_of(config),
        "step": int(step),
        "devices": dict(devices or {}),
        **({"recipe": dict(recipe)} if recipe else {}),
        "generator": _on_cpu(generator),
        "discriminators": {name: _on_cpu(state) for name, state in discriminators.items()},
    }
    save_tensors(path, content)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint. Raises UserError for a file that is missing, damaged, in another format or newer."""
    content = load_tensors(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(
            f"{path}: not a checkpoint of this package; for published checkpoints of others see `finallyse convert`"
        )
    validate(content, CONTENT, f"{path}: damaged checkpoint")
    if content["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{path}: written by finallyse {content['package_version']} in format {content['format_version']}, "
            f"this is {__version__} (format {FORMAT_VERSION}); update the package"
        )
    for name, state in {"generator": content["generator"], **content["discriminators"]}.items():
        if not all(isinstance(key, str) and torch.is_tensor(value) for key, value in state.items()):
            raise UserError(f"{path}: damaged checkpoint: {name}: not everything in it is a tensor")
    if "level" not in content:  # written before the level was recorded
        try:
            content["level"] = _level_of(content["config"])
        except TypeError as error:
            raise UserError(f"{path}: damaged checkpoint: config.data.train.args: {error}") from error
        validate(content["level"], CONTENT["properties"]["level"], f"{path}: damaged checkpoint: level")
    content.setdefault("card", "")
    fields = {field.name for field in dataclasses.fields(Checkpoint)} - {"path"}
    return Checkpoint(path=Path(path), **{name: content[name] for name in fields})


TEXT, TEXT_OR_NONE = {"type": "string"}, {"type": ["string", "null"]}
PART = {"type": ["object", "null"], "properties": {"name": TEXT_OR_NONE, "args": {"type": ["object", "null"]}}}
CONTENT = {
    "required": [
        "format_version",
        "package_version",
        "network",
        "config",
        "step",
        "devices",
        "generator",
        "discriminators",
    ],
    "properties": {
        "format_version": {"type": "integer"},
        "package_version": TEXT,
        "network": TEXT,
        "config": {
            "type": "object",
            "properties": {
                "generator": PART,
                "data": {"type": "object", "properties": {"train": PART}},
                "exp": {"type": "object", "properties": {"results": TEXT}},
                "wavlm": TEXT_OR_NONE,
            },
        },
        "level": {"type": ["object", "null"], "additionalProperties": {"type": "number"}},
        "step": {"type": "integer", "minimum": 0},
        "devices": {"type": "object", "additionalProperties": {"type": "integer"}},
        "generator": {"type": "object"},
        "discriminators": {"type": "object", "additionalProperties": {"type": "object"}},
        "card": TEXT,
    },
}
"""JSON schema of what every reader of a checkpoint relies on; other settings are for those who use them to check."""


def _level_of(config: Mapping[str, Any]) -> dict[str, float] | None:
    """The level of a generator's training data according to its experiment: see `ItemDataset.level_of`."""
    from finallyse.datasets import datasets_registry
    from finallyse.datasets.base import PEAK

    data = config.get("data", {}).get("train") or {}
    name = data.get("name")
    if name is None:  # converted without an experiment
        return {"peak": PEAK} if config.get("generator", {}).get("name") in PUBLISHED_AT_PEAK else None
    if name not in datasets_registry:  # an old checkpoint, trained on a dataset of another package
        return None
    return datasets_registry[name].level_of(**(data.get("args") or {}))


def _on_cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu() for name, tensor in state.items()}
