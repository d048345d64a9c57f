"""Preparation: converts a published corpus, or any folder of recordings, to mono WAVs at one rate with manifests.

Every file is decoded, mixed to mono, resampled once and written as 16-bit PCM, so that a segment can be read without
decoding the rest (impulse responses: 32-bit float, since 16 bits would lose their tails). Files are excluded only for
one of the reasons below, each with a line in `dropped.csv`; nothing is cut from speech or noise:

- it is no file, or cannot be decoded, is cut short or damaged (unless that is accepted), has no samples, values that
  are not finite, or a sample rate that no recording has;
- it is silent: its peak is below -60 dBFS (impulse responses: it has no energy);
- it is shorter than 0.1 s (speech and noise);
- a clean recording has no noisy counterpart, or one of another length;
- its background, as DNSMOS predicts listeners' scores of it (BAK, 1 to 5), is below a threshold, if one is set.

A recording whose peak does not fit into 16 bits is scaled down as a whole (column `gain`), a pair by the same factor.
Impulse responses are normalised to unit energy; of the silence before the sound arrives 2.5 ms are kept (all, if it has
more than a thousandth of the energy), of the tail all but the last millionth of the energy. The column `offset` is the
sample of the direct path: the first tap at least half as strong as the strongest. Only the first channel is used: the
mean of several would be a comb filter.

Finished recordings are recorded in `journal.jsonl` beside the manifests, so that a killed run resumes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from finallyse.audio.io import decode, mono, read, write_wav
from finallyse.audio.resample import resample
from finallyse.corpora.layouts import Corpus, Recording, assign_splits, corpus_by_name, find_recordings
from finallyse.corpora.locations import is_inside
from finallyse.corpora.manifest import COLUMNS, write_csv
from finallyse.errors import UserError
from finallyse.hashes import sha256
from finallyse.journal import Journal
from finallyse.options import CorpusKind
from finallyse.processes import process_pool
from finallyse.progress import Progress, duration

SILENT_PEAK = 1e-3  # -60 dBFS
SHORTEST = 0.1  # seconds of speech or noise
RATES = range(1000, 1_000_001)  # Hz of recordings; others are from damaged headers, and would take all memory
LEAD = 0.0025  # seconds kept before the direct path of an impulse response
NEGLIGIBLE_LEAD, NEGLIGIBLE_TAIL = 1e-3, 1e-6  # shares of an impulse response's energy that may be cut
WORST_BAK = 1.0  # of DNSMOS' scale
FORMAT = 1  # of the prepared files; changing it prepares everything again


@dataclass(frozen=True)
class Task:
    """Input of a worker to prepare one recording.

    known: its journal entry.    scored: also measure DNSMOS BAK.    accept_cut: even if it is cut short or damaged.
    """

    recording: Recording
    kind: CorpusKind
    source: Path
    output: Path
    rate: int
    known: dict | None
    scored: bool = False
    accept_cut: bool = False


def prepare(
    corpus: str,
    source: str | Path,
    output: str | Path,
    rate: int,
    jobs: int = 1,
    seed: int = 0,
    max_dropped: float = 0.5,
    min_bak: float = WORST_BAK,
    accept_cut: bool = False,
    own: Corpus | None = None,
) -> dict[str, int]:
    """Prepare a corpus: writes wav/, one manifest per split and dropped.csv to `output`.

    Prints progress to stdout.

    Args:
        corpus: name in `layouts.CORPORA`, or any other with `own`.
        source: its folder, or a folder of user recordings.
        output: folder to write to.
        rate: Hz.
        jobs: number of processes.
        seed: seed of the splits.
        max_dropped: share of unusable recordings above which to stop.
        min_bak: minimum DNSMOS BAK of the 9 s in the middle of a recording; 1: not measured.
        accept_cut: take what there is of recordings that are cut short or damaged.
        own: how to read a corpus that is not in `layouts.CORPORA` (`layouts.own_corpus`).

    Returns:
        The number of recordings per split.

    Raises:
        UserError: if there are no or too few usable recordings, or `output` is among them.
    """
    source, output = Path(source), Path(output)
    entry = own or corpus_by_name(corpus)
    kind = entry.kind
    for folder in filter(None, (source, entry.noisy, *entry.folders.values())):
        if is_inside(output, folder):
            raise UserError(
                f"{output}: is inside {folder}, where what is written would be taken for recordings; choose an output "
                "elsewhere, or put the recordings into a folder of their own"
            )
    if min_bak > WORST_BAK and kind not in ("speech", "pairs"):
        raise UserError(f"{corpus}: min_bak={min_bak:g} judges speech, and this is a corpus of another kind; remove it")
    recordings, remarks = find_recordings(corpus, source, own)
    label = f"{corpus} {rate} Hz"
    progress = _Progress(label, len(recordings), jobs)

    def say(*lines: str) -> None:
        progress.say(*(f"{label}: {line}" for line in lines))

    say(f"{len(recordings)} recordings in {source}", *remarks)
    _make_folders(output, recordings)

    settings = {"format": FORMAT, "corpus": corpus, "rate": rate} | ({"accept_cut": True} if accept_cut else {})
    settings |= {"kind": kind} if own else {}
    journal = Journal(output / "journal.jsonl", settings)
    known = {entry["source"]: entry for entry in journal.read() if "source" in entry}
    journal.write(known.values())
    tasks = [
        Task(r, kind, source, output, rate, known.get(r.source), min_bak > WORST_BAK, accept_cut) for r in recordings
    ]
    results: dict[str, dict] = {}
    with journal.appending() as append:
        for result in _run(tasks, jobs):
            results[result["source"]] = result
            if result.pop("kept", False):
                progress.keep(1)
            else:
                append(result)
                progress.seconds += result.get("seconds", 0.0)
                progress.add(1)
    progress.finish()
    journal.write(results.values())

    for result in results.values():  # not in the journal: the threshold may change
        if min_bak > WORST_BAK and "dropped" not in result and result["bak"] < min_bak:
            result["dropped"] = f"background: DNSMOS BAK {result['bak']:.2f}, below {min_bak:g}"
    dropped = [{"path": r.source, "reason": why} for r in recordings if (why := results[r.source].get("dropped"))]
    write_csv(output / "dropped.csv", ("path", "reason"), dropped)
    usable = [r for r in recordings if "dropped" not in results[r.source]]
    if dropped:
        say(f"{len(dropped)} recordings left out, listed in {output / 'dropped.csv'}")
    if len(dropped) > max_dropped * len(recordings):
        reasons = "; ".join(f"{row['path']}: {row['reason']}" for row in dropped[:2])
        raise UserError(
            f"{source}: {len(dropped)} of {len(recordings)} recordings of {corpus} are unusable, more than "
            f"{max_dropped:.0%} ({reasons}); see {output / 'dropped.csv'}"
        )
    usable, remarks = assign_splits(usable, corpus, seed, own)
    say(*remarks)

    _remove_stale(output / "wav", usable)
    columns = (*COLUMNS, *{"pairs": ("noisy_path",), "response": ("offset",)}.get(kind, ()))
    counts = {}
    # Every corpus has all three, of which some may be empty; train.csv last: if it exists, so do all the others.
    for split in ("test", "validation", "train"):
        rows = [
            {
                **results[r.source],
                "path": f"wav/{r.output}",
                "noisy_path": f"wav/{r.noisy_output}",
                "rate": rate,
                "speaker": r.speaker,
                "split": split,
            }
            for r in usable
            if r.split == split
        ]
        write_csv(output / f"{split}.csv", columns, rows)
        if rows or split in entry.splits:
            counts[split] = len(rows)
    say(", ".join(f"{split} {count}" for split, count in reversed(counts.items())))
    return counts


# ---------------------------------------------------------------------------------------------------------------------
# One recording


def prepare_recording(task: Task) -> dict:
    """Prepare one recording, unless the journal lists it as done and its source and result are unchanged.

    Returns the journal's entry: `source`, `size`, `mtime`, `source_checksum`, and either `dropped` (the reason) or
    `samples`, `peak`, `gain`, `bytes` of the result (and `offset`; `bak` if it is scored).
    """
    entry = _prepared(task)
    if task.known and "bak" in task.known and task.known["source_checksum"] == entry.get("source_checksum"):
        entry["bak"] = task.known["bak"]  # known even if the result was removed because of it
    if task.scored and not {"dropped", "bak"} & set(entry):
        from finallyse.metrics.dnsmos import background  # ONNX Runtime: not every preparation needs it

        wav, rate = read(task.output / "wav" / task.recording.output)
        entry = {**entry, "bak": round(background(resample(wav, rate, 16000)), 4)}
        entry.pop("kept", None)
    return entry


def _prepared(task: Task) -> dict:
    recording = task.recording
    sources = [task.source / recording.source]
    outputs = [task.output / "wav" / recording.output]
    if recording.noisy_output:
        outputs.append(task.output / "wav" / recording.noisy_output)
    if recording.noisy_source:
        sources.append(task.source / recording.noisy_source)
    entry = {"source": recording.source, "outputs": [recording.output, recording.noisy_output]}
    try:
        status = [_status(path) for path in sources]
        entry |= {"size": [s.st_size for s in status], "mtime": [s.st_mtime_ns for s in status]}
        if _is_finished(task.known, outputs, entry, ("size", "mtime")):
            return {**task.known, "kept": True}
        entry["source_checksum"] = sha256(*sources)
    except UserError as error:
        return {**entry, "dropped": _reason(error, sources)}
    except OSError as error:
        return {**entry, "dropped": f"cannot be read ({error.strerror})"}
    if _is_finished(task.known, outputs, entry, ("size", "source_checksum")):  # touched, or unpacked again
        return {**task.known, **entry}
    if recording.noisy_source == "":
        return {**entry, "dropped": "no noisy counterpart"}
    try:
        wavs, rates = zip(*(_decode(path, task.accept_cut) for path in sources), strict=True)
    except UserError as error:
        return {**entry, "dropped": _reason(error, sources)}
    if len({(wav.shape[1], rate) for wav, rate in zip(wavs, rates, strict=True)}) > 1:
        lengths = ", ".join(f"{wav.shape[1]} samples at {rate} Hz" for wav, rate in zip(wavs, rates, strict=True))
        return {**entry, "dropped": f"clean and noisy differ in length: {lengths}"}
    entry["seconds"] = wavs[0].shape[1] / rates[0]
    try:
        return {**entry, **_written(task, outputs, wavs, rates)}
    except MemoryError:
        return {**entry, "dropped": f"{entry['seconds']:.0f} s need more memory than there is; cut it into pieces"}


def _status(path: Path) -> os.stat_result:
    if not path.is_file():  # reading a pipe would wait
        kind = "is not a file" if path.exists() else "is a link to nothing" if path.is_symlink() else "no such file"
        raise UserError(f"{path}: {kind}")
    return path.stat()


def _decode(path: Path, accept_cut: bool) -> tuple[np.ndarray, int]:
    try:
        wav, rate = decode(path, accept_cut)
    except MemoryError:
        raise UserError(f"{path}: needs more memory than there is; cut it into pieces") from None
    if rate not in RATES:
        raise UserError(f"{path}: its header gives {rate} Hz, which no recording has")
    return wav, rate


def _written(task: Task, outputs: Sequence[Path], wavs: Sequence[np.ndarray], rates: Sequence[int]) -> dict:
    """Write the decoded recording, or pair, and return the fields of its entry."""
    if task.kind == "response":
        return _prepare_response(wavs[0], rates[0], task.rate, outputs[0])
    wavs = [resample(mono(wav), rate, task.rate) for wav, rate in zip(wavs, rates, strict=True)]
    length = len(wavs[0])
    if length < SHORTEST * task.rate:
        return {"dropped": f"shorter than {SHORTEST} s"}
    peaks = [float(np.abs(wav).max()) for wav in wavs]
    if peaks[0] < SILENT_PEAK:
        return {"dropped": f"silent: peak {peaks[0]:.2g}, below {SILENT_PEAK:g}"}
    gain = min(1.0, 1.0 / max(peaks))
    for path, wav in zip(outputs, wavs, strict=True):
        write_wav(path, wav if gain == 1.0 else wav * np.float32(gain), task.rate)
    size = [path.stat().st_size for path in outputs]
    return {"samples": length, "peak": round(peaks[0] * gain, 6), "gain": round(gain, 6), "bytes": size}


def _prepare_response(wav: np.ndarray, from_rate: int, rate: int, output: Path) -> dict:
    """Write the first channel of an impulse response [C, T] with unit energy, and return the fields of its entry."""
    response = resample(wav[0], from_rate, rate).astype(np.float64)
    energy = np.cumsum(response**2)
    if len(response) == 0 or energy[-1] < 1e-12:
        return {"dropped": "silent: it has no energy"}
    # A later reflection, or two that arrive together, may be slightly stronger than the direct sound.
    direct = int(np.argmax(np.abs(response) >= 0.5 * np.abs(response).max()))
    end = int(np.searchsorted(energy, energy[-1] * (1 - NEGLIGIBLE_TAIL))) + 1
    start = max(0, direct - round(LEAD * rate))
    if (
        start and energy[start - 1] > NEGLIGIBLE_LEAD * energy[-1]
    ):  # not silence: the response rings before its strongest tap
        start = 0
    response = response[start:end] / np.sqrt(energy[-1])
    write_wav(output, response, rate, subtype="FLOAT")
    return {
        "samples": len(response),
        "peak": round(float(np.abs(response).max()), 6),
        "gain": round(float(1 / np.sqrt(energy[-1])), 6),
        "offset": direct - start,
        "bytes": [output.stat().st_size],
    }


def _is_finished(known: dict | None, outputs: Sequence[Path], entry: dict, same: Iterable[str]) -> bool:
    if known is None or any(known.get(key) != entry[key] for key in ("outputs", *same)):
        return False
    if "dropped" in known or len(known.get("bytes", ())) != len(outputs):
        return "dropped" in known
    return all(path.is_file() and path.stat().st_size == n for path, n in zip(outputs, known["bytes"], strict=True))


def _reason(error: UserError, sources: Sequence[Path]) -> str:
    """The error's text without the path of the recording, which has its own column."""
    return str(error).removeprefix(f"{sources[0]}: ")


