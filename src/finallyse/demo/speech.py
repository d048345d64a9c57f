"""Speech for the demo: any folder of recordings, cut and joined to short pieces of several speakers.

    speech.csv      file, speaker, seconds, rate, sources (`path begin-end; ...` in seconds of each recording)
    left_out.csv    file, reason
    <n>/<m>.flac    mono, 16 bit, at the recording's rate (48 kHz at most)

Every file of the folder is either in a piece or in left_out.csv.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import shutil
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import soundfile

from finallyse import atomic
from finallyse.audio.blocks import BlockReader
from finallyse.audio.folders import files_below
from finallyse.audio.formats import SUFFIXES, is_recording
from finallyse.audio.io import decode, mono
from finallyse.audio.resample import resample
from finallyse.corpora.manifest import write_csv
from finallyse.errors import UserError

LONGEST_S = 12.0  # a longer recording is cut at pauses
SHORTEST_S = 3.0  # a shorter one is joined with others of its speaker
JOINED_S = 4.0  # length that joining aims at
GAP_S = 0.2  # silence between joined recordings
HIGHEST_RATE = 48_000
SILENT_DB = -60.0  # peak below which a recording is silent, dBFS
FEWEST_SPEAKERS, MOST_SPEAKERS = 4, 8  # four corpora need distinct speakers for two or three splits each
SPLIT_SPEAKERS = 6  # how many are made from fewer, if there is enough speech


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording that was found. seconds: of what its header says."""

    path: str
    seconds: float
    speaker: str = ""


@dataclasses.dataclass
class Piece:
    """Speech of one speaker. wav: float32 [T].    sources: where from."""

    speaker: str
    wav: np.ndarray
    rate: int
    sources: list[str]

    @property
    def seconds(self) -> float:
        return len(self.wav) / self.rate


