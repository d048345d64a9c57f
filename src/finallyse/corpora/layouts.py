"""The recordings of a corpus: from its published folder layout, or any folder of audio files in its place."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha1, sha256
from pathlib import Path

from finallyse.audio.folders import audio_files
from finallyse.corpora.locations import is_inside
from finallyse.corpora.manifest import LONGEST_NAME, short_name, utterance_name
from finallyse.errors import UserError, nearest
from finallyse.options import CorpusKind

OWN_SHARE = 0.1  # of the recordings of a corpus of one's own that are held out for validation
LARGE_GROUP = 0.25  # of the recordings: too many to be held out together, if fewer are asked for
GROUPS = {"speech": "speakers", "pairs": "speakers", "noise": "recordings", "response": "rooms"}


@dataclass(frozen=True)
class Recording:
    """One recording (or pair) of a corpus, before it is prepared.

    source: path relative to the corpus' folder, or absolute.    output: path of the prepared file below `wav/`.
    group: recordings that must be in the same split (a speaker, a room).    split: if the corpus defines it.
    noisy_source, noisy_output: the noisy counterpart of a pair.
    own: of a folder of the user's: groups are held out by the number of their recordings, which differ more there than
    in published corpora, and the same speaker may be in several splits if the folders say so.
    """

    source: str
    output: str
    group: str
    speaker: str = ""
    split: str | None = None
    noisy_source: str | None = None
    noisy_output: str | None = None
    own: bool = False


@dataclass(frozen=True)
class Corpus:
    """How a corpus is read and split.

    held_out: split -> its share of the groups that are in no other split.
    published: the published layout as a regular expression of paths, with the groups `speaker`, `set` and `side`.
    sets: name of a published set (a prefix) -> split.    group: name of a recording -> its group.
    speaker: the only speaker of the corpus.
    reserved: recordings of a split that no training may use: its name and a predicate of the recording's path.
    rest: split of the recordings that are in no other one.
    noisy: folder of the noisy counterparts, if the corpus' own folder has only the clean recordings.
    folders: split -> another folder, of its recordings.
    """

    kind: CorpusKind
    held_out: dict[str, float] = field(default_factory=dict)
    published: str | None = None
    sets: dict[str, str] = field(default_factory=dict)
    group: Callable[[str], str] | None = None
    speaker: str = ""
    reserved: tuple[str, Callable[[str], bool]] | None = None
    rest: str = "train"
    noisy: str | None = None
    folders: Mapping[str, str] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """All splits of the corpus."""
        return tuple(dict.fromkeys((self.rest, *self.held_out, *self.folders, *(self.reserved or ())[:1])))

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
    "precise-community": Corpus(
        "speech", published=r"(?:^|/)(?P<name>[\w-]+/[a-z]{2}(?:-[a-z]{2})?/[^/]+\.wav)$", rest="test"
    ),
    "finally-demo": Corpus("speech", published=r"(?:^|/)samples/(?P<name>\w+/input/[^/]+\.wav)$", rest="test"),
}


def corpus_by_name(name: str) -> Corpus:
    """The corpus' entry in `CORPORA`, or a UserError that names the nearest."""
    if name not in CORPORA:
        raise UserError(f"unknown corpus {name!r}; {nearest(name, CORPORA)}")
    return CORPORA[name]


def own_corpus(
    kind: CorpusKind,
    validation: float | str | None = None,
    test: float | str | None = None,
    noisy: str | None = None,
) -> Corpus:
    """A corpus of the user's own, under a name that is not in `CORPORA`.

    validation, test: the share of the recordings to hold out, or a folder of recordings; None: a folder of that name
    in the corpus, otherwise a tenth for validation and none for tests.    noisy: as in `Corpus`.
    """
    held_out = {"validation": OWN_SHARE if validation is None else validation}
    held_out |= {} if test is None else {"test": test}
    return Corpus(
        kind,
        {split: share for split, share in held_out.items() if not isinstance(share, str)},
        group={"noise": _freesound_recording, "response": _parent}.get(kind),
        noisy=noisy,
        folders={split: folder for split, folder in held_out.items() if isinstance(folder, str)},
    )


