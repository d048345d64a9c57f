"""Manifests: CSV tables of prepared recordings.

Columns: `path` (relative to the CSV's folder), `samples`, `rate` (Hz), `speaker` (empty for noises and impulse
responses), `split`, `peak` (largest magnitude, to within a step of 16 bits), `source_checksum` (SHA-256 of the source
file), `gain` (1, or the factor by which a recording was scaled to fit its peak into 16 bits). Those of pairs also have
`noisy_path`, those of impulse responses `offset`, the sample of the direct path.
"""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from finallyse import atomic
from finallyse.errors import UserError

LONGEST_NAME = 150  # bytes of an utterance's name: files named after it add to it, and file systems allow 255
COLUMNS = ("path", "samples", "rate", "speaker", "split", "peak", "source_checksum", "gain")


class Strings(Sequence[str]):
    """Many UTF-8 strings in two arrays.

    A list would be copied into every loader process, page by page, as reference counts are updated; arrays stay shared
    with the parent process.
    """

    def __init__(self, encoded: Sequence[bytes]):
        self._ends = np.cumsum([0] + [len(e) for e in encoded], dtype=np.int64)
        self._bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        index = range(len(self))[index]  # negative ones count from the end; IndexError beyond
        start, end = self._ends[index], self._ends[index + 1]
        return self._bytes[start:end].tobytes().decode("utf-8", "surrogateescape")


class Manifest:
    """One or several manifests in compact form: about 120 bytes per row, and no more while they are being read.

    Args:
        path: a CSV, or a list of CSVs of one rate; one that is listed twice counts twice.

    Attributes:
        files: the CSVs.    file: the first of them.
        rate: Hz, the same in all rows.
        samples: int64 [N].
        offsets: int64 [N], 0 if the manifest has none.
        peaks: float32 [N], nan if the manifest has none.

    Raises UserError for a file that is missing, empty, or not a manifest.
    """

    def __init__(self, path: str | Path | Sequence[str | Path]):
        files = [Path(path)] if isinstance(path, (str, Path)) else [Path(file) for file in path]
        if not files:
            raise UserError("a manifest is an empty list; name at least one CSV")
        self.files, self.file = tuple(files), files[0]
        rows = _Rows()
        ends = []
        for file in files:
            rows.read(file)
            ends.append(len(rows.paths))
        self._ends = np.array(ends)
        self.samples, rates, self.offsets = (np.array(values, dtype=np.int64) for values in rows.numbers.values())
        self.rate = int(rates[0])
        for file, start in zip(files, [0, *ends[:-1]], strict=True):
            if rates[start] != self.rate:
                raise UserError(
                    f"{file}: holds {rates[start]} Hz recordings, and {files[0]}, used with it, {self.rate} Hz; "
                    "name manifests prepared at one rate"
                )
        self.peaks = np.array(rows.peaks, dtype=np.float32)
        self.paths = Strings(rows.paths)
        self.noisy_paths = None if rows.unpaired else Strings(rows.noisy_paths)
        self._unpaired = rows.unpaired

    def __len__(self) -> int:
        return len(self.samples)

    def path(self, index: int) -> Path:
        """The recording's file."""
        return self._folder(index) / self.paths[index]

    def noisy_path(self, index: int) -> Path:
        """The noisy counterpart's file (VoiceBank)."""
        if self.noisy_paths is None:
            raise UserError(
                f"{self._unpaired}: has no column 'noisy_path': pairs of clean and noisy recordings are needed"
            )
        return self._folder(index) / self.noisy_paths[index]

    def part(self, index: int) -> int:
        """Which of the CSVs lists a recording."""
        return int(np.searchsorted(self._ends, range(len(self))[index], side="right"))

    def _folder(self, index: int) -> Path:
        """The folder of the CSV that lists a recording."""
        return self.files[self.part(index)].parent

    def name(self, index: int) -> str:
        """The recording's name: its path without `wav/`, `clean/` and the suffix, usable as a file name.

        If there are several manifests, it begins with the corpus' name (of `<corpus>/<rate>/<split>.csv`).
        """
        name = utterance_name(self.paths[index])
        return name if len(self.files) == 1 else f"{self._folder(index).parent.name}_{name}"


class _Rows:
    """The columns of several CSVs, one after the other."""

    def __init__(self):
        self.paths: list[bytes] = []
        self.noisy_paths: list[bytes] = []
        self.numbers = {"samples": array("q"), "rate": array("q"), "offset": array("q")}
        self.peaks = array("f")
        self.unpaired: Path | None = None  # the first CSV without noisy counterparts

    def read(self, file: Path) -> None:
        """Append the rows of a manifest, after checking them."""
        if not file.is_file():
            raise UserError(f"{file}: no such manifest; prepare its corpus (`snakemake data`, scripts/prepare.py)")
        first = len(self.paths)
        try:
            with file.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
                reader = csv.reader(stream)
                header = next(reader, [])
                missing = [column for column in ("path", "samples", "rate") if column not in header]
                if missing:
                    raise UserError(f"{file}: not a manifest: it has no column {missing[0]!r}")
                at = {column: position for position, column in enumerate(header)}
                if "noisy_path" not in at:
                    self.unpaired = self.unpaired or file
                for row in reader:
                    if len(row) != len(header):
                        raise UserError(f"{file}: line {reader.line_num} has {len(row)} columns, not {len(header)}")
                    self.paths.append(row[at["path"]].encode("utf-8", "surrogateescape"))
                    if "noisy_path" in at:
                        self.noisy_paths.append(row[at["noisy_path"]].encode("utf-8", "surrogateescape"))
                    for column, values in self.numbers.items():
                        values.append(int(row[at[column]]) if column in at else 0)
                    self.peaks.append(float((row[at["peak"]] if "peak" in at else "") or "nan"))
        except (ValueError, OverflowError) as error:
            raise UserError(f"{file}: line {reader.line_num} is not a manifest's row ({error})") from None
        except csv.Error as error:
            raise UserError(f"{file}: cannot be read ({error})") from error
        samples, rates = self.numbers["samples"][first:], self.numbers["rate"][first:]
        if not samples:
            raise UserError(f"{file}: lists no recordings: its corpus has none of this split; name another manifest")
        if min(rates) != max(rates):
            raise UserError(f"{file}: lists recordings of different sample rates; prepare its corpus again")
        if min(samples) <= 0:
            raise UserError(f"{file}: lists a recording without samples; prepare its corpus again")


def utterance_name(path: str) -> str:
    """`wav/clean/p232_001.wav` -> `p232_001`; `wav/p225/p225_001.wav` -> `p225_p225_001`."""
    return path.removeprefix("wav/").removeprefix("clean/").removesuffix(".wav").replace("/", "_")


def short_name(name: str) -> str:
    """The name itself, or of one that is longer than LONGEST_NAME the beginning and a hash of it all."""
    encoded = name.encode("utf-8", "surrogateescape")
    if len(encoded) <= LONGEST_NAME:
        return name
    tag = "-" + sha256(encoded).hexdigest()[:12]
    while len(name.encode("utf-8", "surrogateescape")) > LONGEST_NAME - len(tag):
        name = name[:-1]
    return name + tag


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a CSV atomically. Names that are not valid UTF-8 keep their bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    atomic.write_bytes(path, text.getvalue().encode("utf-8", "surrogateescape"))