def collect_speech(
    folder: str | Path,
    table: str | Path,
    seconds: float = 360.0,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> None:
    """Turn the recordings below `folder` into pieces of 3 to 12 seconds, beside `table` (speech.csv).

    The selection depends only on names and contents.

    Args:
        folder: any structure, formats, rates and channel counts. The speakers are its first level of folders that has
            at least four; in a folder without folders, names such as `anna_01.wav`; otherwise groups of recordings.
        table: the table to write.
        seconds: total duration, spread evenly over the speakers with the most speech.

    Raises:
        UserError: for a folder without recordings or with too little speech, and for an unreadable recording.
    """
    folder, table = Path(folder), Path(table)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of recordings (demo_speech)")
    left_out: dict[str, str] = {}
    recordings = _find(folder, left_out)
    others = Counter(reason for reason in left_out.values())
    if not recordings:
        raise UserError(
            f"{folder}: contains no audio files ({sum(others.values())} of other kinds); name a folder of recordings"
        )
    total = sum(recording.seconds for recording in recordings)
    say(f"{folder}: {len(recordings)} recordings, {total:.0f} s" + "".join(f"; {n} {why}" for why, n in others.items()))
    recordings = _name_speakers(recordings, say)
    pieces = []
    for chosen in _choose(recordings, seconds, left_out, say):
        pieces += _pieces_of_speaker(folder, *chosen, left_out)
    pieces = _enough_speakers(folder, pieces, say)
    _write(table, pieces, left_out)
    used = sum(piece.seconds for piece in pieces)
    say(
        f"{len(pieces)} pieces, {used:.0f} s, of {len({p.speaker for p in pieces})} speakers; "
        f"{len(left_out)} files left out, listed in {table.with_name('left_out.csv')}"
    )


# ---------------------------------------------------------------------------------------------------------------------
# Finding


def _find(folder: Path, left_out: dict[str, str]) -> list[Recording]:
    recordings = []
    for path in sorted(files_below(folder)):
        if not is_recording(folder / path):
            left_out[path] = "not audio"
            continue
        try:
            recordings.append(Recording(path, _seconds(folder / path)))
        except UserError as error:
            if Path(path).suffix.lower() in SUFFIXES:  # otherwise it may be something else
                raise UserError(f"{error}; remove it, or replace it by the recording") from error
            left_out[path] = "not audio"
    return recordings


def _seconds(path: Path) -> float:
    """Duration according to the header, or of the samples if it does not state any."""
    with BlockReader(path) as reader:
        samples = reader.frames or sum(block.shape[1] for block in reader)
        return samples / reader.rate


# ---------------------------------------------------------------------------------------------------------------------
# Speakers


def _name_speakers(recordings: list[Recording], say: Callable[[str], None]) -> list[Recording]:
    """The recordings with their speakers, as far as folders or names reveal them."""
    folders = [recording.path.split("/")[:-1] for recording in recordings]
    levels = {depth: ["/".join(parts[:depth]) for parts in folders] for depth in range(1, 1 + max(map(len, folders)))}
    for depth, names in levels.items():
        if len(set(names)) >= FEWEST_SPEAKERS:
            say(f"speakers: the {len(set(names))} folders of level {depth}")
            return _with_speakers(recordings, names)
    matches = [re.fullmatch(r"(.*?)[ _.-]*\d+", Path(recording.path).stem) for recording in recordings]
    prefixes = [match[1] if match else "" for match in matches]
    if len(set(prefixes)) >= FEWEST_SPEAKERS and all(prefixes) and min(Counter(prefixes).values()) > 1:
        say(f"speakers: what stands before the numbers in the names: {', '.join(sorted(set(prefixes)))}")
        return _with_speakers(recordings, prefixes)
    # Too few to hold some out; `_enough_speakers` makes groups of the pieces.
    return _with_speakers(recordings, max(levels.values(), key=lambda names: len(set(names)), default=prefixes))


def _with_speakers(recordings: list[Recording], names: list[str]) -> list[Recording]:
    return [dataclasses.replace(r, speaker=name or "speaker") for r, name in zip(recordings, names, strict=True)]


def _choose(
    recordings: list[Recording], seconds: float, left_out: dict[str, str], say: Callable[[str], None]
) -> Iterator[tuple[list[Recording], float]]:
    """For each speaker that is taken: its recordings in the order of choice, and how many seconds of them to take."""
    by_speaker = defaultdict(list)
    for recording in recordings:
        by_speaker[recording.speaker].append(recording)
    ranked = sorted(by_speaker, key=lambda name: (-round(sum(r.seconds for r in by_speaker[name]), 3), name))
    for name in ranked[MOST_SPEAKERS:]:
        reason = f"{MOST_SPEAKERS} of {len(ranked)} speakers are used, those with the most speech"
        left_out.update({recording.path: reason for recording in by_speaker[name]})
    chosen = sorted(ranked[:MOST_SPEAKERS])
    # Speakers with little speech leave the rest of their share to the others.
    shares, rest = {}, seconds
    for position, name in enumerate(sorted(chosen, key=lambda name: sum(r.seconds for r in by_speaker[name]))):
        shares[name] = min(sum(r.seconds for r in by_speaker[name]), rest / (len(chosen) - position))
        rest -= shares[name]
    total = sum(r.seconds for r in recordings)
    if total > seconds or len(ranked) > len(chosen):
        say(f"{seconds:.0f} s of {total:.0f} s are used, spread over {len(chosen)} of {len(ranked)} speakers")
    for name in chosen:
        order = sorted(by_speaker[name], key=lambda r: sha256(r.path.encode("utf-8", "surrogateescape")).digest())
        yield order, shares[name]


# ---------------------------------------------------------------------------------------------------------------------
# Pieces


def _pieces_of_speaker(
    folder: Path, recordings: list[Recording], seconds: float, left_out: dict[str, str]
) -> list[Piece]:
    """Read `seconds` of recordings, cut the long ones, join the short ones."""
    taken, full = [], 0.0
    for recording in recordings:
        if full >= seconds:
            left_out[recording.path] = "enough of its speaker is used"
            continue
        wav, rate = decode(folder / recording.path)
        wav = mono(wav)
        if np.abs(wav).max() < 10 ** (SILENT_DB / 20):
            left_out[recording.path] = "silent"
            continue
        if rate > HIGHEST_RATE:
            wav, rate = resample(wav, rate, HIGHEST_RATE), HIGHEST_RATE
        taken.append((recording, wav, rate))
        full += len(wav) / rate
    pieces: list[Piece] = []
    short: list[Piece] = []
    for recording, wav, rate in sorted(taken, key=lambda item: item[0].path):
        for start, end in _cuts(wav, rate):
            source = f"{recording.path} {start / rate:.2f}-{end / rate:.2f}"
            piece = Piece(recording.speaker, wav[start:end], rate, [source])
            if piece.seconds >= SHORTEST_S:
                pieces.append(piece)
                continue
            short.append(piece)
            if sum(p.seconds + GAP_S for p in short) >= JOINED_S:
                pieces.append(_join(short))
                short = []
    if short and pieces and pieces[-1].seconds < LONGEST_S:
        pieces[-1] = _join([pieces[-1], *short])
    elif short and sum(p.seconds + GAP_S for p in short) >= SHORTEST_S:
        pieces.append(_join(short))
    else:
        for piece in short:
            path = piece.sources[0].rsplit(" ", 1)[0]
            left_out[path] = f"a remainder shorter than {SHORTEST_S:g} s, with nothing of its speaker to join it to"
    return pieces


def _cuts(wav: np.ndarray, rate: int) -> list[tuple[int, int]]:
    """Where to cut wav [T] into pieces of at most LONGEST_S: in the quietest 0.2 s of the second half of each piece."""
    longest, start, cuts = round(LONGEST_S * rate), 0, []
    while len(wav) - start > longest:
        hop = rate // 50
        # The remainder must be long enough, too.
        last = min(start + longest, len(wav) - round(SHORTEST_S * rate))
        first = min(start + longest // 2, last - 20 * hop)
        energy = np.square(wav[first:last][: (last - first) // hop * hop].reshape(-1, hop)).mean(1)
        smooth = np.convolve(energy, np.ones(10) / 10, "valid")
        end = first + (int(smooth.argmin()) + 5) * hop
        cuts.append((start, end))
        start = end
    return [*cuts, (start, len(wav))]


def _join(pieces: list[Piece]) -> Piece:
    rate = max(piece.rate for piece in pieces)
    gap = np.zeros(round(GAP_S * rate), np.float32)
    parts = []
    for piece in pieces:
        parts += [gap, resample(piece.wav, piece.rate, rate)]
    sources = [source for piece in pieces for source in piece.sources]
    return Piece(pieces[0].speaker, np.concatenate(parts[1:]), rate, sources)


def _enough_speakers(folder: Path, pieces: list[Piece], say: Callable[[str], None]) -> list[Piece]:
    """Pieces of at least four speakers; if there are fewer, the largest are divided."""
    groups = defaultdict(list)
    for piece in pieces:
        groups[piece.speaker].append(piece)
    if len(groups) < FEWEST_SPEAKERS:
        if len(pieces) < FEWEST_SPEAKERS:
            raise UserError(
                f"{folder}: contains {len(pieces)} usable pieces of speech ({sum(p.seconds for p in pieces):.0f} s); "
                f"at least {FEWEST_SPEAKERS} of {SHORTEST_S:g} s or more are needed for training and validation sets"
            )
        wanted = min(SPLIT_SPEAKERS, max(FEWEST_SPEAKERS, len(pieces) // 2))
        say(
            f"speakers: only {len(groups)} can be distinguished; their recordings are divided into {wanted} groups "
            "that are treated as speakers, so that a voice may be in training and validation sets at once"
        )
        while len(groups) < wanted:
            name = max(groups, key=lambda name: (len(groups[name]), name))
            half = len(groups[name]) // 2
            number = next(n for n in range(2, 100) if f"{name}-{n}" not in groups)
            groups[f"{name}-{number}"] = groups[name][half:]
            groups[name] = groups[name][:half]
    return [dataclasses.replace(piece, speaker=name) for name in sorted(groups) for piece in groups[name]]


def _write(table: Path, pieces: list[Piece], left_out: dict[str, str]) -> None:
    numbers = {name: number for number, name in enumerate(sorted({piece.speaker for piece in pieces}), 1)}
    table.parent.mkdir(parents=True, exist_ok=True)
    for older in table.parent.iterdir():
        if older.name.isdigit():
            shutil.rmtree(older)
    rows, count = [], Counter()
    for piece in pieces:
        count[piece.speaker] += 1
        name = f"{numbers[piece.speaker]}/{count[piece.speaker]:03d}.flac"
        (table.parent / name).parent.mkdir(parents=True, exist_ok=True)
        wav = piece.wav / max(1.0, np.abs(piece.wav).max())
        flac = io.BytesIO()  # libsndfile does not say that a disk is full
        soundfile.write(flac, wav, piece.rate, format="FLAC", subtype="PCM_16")
        atomic.write_bytes(table.parent / name, flac.getbuffer())
        rows.append(
            {
                "file": name,
                "speaker": piece.speaker,
                "seconds": f"{piece.seconds:.3f}",
                "rate": piece.rate,
                "sources": "; ".join(piece.sources),
            }
        )
    reasons = [{"file": path, "reason": reason} for path, reason in sorted(left_out.items())]
    write_csv(table.with_name("left_out.csv"), ("file", "reason"), reasons)
    write_csv(table, ("file", "speaker", "seconds", "rate", "sources"), rows)


def read_speech(table: str | Path) -> dict[str, list[Path]]:
    """speaker -> files, as `collect_speech` wrote them."""
    table = Path(table)
    if not table.is_file():
        raise UserError(f"{table}: no such table of speech; make it with scripts/collect_demo_speech.py")
    speakers = defaultdict(list)
    try:
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.DictReader(file):
                speakers[row["speaker"]].append(table.parent / row["file"])
    except (KeyError, TypeError, csv.Error) as error:
        raise UserError(f"{table}: not a table of speech ({error}); delete it to have it made again") from error
    return dict(speakers)
