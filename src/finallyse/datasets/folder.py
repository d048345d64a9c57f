"""Any folder of recordings, as input alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from finallyse.audio.io import decode, mono
from finallyse.audio.resample import resample
from finallyse.corpora.layouts import audio_files
from finallyse.corpora.manifest import Strings
from finallyse.datasets import datasets_registry
from finallyse.datasets.base import ItemDataset, tensor
from finallyse.errors import UserError


@datasets_registry.register("finally_dataset")
class FolderDataset(ItemDataset):
    """Whole recordings of any format, rate and number of channels, mixed to mono and resampled: input for FINALLY.

    Args:
        folder: searched with all folders in it.
        sample_rate: of the items, Hz.

    Items: input_wav [T], name (path in the folder, with `_` for `/`, without the suffix unless two differ in that
    alone). Nothing is random; levels are as they are.
    """

    def __init__(self, folder: str, sample_rate: int = 16000):
        self.folder, self.seed = Path(folder), 0
        self.input_rate = self.output_rate = sample_rate
        if not self.folder.is_dir():
            raise UserError(f"{folder}: no such folder")
        files = list(audio_files(self.folder))
        if not files:
            raise UserError(f"{folder}: holds no audio files")
        self.files = Strings([file.encode("utf-8", "surrogateescape") for file in files])
        self.names = Strings([name.encode("utf-8", "surrogateescape") for name in _names(files)])

    def __len__(self) -> int:
        return len(self.files)

    def item(self, epoch: int, index: int) -> dict:
        path = self.folder / self.files[index]
        wav, rate = decode(path)
        return {"input_wav": tensor(resample(mono(wav), rate, self.input_rate), path), "name": self.names[index]}


def _names(files: Sequence[str]) -> list[str]:
    """Names fit for file names, with the suffix where only that tells two recordings apart."""
    names = [file.removesuffix(Path(file).suffix).replace("/", "_") for file in files]
    count = Counter(names)
    return [file.replace("/", "_") if count[name] > 1 else name for file, name in zip(files, names, strict=True)]
