"""Any folder of recordings, as input only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from finallyse.audio.folders import audio_files
from finallyse.audio.io import decode, mono
from finallyse.audio.resample import resample
from finallyse.corpora.manifest import Strings, short_name
from finallyse.datasets import datasets_registry
from finallyse.datasets.base import ItemDataset, tensor
from finallyse.errors import UserError


@datasets_registry.register("finally_dataset")
class FolderDataset(ItemDataset):
    """Whole recordings of any format, rate and number of channels, mixed to mono and resampled: input for FINALLY.

    Args:
        folder: folder of recordings, searched recursively.
        sample_rate: sample rate of the items, Hz.

    Items: input_wav [T], name (path in the folder, with `_` for `/`, without the suffix unless two differ only in
    that). Nothing is random; levels are not normalised.
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
    """Names usable as file names, with the suffix if two recordings differ only in that."""
    names = [file.removesuffix(Path(file).suffix).replace("/", "_") for file in files]
    count = Counter(names)
    named = zip(files, names, strict=True)
    return [short_name(file.replace("/", "_") if count[name] > 1 else name) for file, name in named]
