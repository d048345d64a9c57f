"""Datasets by their published names.

An item is a dict of float32 tensors: `input_wav` [T] at `dataset.input_rate`, `wav` [T'] at `dataset.output_rate`, and
its `name`. `dataset[(epoch, index)]` depends only on the constructor's arguments, epoch and index; `dataset[index]` is
epoch 0, so that validation items are always the same.
"""

from collections.abc import Iterator

from finallyse.datasets.base import ItemDataset
from finallyse.registry import Registry, methods


def _contract(cls: type) -> Iterator[str]:
    yield from methods(cls, ItemDataset, "__len__", "item")


datasets_registry = Registry("dataset", _contract)

# Each module registers its datasets in `datasets_registry`, which must be defined first.
from finallyse.datasets import bandwidth, degraded, folder, pairs, vocoder  # noqa: E402, F401

__all__ = ["datasets_registry"]
