"""Noisy recordings and their clean counterparts: VoiceBank-DEMAND."""

from __future__ import annotations

import numpy as np

from finallyse.augmentations.base import fit
from finallyse.corpora.manifest import Manifest
from finallyse.datasets import datasets_registry
from finallyse.datasets.base import PEAK, ManifestDataset, Task, evenly_spread, peak_normalised, tensor
from finallyse.errors import UserError


@datasets_registry.register("voicebank")
class VoiceBank(ManifestDataset):
    """Noisy speech as input, its clean counterpart as target.

    Args:
        manifest: CSV of prepared pairs (with `noisy_path`), or a list of them; one that is listed twice is used twice
            per epoch.
        segment: samples per item; null: whole recordings.
        sample_rate: sample rate of the manifest's recordings, Hz.
        peak: peak to which input and target are each normalised.
        seed: seed of the segments.

    Items: input_wav [T], wav [T], name. Recordings shorter than `segment` are padded with zeros.
    """

    @classmethod
    def task_of(cls, **args) -> Task:
        return Task("noise removal", "Noisy", "the input, with noise")

    def __init__(
        self,
        manifest: str | list[str],
        segment: int | None = 8192,
        sample_rate: int = 16000,
        peak: float = PEAK,
        seed: int = 0,
    ):
        super().__init__(manifest, sample_rate, segment, seed)
        self.peak = peak
        self.manifest.noisy_path(0)  # fails here rather than at the first item

    @classmethod
    def level_of(cls, peak: float = PEAK, **_others) -> dict[str, float]:
        return {"peak": peak}

    def item(self, epoch: int, index: int) -> dict:
        clean, noisy = self.manifest.path(index), self.manifest.noisy_path(index)
        start, frames = self.place(epoch, index)
        return {
            "input_wav": tensor(peak_normalised(self.read(noisy, start, frames, self.segment), self.peak), noisy),
            "wav": tensor(peak_normalised(self.read(clean, start, frames, self.segment), self.peak), clean),
            "name": self.manifest.name(index),
        }


@datasets_registry.register("vctk-demand")
class VctkDemand(ManifestDataset):
    """VoiceBank-DEMAND's test set for FINALLY's validation: whole utterances, levels not normalised.

    Args:
        manifest: CSV of prepared pairs at the input rate, 16 kHz, or a list of them.
        target_manifest: CSV of the same pairs at the output rate (48 kHz) for the clean target, or a list of them in
            the same order; null: the target is at the input rate.
        limit: number of utterances, evenly spread over the list; null: all.
        sample_rate: sample rate of the input, Hz.

    Items: input_wav [T], wav [T * output_rate / input_rate], name. At another rate a recording can be a sample longer
    or shorter than that: it is cut or padded with zeros.
    """

    def __init__(
        self,
        manifest: str | list[str],
        target_manifest: str | list[str] | None = None,
        limit: int | None = None,
        sample_rate: int = 16000,
    ):
        super().__init__(manifest, sample_rate, None, 0)
        self.manifest.noisy_path(0)
        self.chosen = evenly_spread(len(self.manifest), limit)
        self.targets, self.target_of = self.manifest, self.chosen
        if target_manifest is not None:
            self.targets, self.target_of = self._targets(target_manifest)
        self.output_rate = self.targets.rate
        if self.output_rate % self.input_rate:
            raise UserError(f"{target_manifest}: {self.output_rate} Hz is not a multiple of {self.input_rate} Hz")

    def _targets(self, path: str | list[str]) -> tuple[Manifest, np.ndarray]:
        """The manifest of the targets, and its row for each item."""
        targets = Manifest(path)
        if len(targets.files) != len(self.manifest.files):
            raise UserError(
                f"vctk-demand: manifest has {len(self.manifest.files)} files and target_manifest {len(targets.files)}; "
                "list the same corpora in both"
            )
        row_of = {(targets.part(row), targets.paths[row]): row for row in range(len(targets))}
        wanted = [(self.manifest.part(row), self.manifest.paths[row]) for row in self.chosen]
        for part, name in wanted:
            if (part, name) not in row_of:
                raise UserError(
                    f"{targets.files[part]}: lists no {name}, which {self.manifest.files[part]} does; prepare both "
                    "again"
                )
        return targets, np.array([row_of[key] for key in wanted])

    def __len__(self) -> int:
        return len(self.chosen)

    def item(self, epoch: int, index: int) -> dict:
        row, target = int(self.chosen[index]), int(self.target_of[index])
        noisy, clean = self.manifest.noisy_path(row), self.targets.path(target)
        input_wav = self.read(noisy, 0, -1)
        wav = fit(self.read(clean, 0, -1), len(input_wav) * (self.output_rate // self.input_rate))
        return {
            "input_wav": tensor(input_wav, noisy),
            "wav": tensor(wav, clean),
            "name": self.manifest.name(row),
        }
