"""The recordings of a corpus: from its published folder layout, or any folder of audio files in its place."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha1, sha256
from pathlib import Path
from typing import Literal

from finallyse.audio.formats import is_recording
from finallyse.corpora.locations import MARKERS, files_below
from finallyse.corpora.manifest import utterance_name
from finallyse.errors import UserError, nearest

Kind = Literal["speech", "pairs", "noise", "response"]


@dataclass(frozen=True)
class Recording:
    """One recording (or pair) of a corpus, before it is prepared.

    source: path relative to the corpus' folder.    output: path of the prepared file below `wav/`.
    group: recordings that must be in the same split (a speaker, a room).    split: if the corpus defines it.
    noisy_source, noisy_output: the noisy counterpart of a pair.
    """

    source: str
    output: str
    group: str
    speaker: str = ""
    split: str | None = None
    noisy_source: str | None = None
    noisy_output: str | None = None


@dataclass(frozen=True)
class Corpus:
    """How a corpus is read and split.

    held_out: split -> its share of the groups that are in no other split.
    published: the published layout as a regular expression of paths, with the groups `speaker`, `set` and `side`.
    sets: name of a published set (a prefix) -> split.    group: name of a recording -> its group.
    speaker: the only speaker of the corpus.
    reserved: recordings of a split that no training may use: its name and a predicate of the recording's path.
    rest: split of the recordings that are in no other one.
    """

    kind: Kind
    held_out: dict[str, float] = field(default_factory=dict)
    published: str | None = None
    sets: dict[str, str] = field(default_factory=dict)
    group: Callable[[str], str] | None = None
    speaker: str = ""
    reserved: tuple[str, Callable[[str], bool]] | None = None
    rest: str = "train"

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits of the corpus."""
        return tuple(dict.fromkeys((self.rest, *self.held_out, *(self.reserved or ())[:1])))

    def reserved_split(self, path: str) -> str | None:
        """The split that a recording is reserved for, if any."""
        return self.reserved[0] if self.reserved and self.reserved[1](path) else None


def _freesound_recording(path: str) -> str:
    """DNS5 splits long Freesound recordings into numbered pieces: `..._Freesound_validated_380494_3.wav`."""
    stem = path.rsplit(".", 1)[0]
    return re.sub(r"((?:^|_)freesound_validated_\d+)_\d+$", r"\1", stem, flags=re.IGNORECASE)


def _parent(path: str) -> str:
    """Responses of one simulated room are in one folder."""
    return path.rpartition("/")[0]


def _freesound_clip(path: str) -> str:
    """ESC's clips of one Freesound recording: `<fold>-<recording>-<letter>.ogg`."""
    return re.sub(r"-[A-Z]$", "", path.rpartition("/")[2].rsplit(".", 1)[0])


def _tenth_by_sha1(path: str) -> bool:
    """Whether the SHA-1 of the file's name, as a number, is a multiple of 10."""
    return int(sha1(path.rpartition("/")[2].encode("utf-8", "surrogateescape")).hexdigest(), 16) % 10 == 0


