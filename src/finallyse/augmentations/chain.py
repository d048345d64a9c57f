"""Several augmentations in a row, each with a probability."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finallyse.augmentations import augmentations_registry
from finallyse.augmentations.base import Augmentation
from finallyse.augmentations.streams import stream
from finallyse.errors import UserError, nearest


@dataclass(frozen=True)
class Link:
    """One augmentation of a chain. `key` names its stream of random numbers: `impulse_response#1` is the second."""

    key: str
    augmentation: Augmentation
    probability: float


class Chain:
    """Draws and applies augmentations in order.

    augmentations: list of {name, probability (1 by default), args}, as in the YAML of an experiment.

    Each link uses its own random stream to decide whether it applies and to draw its parameters: the draws are
    independent, and removing one link does not change the others.
    """

    def __init__(self, augmentations: Sequence[Mapping]):
        self.links: list[Link] = []
        seen: Counter[str] = Counter()
        for entry in augmentations:
            if unknown := set(entry) - {"name", "probability", "args"}:
                key = sorted(unknown)[0]
                raise UserError(f"augmentations: unknown key {key!r}; {nearest(key, ('name', 'probability', 'args'))}")
            name, probability = entry.get("name"), float(entry.get("probability", 1.0))
            if not 0 <= probability <= 1:
                raise UserError(f"augmentations: {name}: probability {probability} is not within [0, 1]")
            augmentation = augmentations_registry[name](**(entry.get("args") or {}))
            self.links.append(Link(f"{name}#{seen[name]}", augmentation, probability))
            seen[name] += 1

    def __len__(self) -> int:
        return len(self.links)

    def draw(self, *entropy: int) -> list[dict | None]:
        """The parameters of each link for (seed, epoch, index); None for those that do not apply this time."""
        drawn = []
        for link in self.links:
            rng = stream(*entropy, purpose=link.key)
            drawn.append(link.augmentation.draw(rng) if rng.random() < link.probability else None)
        return drawn

    def apply(self, wav: np.ndarray, sample_rate: int, drawn: Sequence[dict | None], source: str = "") -> np.ndarray:
        """Apply what `draw` returned to float32 [T] at `sample_rate` Hz; `source` is named in errors."""
        for link, params in zip(self.links, drawn, strict=True):
            if params is not None:
                wav = link.augmentation.apply(wav, sample_rate, params, source)
        return wav
