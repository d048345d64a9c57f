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

from finallyse import __version__, atomic
from finallyse.errors import UserError
from finallyse.finished import FORMAT
from finallyse.models import models_registry

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
        settings = self.config["generator"]
        generator = models_registry[settings["name"]](**settings.get("args", {}))
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
    if content["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{path}: written by finallyse {content['package_version']} in format {content['format_version']}, "
            f"this is {__version__} (format {FORMAT_VERSION}); update the package"
        )
    if "level" not in content and "config" in content:  # written before the level was recorded
        content["level"] = _level_of(content["config"])
    content.setdefault("card", "")
    fields = {field.name for field in dataclasses.fields(Checkpoint)} - {"path"}
    if missing := sorted(fields - content.keys()):
        raise UserError(f"{path}: damaged checkpoint, without {', '.join(missing)}")
    return Checkpoint(path=Path(path), **{name: content[name] for name in fields})


def load_tensors(path: str | Path) -> Any:
    """`torch.load` plain values and tensors onto the CPU. Raises UserError for an unreadable file."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of any kind: it reads a file of another kind as a program
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise UserError(
            f"{path}: not readable as a checkpoint (damaged, or not written by torch.save): {reason}"
        ) from error


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state_dict; raises a UserError listing every key that is missing, unexpected or of another shape."""
    own = module.state_dict()
    problems = [f"missing {key} {list(own[key].shape)}" for key in own if key not in state]
    problems += [f"left over {key} {list(state[key].shape)}" for key in state if key not in own]
    problems += [
        f"{key} has shape {list(state[key].shape)} instead of {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if problems:
        raise UserError(f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}")
    module.load_state_dict(state)


def save_tensors(path: str | Path, content: Mapping[str, Any]) -> None:
    """`torch.save` atomically and durably; raises a UserError with the path on failure."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path, durable=True) as part, part.open("wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch.save reports a short write as RuntimeError
        raise UserError(f"{path}: could not be written: {next(iter(str(error).splitlines()), '')}") from error


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