CORPORA: dict[str, Corpus] = {
    "vctk": Corpus(
        "speech",
        {"validation": 0.05},
        r"(?:^|/)wav48_silence_trimmed/(?P<name>(?P<speaker>[^/]+)/[^/]+_mic1\.flac)$",
    ),
    "voicebank": Corpus(
        "pairs",
        {"validation": 0.07, "test": 0.07},
        r"(?:^|/)(?P<side>clean|noisy)_(?P<set>trainset|testset)[^/]*_wav/(?P<name>(?P<speaker>[^/_]+)_[^/]+\.wav)$",
        {"testset": "test"},
    ),
    "libritts-r": Corpus(
        "speech",
        {"validation": 0.05},
        r"(?:^|/)(?P<name>(?P<set>train|test)-[^/]+/(?P<speaker>[^/]+)/[^/]+/[^/]+\.wav)$",
        {"train": "train", "test": "validation"},
    ),
    "daps": Corpus(
        "speech",
        {"validation": 0.1},
        r"(?:^|/)clean/(?P<name>(?P<speaker>[^/_]+)_script[^/]*\.wav)$",
    ),
    "dns5-noise": Corpus("noise", {"validation": 0.1}, group=_freesound_recording),
    "dns5-rooms": Corpus(
        "response",
        {"validation": 0.1},
        r"(?:^|/)simulated_rirs_48k/(?P<name>[^/]+/[^/]+/[^/]+\.wav)$",
        group=_parent,
    ),
    "micirp": Corpus("response", {"validation": 0.1}),
    "simulated-rooms": Corpus("response", {"validation": 0.1}),
    # The corpora of config/small.yaml
    "picovoice-intents": Corpus(
        "speech",
        published=r"(?:^|/)data/speech/clean/(?P<name>[^/]+\.wav)$",
        reserved=("test", _tenth_by_sha1),
    ),
    "picovoice-wake-words": Corpus("speech", published=r"(?:^|/)audio/(?P<name>[^/]+/[^/]+\.(?:flac|wav))$"),
    "kerstin": Corpus("speech", published=r"(?:^|/)verified/(?P<name>[^/]+\.flac)$", speaker="kerstin"),
    "nathalie": Corpus("speech", published=r"(?:^|/)verified/(?P<name>[^/]+\.flac)$", speaker="nathalie"),
    "kathleen": Corpus("speech", published=r"(?:^|/)data/(?P<name>[^/]+\.wav)$", speaker="kathleen"),
    "flemishguy": Corpus(
        "speech", published=r"(?:^|/)wavs/(?P<name>[^/]+\.wav)$", speaker="flemishguy", rest="validation"
    ),
    "festvox-ru": Corpus("speech", published=r"/msu_ru_nsh_clunits/wav/(?P<name>[^/]+\.wav)$", speaker="msu_ru_nsh"),
    "asterisk-sounds": Corpus(
        "speech",
        {"validation": 0.5},
        r"(?:^|/)asterisk/sounds/(?P<name>(?P<speaker>[^/]+)/(?:[^/]+/)*[^/]+\.g722)$",
    ),
    "esc-10": Corpus(
        "noise",
        {"validation": 0.1},
        r"(?:^|/)(?P<name>\d{3} - [^/]+/[^/]+\.ogg)$",
        group=_freesound_clip,
        reserved=("test", lambda path: path.rpartition("/")[2].startswith("5-")),
    ),
    "noisekun": Corpus("noise", published=r"(?:^|/)assets/sounds/(?P<name>[^/]+\.ogg)$"),
    # the others are from the same Freesound recordings as Noisekun's
    "blanket": Corpus(
        "noise", published=r"(?:^|/)data/resources/sounds/(?P<name>(?:city|fireplace|summer-night)\.ogg)$"
    ),
    "moodist": Corpus(
        "noise",
        {"validation": 0.1},
        r"(?:^|/)public/sounds/(?P<name>(?!binaural/|noise/)[^/]+/[^/]+\.(?:mp3|wav))$",
        reserved=("test", lambda path: re.search(r"(?:^|/)(?:places|transport)/[^/]+$", path) is not None),
    ),
    # only to measure with
    "finally-demo": Corpus("speech", published=r"(?:^|/)samples/(?P<name>\w+/input/[^/]+\.wav)$", rest="test"),
}


def corpus_by_name(name: str) -> Corpus:
    """The corpus' entry in `CORPORA`, or a UserError that names the nearest."""
    if name not in CORPORA:
        raise UserError(f"unknown corpus {name!r}; {nearest(name, CORPORA)}")
    return CORPORA[name]


