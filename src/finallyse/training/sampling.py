"""The items of each step: a pure function of (seed, step), so that no sampler state has to be saved.

The training data is an endless stream of epochs, each a fresh permutation of the dataset; step s takes positions
s * batch_size .. (s + 1) * batch_size - 1 of it. No item is dropped, and a dataset smaller than a batch is simply
repeated.
"""

from __future__ import annotations

import numpy as np

from finallyse.errors import UserError


class Order:
    """The order of training items.

    Args:
        length: number of items in the dataset.
        batch_size: items per step, over all processes.
        seed: seed of the run.
    """

    def __init__(self, length: int, batch_size: int, seed: int):
        if length < 1:
            raise UserError("data.train: the dataset has no items")
        self.length, self.batch_size, self.seed = length, batch_size, seed
        self._epoch, self._permutation = -1, np.empty(0, np.int64)

    def epoch(self, step: int) -> int:
        """Number of epochs completed before step `step` (counted from 0) begins."""
        return step * self.batch_size // self.length

    def at(self, step: int) -> list[tuple[int, int]]:
        """The (epoch, index) of every item of the global batch of `step`."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [(p // self.length, self._index(p // self.length, p % self.length)) for p in positions]

    def _index(self, epoch: int, offset: int) -> int:
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            self._epoch, self._permutation = epoch, generator.permutation(self.length)
        return int(self._permutation[offset])