# ---------------------------------------------------------------------------------------------------------------------
# All of them


def _run(tasks: Sequence[Task], jobs: int) -> Iterator[dict]:
    """Results of all tasks in the order in which they finish."""
    if jobs <= 1:
        yield from map(prepare_recording, tasks)
        return
    try:
        with process_pool(jobs) as pool:
            running, waiting = set(), iter(tasks)
            for task in waiting:
                running.add(pool.submit(prepare_recording, task))
                if len(running) >= 8 * jobs:  # few in flight, so that an error stops the run quickly
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise UserError("a preparing process was killed (out of memory?); try again with fewer --jobs") from None


def _make_folders(output: Path, recordings: Iterable[Recording]) -> None:
    outputs = {o for r in recordings for o in (r.output, r.noisy_output) if o}
    for folder in sorted({(output / "wav" / o).parent for o in outputs}):
        folder.mkdir(parents=True, exist_ok=True)


def _remove_stale(folder: Path, recordings: Iterable[Recording]) -> None:
    """Remove files of earlier runs that no manifest lists, including half-written ones."""
    listed = {str(folder / o) for r in recordings for o in (r.output, r.noisy_output) if o}
    for inside, _, files in os.walk(folder, topdown=False):
        for file in files:
            path = Path(inside, file)
            if str(path) not in listed:
                path.unlink()
        with contextlib.suppress(OSError):  # not empty
            Path(inside).rmdir()


class _Progress(Progress):
    """Counts recordings, and their seconds of audio, on standard output."""

    def __init__(self, label: str, total: int, jobs: int):
        super().__init__(label, total, "recordings", sys.stdout, every_s=5)
        self.jobs, self.seconds = jobs, 0.0

    def describe(self, elapsed: float) -> str:
        """`3 of 9 recordings, 0.3 per s, 4:05 left, 0:40 of audio at 50 x real time, 2 processes`."""
        parts = [super().describe(elapsed)]
        if self.seconds:
            parts.append(f"{duration(self.seconds)} of audio at {self.seconds / elapsed:.0f} x real time")
        return ", ".join([*parts, f"{self.jobs} process{'es' if self.jobs > 1 else ''}"])
