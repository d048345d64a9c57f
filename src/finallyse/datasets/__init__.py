"""Datasets by their published names.

An item is a dict of float32 tensors: `input_wav` [T] at `dataset.input_rate`, `wav` [T'] at `dataset.output_rate`, and
its `name`. `dataset[(epoch, index)]` depends only on the constructor's arguments, epoch and index; `dataset[index]` is
epoch 0, so that validation items are always the same.
"""

from finallyse.registry import Registry

datasets_registry = Registry("dataset")

# Each module registers its datasets in `datasets_registry`, which must be defined first.
from finallyse.datasets import bandwidth, degraded, folder, pairs, vocoder  # noqa: E402, F401

__all__ = ["datasets_registry"]
