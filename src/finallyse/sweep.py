"""Sweeps: for each combination of some options' values, a network that differs from another one in these options only.

The name of such a network says its values and depends on nothing else, so that a grid can grow without renaming what
has been trained: `denoise_lr_lr1e-4_seed1` is the network of the sweep `denoise_lr` with a learning rate of 1e-4 and
the seed 1. Names hold only letters, digits, `-` and `_`: they are targets, parts of paths and words of commands.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from finallyse.errors import UserError

SEED = "exp.seed"
"""The option whose values are repetitions of the same experiment; it comes last in names."""

MOST_NETWORKS = 3000
"""Combinations of one sweep. Each is a training, and at least seven jobs to plan."""

LONGEST_NAME = 120
"""Characters of a network's name: file names may have 255, and logs and clusters add theirs."""

LONGEST_VALUE = 24
"""Characters of a value in a name; a longer one is replaced by a digest."""


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The combinations of `grid`, option -> values, as networks that otherwise are the network `base`."""

    name: str
    base: str
    grid: Mapping[str, Sequence[Any]]

    @property
    def options(self) -> list[str]:
        """The varied options, in an order that does not depend on the file's: by name, the seed last."""
        return sorted(self.grid, key=lambda option: (option == SEED, option))

    @functools.cached_property
    def networks(self) -> dict[str, dict[str, Any]]:
        """Name -> option -> value of each network; UserError where two would have the same name."""
        labels = _labels(self.options)
        found: dict[str, dict[str, Any]] = {}
        for values in itertools.product(*(self.grid[option] for option in self.options)):
            words = [f"{labels[option]}{_word(value)}" for option, value in zip(self.options, values, strict=True)]
            found["_".join([self.name, *words])] = dict(zip(self.options, values, strict=True))
        return found

    def settings(self) -> dict[tuple[str, ...], list[str]]:
        """The values of the options but the seed, as JSON -> the networks with these values, one for each seed."""
        found: dict[tuple[str, ...], list[str]] = {}
        for name, values in self.networks.items():
            key = tuple(json.dumps(values[option]) for option in self.options if option != SEED)
            found.setdefault(key, []).append(name)
        return found


def read_sweep(name: str, entry: Mapping[str, Any]) -> Sweep:
    """The sweep of an entry `{base, grid}` of the pipeline's `sweep`; UserError for one that is none."""
    where = f"config: sweep.{name}"
    if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name)):
        raise UserError(
            f"{where}: the name may hold only letters, digits, - and _, and begins with one of the first two"
        )
    if not entry["base"]:
        raise UserError(f"{where}.base is required: the network whose experiment is varied")
    grid = {option: values for option, values in entry["grid"].items() if values is not None}
    if not grid:
        raise UserError(f"{where}.grid: is empty; name options and their values, e.g. {{exp.seed: [1, 2, 3]}}")
    for option, values in grid.items():
        if not (isinstance(option, str) and all(option.split("."))):
            raise UserError(f"{where}.grid.{option}: must be an option of the experiment, as in exp.seed")
        if not values:
            raise UserError(f"{where}.grid.{option}: is empty; give it a value, or leave it out")
        words = [_word(value) for value in values]
        for position, word in enumerate(words):
            if word in words[:position]:
                raise UserError(f"{where}.grid.{option}: {json.dumps(values[position])} is listed twice")
        inside = next((other for other in grid if other.startswith(f"{option}.")), None)
        if inside:
            raise UserError(f"{where}.grid: {option} contains {inside}; vary only one of them")
    count = math.prod(map(len, grid.values()))
    if count > MOST_NETWORKS:
        raise UserError(f"{where}.grid: has {count:,} combinations, each a training; at most {MOST_NETWORKS:,}")
    sweep = Sweep(name, entry["base"], grid)
    longest = max(sweep.networks, key=len)
    if len(longest) > LONGEST_NAME:
        raise UserError(f"{where}: {longest}: is a name of more than {LONGEST_NAME} characters; shorten the sweep's")
    return sweep


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted option -> value as the sections of an experiment."""
    sections: dict[str, Any] = {}
    for option, value in values.items():
        *path, last = option.split(".")
        inside = sections
        for key in path:
            inside = inside.setdefault(key, {})
        inside[last] = value
    return sections


def _labels(options: Sequence[str]) -> dict[str, str]:
    """Each option's last word, or as many words from its end as make it different from the others'."""
    labels = {}
    for option in options:
        words = option.split(".")
        for count in range(1, len(words) + 1):
            ending = words[-count:]
            if all(other == option or other.split(".")[-count:] != ending for other in options):
                break
        labels[option] = re.sub(r"[^A-Za-z0-9_]+", "-", "-".join(ending))
    return labels


def _word(value: Any) -> str:
    """A value in a name: 1e-4, 0p5, 3, true, bf16, 8-16-32; a digest of what is long or has other characters."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, list) and value and not any(isinstance(item, dict | list | str) for item in value):
        word = "-".join(_word(item) for item in value)
    else:
        word = value if isinstance(value, str) else ""
    if re.fullmatch(r"[A-Za-z0-9_-]+", word) and len(word) <= LONGEST_VALUE:
        return word
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _number(value: float) -> str:
    """The shorter of 0.01 and 1e-2, with p for the point; whole numbers as they are."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    number = Decimal(str(value))
    return min(f"{number:f}", f"{number.normalize():e}", key=len).replace(".", "p").replace("+", "")