def find_recordings(name: str, source: Path, corpus: Corpus | None = None) -> tuple[list[Recording], list[str]]:
    """The recordings of corpus `name` in folder `source`, each with its group, and remarks for the log.

    If the folder has the corpus' published layout, only files of that layout are used. Any other folder is treated as
    user recordings: folders named train, validation (valid, val, dev) and test (eval) are these splits, and below them
    each first-level folder is a speaker, and so is each file outside of any folder (folders that contain only one
    folder are entered). Pairs are then files of the same name in `clean/` and `noisy/`.

    corpus: how to read it, by default its entry in `CORPORA`.
    """
    named_by_user = corpus is not None
    corpus = corpus or corpus_by_name(name)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; it should contain the recordings of {name}")
    others = [*filter(None, [corpus.noisy]), *corpus.folders.values()]
    files = list(audio_files(source))
    if others:
        places = {file.rpartition("/")[0] for file in files}
        apart = {place for place in places if any(is_inside(source / place, other) for other in others)}
        files = [file for file in files if file.rpartition("/")[0] not in apart]
    remarks = []
    # A published layout may have a hidden folder, such as .github.
    recordings = _published(corpus, list(audio_files(source, hidden=True))) if corpus.published else []
    if recordings:
        used = {r.source for r in recordings} | {r.noisy_source for r in recordings}
        unused = sum(path not in used for path in files)
        if unused:
            remarks.append(f"{unused} audio files outside the published layout of {name} are not used")
    else:
        recordings = _own(name, corpus, source, files, remarks)
        if corpus.published:
            remarks.append(f"not the published layout of {name}: treated as a folder of your own recordings")
        if corpus.published or named_by_user:
            recordings = [replace(r, own=True) for r in recordings]
    if not recordings:
        raise UserError(f"{source}: contains no audio files for {name}")
    return _unique_outputs(sorted(recordings, key=lambda r: r.source)), remarks


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


def _own(name: str, corpus: Corpus, source: Path, files: Sequence[str], remarks: list[str]) -> list[Recording]:
    """The recordings in the user's folders: `files` of `source`, and those of the corpus' other folders."""
    read = _own_pairs if corpus.kind == "pairs" else _own_files
    recordings = read(name, corpus, source, files, remarks)
    for split, folder in corpus.folders.items():
        place = Path(folder).absolute()
        found = read(name, replace(corpus, noisy=None), place, list(audio_files(place)), [])
        if not found:
            raise UserError(f"{folder}: contains no audio files for the {split} split of {name}")
        for r in found:
            moved = replace(r, source=str(place / r.source), output=_below(split, r.output), split=split)
            if r.noisy_source:
                moved = replace(moved, noisy_source=str(place / r.noisy_source))
            recordings.append(replace(moved, noisy_output=r.noisy_output and _below(split, r.noisy_output)))
    return recordings


def _below(folder: str, output: str) -> str:
    """`clean/a.wav` -> `clean/<folder>/a.wav`, and any other `a.wav` -> `<folder>/a.wav`."""
    side, _, name = output.partition("/")
    return f"{side}/{folder}/{name}" if side in ("clean", "noisy") and name else f"{folder}/{output}"


def _own_files(name: str, corpus: Corpus, source: Path, files: Sequence[str], remarks: list[str]) -> list[Recording]:
    start = len(_common_folder(files))
    names = [file[start:] for file in files]
    splits, inner = _by_split(names, corpus, remarks)
    recordings = []
    for file, whole, split, rest in zip(files, names, splits, inner, strict=True):
        if corpus.kind == "speech":
            group = speaker = _own_speaker(whole, rest)
        else:
            group, speaker = corpus.group(rest) if corpus.group else rest, ""
        split = split or corpus.reserved_split(whole)
        recordings.append(Recording(file, _wav(whole), group or whole, speaker, split))
    return recordings


def _own_pairs(name: str, corpus: Corpus, source: Path, files: Sequence[str], remarks: list[str]) -> list[Recording]:
    sides: dict[str, dict[str, str]] = {"clean": {}, "noisy": {}}
    if corpus.noisy:
        place = Path(corpus.noisy).absolute()
        for side, inside, prefix in (("clean", files, ""), ("noisy", list(audio_files(place)), f"{place}/")):
            start = len(_common_folder(inside))
            sides[side] = {_stem(file[start:]): prefix + file for file in inside}
        for side, folder in (("clean", source), ("noisy", corpus.noisy)):
            if not sides[side]:
                raise UserError(f"{folder}: contains no audio files, the {side} side of {name}")
    else:
        start = len(_common_folder(files))
        for file in files:  # `clean/<name>`, or with its split: `clean/test/<name>` or `test/clean/<name>`
            parts = file[start:].split("/")
            at = next((at for at, part in enumerate(parts[:-1][:2]) if part.casefold() in sides), None)
            if at is not None:
                sides[parts[at].casefold()][_stem("/".join(parts[:at] + parts[at + 1 :]))] = file
        if not all(sides.values()):
            raise UserError(
                f"{source}: {name} needs pairs: put the clean recordings into {source}/clean and the noisy ones, "
                f"with the same names, into {source}/noisy"
            )
    splits, inner = _by_split(list(sides["clean"]), corpus, remarks)
    recordings = []
    for (whole, file), split, rest in zip(sides["clean"].items(), splits, inner, strict=True):
        speaker = _own_speaker(whole, rest)
        noisy = sides["noisy"].get(whole, "")
        recordings.append(Recording(file, f"clean/{whole}.wav", speaker, speaker, split, noisy, f"noisy/{whole}.wav"))
    return recordings


