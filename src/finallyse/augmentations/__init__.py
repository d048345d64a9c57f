"""Augmentations by their published names: degradations of clean recordings.

Each first draws its parameters, plain values, from a random number generator, then applies them:

    noise = augmentations_registry["noise"](manifest="resources/prepared/dns5-noise/16000/train.csv")
    params = noise.draw(np.random.default_rng(0))      # {"file": ..., "start": 0.37, "snr_db": 12.3}
    noisy = noise.apply(wav, 16000, params)            # same length, same alignment

`Chain` draws and applies several in order, each with a probability.
"""

from collections.abc import Iterator

from finallyse.augmentations.base import Augmentation, AugmentationError
from finallyse.registry import Registry, attributes, methods


def _contract(cls: type) -> Iterator[str]:
    yield from methods(cls, Augmentation, "draw", "_apply")
    yield from attributes(cls, name=str)


augmentations_registry = Registry("augmentation", _contract)

# Each module registers its augmentations in `augmentations_registry`, which must be defined first.
from finallyse.augmentations import band_limit, codec, effects, impulse_response, noise  # noqa: E402, F401
from finallyse.augmentations.chain import Chain, Link  # noqa: E402

__all__ = ["Augmentation", "AugmentationError", "Chain", "Link", "augmentations_registry"]
