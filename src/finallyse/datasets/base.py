"""Base classes of the datasets: keys, random segments, partial reads, checks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from finallyse.audio.io import read
from finallyse.augmentations.base import fit
from finallyse.augmentations.streams import stream
from finallyse.corpora.manifest import Manifest
from finallyse.errors import UserError

PEAK = 0.95  # of the waveforms that the published HiFi-GAN and HiFi++ were trained on


@dataclasses.dataclass(frozen=True)
class Task:
    """How a report describes a network's task and its input."""

    text: str
    input_label: str
    input_explained: str


class ItemDataset(Dataset):
    """Items by (epoch, index), or by index alone, which means epoch 0.

    input_rate, output_rate: rates of the items' `input_wav` and `wav`, Hz.    seed: of everything random.
    A subclass implements `__len__` and `item`.
    """

    input_rate: int
    output_rate: int
    seed: int

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of a dataset of {len(self)}")
        return self.item(int(epoch), int(index))

    def __len__(self) -> int:
        raise NotImplementedError

    @classmethod
    def level_of(cls, **args) -> dict[str, float] | None:
        """The level of `input_wav` with these arguments: {"peak": each item's largest magnitude}; None: as recorded.

        It is stored in the checkpoint of a network trained on the dataset. Classes that scale items override this.
        """
        return None

    @classmethod
    def task_of(cls, **args) -> Task | None:
        """The task of a network trained on the dataset with these arguments; None: reports name the dataset instead."""
        return None

    def item(self, epoch: int, index: int) -> dict:
        """The item, a pure function of the constructor's arguments, epoch and index."""
        raise NotImplementedError

    def rng(self, epoch: int, index: int, purpose: str) -> np.random.Generator:
        """The random number generator of an item for one purpose."""
        return stream(self.seed, epoch, index, purpose=purpose)


class ManifestDataset(ItemDataset):
    """One item per recording of a manifest.

    manifest: CSV of prepared recordings, or a list of them.    sample_rate: their rate, Hz.
    segment: samples per item, cut out at a random position; None for whole recordings.
    """

    def __init__(self, manifest: str | list[str], sample_rate: int, segment: int | None, seed: int):
        if segment is not None and segment < 1:
            raise UserError(f"segment={segment}: must be at least 1 sample, or null for whole recordings")
        if seed < 0:
            raise UserError(f"seed={seed}: must not be negative")
        self.manifest = Manifest(manifest)
        if self.manifest.rate != sample_rate:
            raise UserError(
                f"{self.manifest.file}: holds {self.manifest.rate} Hz recordings, {sample_rate} Hz are asked for; "
                f"name the manifest prepared at {sample_rate} Hz"
            )
        self.segment, self.seed = segment, seed
        self.input_rate = self.output_rate = sample_rate

    def __len__(self) -> int:
        return len(self.manifest)

    def place(self, epoch: int, index: int, multiple: int = 1) -> tuple[int, int]:
        """Where the item's segment starts (a multiple of `multiple`) and how many samples of it the file holds."""
        samples = int(self.manifest.samples[index])
        if self.segment is None or samples <= self.segment:
            return 0, samples
        places = (samples - self.segment) // multiple + 1
        return multiple * int(self.rng(epoch, index, "segment").integers(places)), self.segment

    def read(self, path: Path, start: int, frames: int, length: int | None = None) -> np.ndarray:
        """`frames` samples of a prepared file, padded with zeros to `length`: float32 [length]."""
        wav = read(path, start, frames)[0]
        if wav.ndim != 1:
            raise UserError(f"{path}: has {wav.shape[1]} channels; prepared recordings have one: prepare it again")
        return wav if length is None else fit(wav, length)


def evenly_spread(count: int, limit: int | None) -> np.ndarray:
    """Which `limit` of `count` recordings to use, evenly spread over the list: int64 [min(count, limit)]; None: all."""
    if limit is None:
        return np.arange(count)
    if limit < 1:
        raise UserError(f"limit={limit}: must be at least 1, or null for all recordings")
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(np.int64))


def peak_normalised(wav: np.ndarray, peak: float) -> np.ndarray:
    """Scale to a largest magnitude of `peak`; silence is unchanged. wav: float32 [T]."""
    largest = float(np.abs(wav).max())
    return wav if largest == 0 else wav * np.float32(peak / largest)


def tensor(wav: np.ndarray, source: Path | str) -> torch.Tensor:
    """float32 [T] as a tensor; a UserError names the file if a sample is not finite."""
    # The sum is finite if all samples are: one pass without a temporary array.
    if not np.isfinite(wav.sum(dtype=np.float64)):
        raise UserError(f"{source}: the item made from it holds samples that are not finite")
    return torch.from_numpy(np.ascontiguousarray(wav, dtype=np.float32))