def _own_speaker(name: str, inner: str) -> str:
    """The speaker of a user's recording: its first-level folder, below that of its split.

    Otherwise it is its own speaker: nothing identifies the speaker.
    """
    return inner.split("/")[0] if "/" in inner else _stem(name)


# ---------------------------------------------------------------------------------------------------------------------
# Splits that folders say

SPLIT_FOLDER = re.compile(
    r"(?:(?P<train>train(?:ing)?)|(?P<validation>val|valid|validation|dev|devel|development)"
    r"|(?P<test>test(?:ing)?|eval|evaluation))(?:[-_ ]?set)?(?P<more>[-_. ].*)?",
    re.IGNORECASE,
)


def _by_split(names: Sequence[str], corpus: Corpus, remarks: list[str]) -> tuple[list[str | None], list[str]]:
    """The split that the folders of each recording say, and its name without that folder and those that all share.

    Recordings of the corpus' rest have None: a share of them may still be held out.
    """
    depth, splits = _split_folders(names)
    if not splits:
        return [None] * len(names), list(names)
    told = ", ".join(f"{folder} -> {split}" for folder, split in sorted(splits.items()))
    remarks.append(f"its folders say the splits: {told}")
    found, inner = [], []
    for name in names:
        parts = name.split("/")
        split = splits.get(parts[depth]) if len(parts) > depth + 1 else None
        found.append(None if split == corpus.rest else split)
        inner.append("/".join(parts[:depth] + parts[depth + 1 :]) if split else name)
    start = len(_common_folder(inner))
    return found, [name[start:] for name in inner]


def _split_folders(names: Sequence[str]) -> tuple[int, dict[str, str]]:
    """The level of folders that says the splits, if any, and the split of each of its folders.

    These are folders of the first level with names such as `train`, `Test` or `dev`, or with longer ones, such as
    `train-clean-100`, if all folders are named so; or folders of the second level, if all of them are named so. Folders
    named `train` alone say nothing: trains are a kind of noise.
    """
    paths = [name.split("/") for name in names]
    for depth in (0, 1):
        matches = {p[depth]: SPLIT_FOLDER.fullmatch(p[depth]) for p in paths if len(p) > depth + 1}
        splits = {
            folder: next(split for split in ("train", "validation", "test") if match[split])
            for folder, match in matches.items()
            if match
        }
        all_named = len(splits) == len(matches) and "train" in splits.values()
        if not all_named:
            splits = {folder: split for folder, split in splits.items() if not matches[folder]["more"]}
        consistent = depth == 0 or (len(splits) == len(matches) and all(len(p) > depth + 1 for p in paths))
        if consistent and {"validation", "test"} & set(splits.values()):
            return depth, splits
    return 0, {}


def _common_folder(files: Sequence[str]) -> str:
    """The folder (with its slash, or empty) that contains all files."""
    folders = {file.rpartition("/")[0] for file in files}
    common = os.path.commonpath(folders) if folders and "" not in folders else ""
    return common and common + "/"


def _wav(name: str) -> str:
    return _stem(name) + ".wav"


def _unique_outputs(recordings: Sequence[Recording]) -> list[Recording]:
    """Give `a.mp3` and `a.flac`, or `a/b_c` and `a_b/c`, different prepared files and utterance names.

    The names of recordings deep inside of folders are shortened, since that of an utterance has those of all folders.
    """
    count = Counter(utterance_name(r.output) for r in recordings)
    unique = []
    for r in recordings:
        tag = ""
        if count[utterance_name(r.output)] > 1:
            tag = "-" + sha256(r.source.encode("utf-8", "surrogateescape")).hexdigest()[:8]
        output, noisy_output = (
            name and _short_output(name.removesuffix(".wav") + tag) for name in (r.output, r.noisy_output)
        )
        unique.append(replace(r, output=output, noisy_output=noisy_output))
    return unique


def _short_output(path: str) -> str:
    """The path of a prepared file, given without its suffix; flat if the utterance's name would be too long."""
    name = utterance_name(path)
    if len(name.encode("utf-8", "surrogateescape")) <= LONGEST_NAME:
        return path + ".wav"
    side = path.partition("/")[0]
    return (f"{side}/" if side in ("clean", "noisy") else "") + short_name(name) + ".wav"