def find_recordings(name: str, source: Path) -> tuple[list[Recording], list[str]]:
    """The recordings of corpus `name` in folder `source`, each with its group, and remarks for the log.

    If the folder has the corpus' published layout, only files of that layout are used. Any other folder is treated as
    user recordings: each first-level folder is a speaker, and so is each file outside of any folder (folders that
    contain only one folder are entered). VoiceBank's pairs are then files of the same name in `clean/` and `noisy/`.
    """
    corpus = corpus_by_name(name)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; it should contain the recordings of {name}")
    files = list(audio_files(source))
    remarks = []
    # A published layout may have a hidden folder, such as .github.
    recordings = _published(corpus, list(audio_files(source, hidden=True))) if corpus.published else []
    if recordings:
        used = {r.source for r in recordings} | {r.noisy_source for r in recordings}
        unused = sum(path not in used for path in files)
        if unused:
            remarks.append(f"{unused} audio files outside the published layout of {name} are not used")
    else:
        recordings = _own_pairs(source, files) if corpus.kind == "pairs" else _own_files(corpus, files)
        if corpus.published:
            remarks.append(f"not the published layout of {name}: treated as a folder of your own recordings")
    if not recordings:
        raise UserError(f"{source}: contains no audio files for {name}")
    return _unique_outputs(sorted(recordings, key=lambda r: r.source)), remarks


def audio_files(source: Path, hidden: bool = False) -> Iterator[str]:
    """Relative paths of the recordings, sorted, without hidden files (macOS leaves `._x.wav`).

    hidden: search hidden folders too.
    """
    for path in files_below(source, hidden):
        if not {"__MACOSX", MARKERS}.intersection(path.split("/")) and is_recording(source / path):
            yield path


def _published(corpus: Corpus, files: Sequence[str]) -> list[Recording]:
    matches = [match for file in files if (match := re.search(corpus.published, file))]
    recordings, noisy = [], {}
    for match in matches:
        found = match.groupdict()
        if found.get("side") == "noisy":
            noisy[found["set"], found["name"]] = match.string
    for match in matches:
        found = match.groupdict()
        if found.get("side") == "noisy":
            continue
        name, speaker = found["name"], found.get("speaker", corpus.speaker)
        group = corpus.group(name) if corpus.group else speaker or name
        split = corpus.reserved_split(name) or corpus.sets.get(found.get("set", ""))
        recording = Recording(match.string, _wav(name), group, speaker, split)
        if "side" in found:
            recording = replace(
                recording,
                output="clean/" + _wav(name),
                noisy_source=noisy.get((found["set"], name), ""),
                noisy_output="noisy/" + _wav(name),
            )
        recordings.append(recording)
    return recordings


def _own_files(corpus: Corpus, files: Sequence[str]) -> list[Recording]:
    start = _common_folder(files)
    recordings = []
    for file in files:
        name = file[len(start) :]
        if corpus.kind == "speech":
            # A file outside of any folder is its own speaker: nothing identifies the speaker.
            group = speaker = name.split("/")[0] if "/" in name else _stem(name)
        else:
            group, speaker = corpus.group(name) if corpus.group else name, ""
        recordings.append(Recording(file, _wav(name), group or name, speaker, corpus.reserved_split(name)))
    return recordings


def _own_pairs(source: Path, files: Sequence[str]) -> list[Recording]:
    start = _common_folder(files)
    sides: dict[str, dict[str, str]] = {"clean": {}, "noisy": {}}
    for file in files:
        side, _, name = file[len(start) :].partition("/")
        if side in sides and name:
            sides[side][_stem(name)] = file
    if not all(sides.values()):
        raise UserError(
            f"{source}: voicebank needs pairs: put the clean recordings into {source}/clean and the noisy ones, "
            f"with the same names, into {source}/noisy"
        )
    recordings = []
    for name, file in sides["clean"].items():
        speaker = name.split("/")[0] if "/" in name else name
        noisy = sides["noisy"].get(name, "")
        recordings.append(Recording(file, f"clean/{name}.wav", speaker, speaker, None, noisy, f"noisy/{name}.wav"))
    return recordings


def _common_folder(files: Sequence[str]) -> str:
    """The folder (with its slash, or empty) that contains all files."""
    folders = {file.rpartition("/")[0] for file in files}
    common = os.path.commonpath(folders) if folders and "" not in folders else ""
    return common and common + "/"


def _wav(name: str) -> str:
    return _stem(name) + ".wav"


def _unique_outputs(recordings: Sequence[Recording]) -> list[Recording]:
    """Give `a.mp3` and `a.flac`, or `a/b_c` and `a_b/c`, different prepared files and utterance names."""
    count = Counter(utterance_name(r.output) for r in recordings)
    unique = []
    for recording in recordings:
        if count[utterance_name(recording.output)] > 1:
            tag = "-" + sha256(recording.source.encode("utf-8", "surrogateescape")).hexdigest()[:8] + ".wav"
            recording = replace(recording, output=recording.output.removesuffix(".wav") + tag)
            if recording.noisy_output:
                recording = replace(recording, noisy_output=recording.noisy_output.removesuffix(".wav") + tag)
        unique.append(recording)
    return unique


def assign_splits(recordings: Sequence[Recording], name: str, seed: int) -> tuple[list[Recording], list[str]]:
    """The recordings with their splits, and remarks. Depends only on the names, the corpus and the seed.

    Groups are sorted by a hash of their names; the first few are held out. If there are fewer groups than splits, every
    recording is its own group and speaker.
    """
    corpus = corpus_by_name(name)
    remarks = []
    if set(corpus.sets.values()) - {r.split for r in recordings}:  # a published set is missing: split the rest
        recordings = [replace(r, split=corpus.reserved_split(r.source)) for r in recordings]
    given = {r.split for r in recordings}
    wanted = {split: share for split, share in corpus.held_out.items() if split not in given}
    undecided = sorted({r.group for r in recordings if r.split is None})
    if undecided and len(undecided) <= len(wanted):
        what = {"speech": "speakers", "pairs": "speakers", "noise": "recordings", "response": "rooms"}[corpus.kind]
        remarks.append(f"too few {what} ({len(undecided)}) for {1 + len(wanted)} splits: split by file instead")
        recordings = [
            replace(r, group=_stem(r.source), speaker=r.speaker and _stem(r.source)) if r.split is None else r
            for r in recordings
        ]
        undecided = sorted({r.group for r in recordings if r.split is None})
    if undecided and len(undecided) <= len(wanted):
        raise UserError(
            f"{name}: {len(recordings)} usable recordings cannot fill the splits {', '.join((corpus.rest, *wanted))}"
        )
    undecided.sort(key=lambda group: sha256(f"{seed}/{name}/{group}".encode("utf-8", "surrogateescape")).digest())
    split_of: dict[str, str] = {}
    spare = len(undecided) - 1 - len(wanted)  # groups left once every split has one
    for split, share in wanted.items():
        extra = min(max(round(share * len(undecided)) - 1, 0), spare)
        spare -= extra
        for group in undecided[len(split_of) : len(split_of) + 1 + extra]:
            split_of[group] = split
    recordings = [replace(r, split=r.split or split_of.get(r.group, corpus.rest)) for r in recordings]
    for split in (corpus.rest, *corpus.held_out):  # other recordings in place of the published ones reserve none
        if not any(r.split == split for r in recordings):
            raise UserError(f"{name}: no usable recording is left for its {split} split")
    splits_of_speaker: dict[str, str] = {}
    for r in recordings:
        if r.speaker and splits_of_speaker.setdefault(r.speaker, r.split) != r.split:
            raise UserError(f"{name}: speaker {r.speaker!r} would be in two splits: its sets share speakers")
    return recordings, remarks


def _stem(path: str) -> str:
    """The path without its suffix."""
    return path.removesuffix(Path(path).suffix)