def assign_splits(
    recordings: Sequence[Recording], name: str, seed: int, corpus: Corpus | None = None
) -> tuple[list[Recording], list[str]]:
    """The recordings with their splits, and remarks. Depends only on the names, the corpus and the seed.

    Groups are sorted by a hash of their names; the first few are held out. If there are fewer groups than splits, every
    recording is its own group and speaker. corpus: by default the entry in `CORPORA`.
    """
    corpus = corpus or corpus_by_name(name)
    own = any(r.own for r in recordings)
    remarks = []
    if not own and set(corpus.sets.values()) - {r.split for r in recordings}:  # a published set is missing
        recordings = [replace(r, split=corpus.reserved_split(r.source)) for r in recordings]
    given = {r.split for r in recordings}
    wanted = {split: share for split, share in corpus.held_out.items() if split not in given}
    undecided = _sizes(recordings)
    if undecided and (len(undecided) <= len(wanted) or (own and _too_large(undecided, wanted))):
        groups, few = GROUPS[corpus.kind], len(undecided) <= len(wanted)
        why = (
            f"too few {groups} ({len(undecided)}) for {1 + len(wanted)} splits"
            if few
            else f"only {len(undecided)} {groups}, too large to hold one out"
        )
        remarks.append(f"{why}: split by file instead")
        recordings = [
            replace(r, group=_stem(r.source), speaker=r.speaker and _stem(r.source)) if r.split is None else r
            for r in recordings
        ]
        undecided = _sizes(recordings)
    if undecided and len(undecided) <= len(wanted):
        if not (own and corpus.kind in ("noise", "response")):
            raise UserError(
                f"{name}: {len(recordings)} usable recordings cannot fill the splits "
                f"{', '.join((corpus.rest, *wanted))}"
            )
        remarks.append(f"too few recordings to hold some out: all are for {corpus.rest}, none for {', '.join(wanted)}")
        wanted = {}
    by_hash = sorted(
        undecided, key=lambda group: sha256(f"{seed}/{name}/{group}".encode("utf-8", "surrogateescape")).digest()
    )
    split_of = _hold_out({group: undecided[group] if own else 1 for group in by_hash}, wanted) if undecided else {}
    if own and undecided:
        remarks += _unequal(split_of, undecided, wanted, GROUPS[corpus.kind])
    recordings = [replace(r, split=r.split or split_of.get(r.group, corpus.rest)) for r in recordings]
    filled = {r.split for r in recordings}
    for split in (corpus.rest, *wanted, *corpus.folders):  # other recordings in place of the published reserve none
        if split not in filled:
            raise UserError(f"{name}: no usable recording is left for its {split} split")
    splits_of_speaker = defaultdict(set)
    for r in recordings:
        splits_of_speaker[r.speaker].add(r.split)
    shared = sorted(speaker for speaker, splits in splits_of_speaker.items() if speaker and len(splits) > 1)
    if shared and not own:
        raise UserError(f"{name}: speaker {shared[0]!r} would be in two splits: its sets share speakers")
    if shared:
        remarks.append(f"{len(shared)} speakers are in several splits, as the folders say, such as {shared[0]}")
    return recordings, remarks


def _sizes(recordings: Sequence[Recording]) -> Counter[str]:
    """The number of recordings of each group that is in no split yet."""
    return Counter(r.group for r in recordings if r.split is None)


def _too_large(sizes: Mapping[str, int], wanted: Mapping[str, float]) -> bool:
    """Whether each of the groups has much more recordings than are to be held out."""
    smallest = min(sizes.values())
    most = sum(sizes.values()) * max([LARGE_GROUP, *(2 * share for share in wanted.values())])
    return bool(wanted) and smallest > 1 and smallest > most


def _hold_out(sizes: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, str]:
    """Group -> split of the groups to hold out: for each split those first ones with which it is nearest to its share.

    sizes: group -> its size, in the order of choice. Every split, and what is not held out, has at least one group.
    """
    total = sum(sizes.values())
    split_of: dict[str, str] = {}
    for later, (split, share) in zip(range(len(shares) - 1, -1, -1), shares.items(), strict=True):
        free = [group for group in sizes if group not in split_of]
        most = len(free) - 1 - later
        taken, size, target = [], 0, round(share * total)
        for group in free:
            if len(taken) < most and abs(size + sizes[group] - target) < abs(size - target):
                taken.append(group)
                size += sizes[group]
        split_of |= dict.fromkeys(taken or [min(free, key=sizes.__getitem__)], split)
    return split_of


def _unequal(
    split_of: Mapping[str, str], sizes: Mapping[str, int], wanted: Mapping[str, float], groups: str
) -> Iterator[str]:
    """Remarks about splits that are far from the share that was asked for."""
    total = sum(sizes.values())
    for split, share in wanted.items():
        size = sum(sizes[group] for group, of in split_of.items() if of == split)
        if abs(size - share * total) > max(1, share * total / 2):
            yield f"{split} has {size / total:.0%} of the recordings, not {share:.0%}: whole {groups} are held out"


def _stem(path: str) -> str:
    """The path without its suffix."""
    return path.removesuffix(Path(path).suffix)
