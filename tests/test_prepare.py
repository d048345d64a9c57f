"""Preparation: layouts, splits, dropped files, resuming after a kill."""

from __future__ import annotations

import csv
import errno
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from finallyse.audio.io import decode, mono, read
from finallyse.audio.resample import resample
from finallyse.corpora.layouts import CORPORA, Recording, assign_splits, find_recordings, own_corpus
from finallyse.corpora.locations import folder_fingerprint
from finallyse.corpora.manifest import LONGEST_NAME, Manifest
from finallyse.corpora.prepare import prepare
from finallyse.errors import UserError


def rows(path: Path) -> list[dict]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def tone(seconds: float = 0.3, rate: int = 16000, channels: int = 1, level: float = 0.5) -> np.ndarray:
    wav = level * np.sin(np.arange(round(seconds * rate)) * 0.2)
    return np.stack([wav] * channels, axis=1)


def write(path: Path, wav: np.ndarray | None = None, rate: int = 16000, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    wav = tone() if wav is None else wav
    if path.suffix == ".g722":  # a stream without a header, which libsndfile does not write
        with av.open(path, "w") as file:
            file.add_stream("g722", rate, layout="mono")
            frame = av.AudioFrame.from_ndarray((wav.T * 32767).astype(np.int16), layout="mono")
            frame.rate = rate
            for frames in (frame, None):
                file.mux(file.streams[0].encode(frames))
    else:
        sf.write(path, wav, rate, **options)
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Layouts

PUBLISHED = {
    "vctk": [
        f"wav48_silence_trimmed/p{speaker}/p{speaker}_00{n}_mic{mic}.flac"
        for speaker, n, mic in itertools.product((225, 226, 227), (1, 2), (1, 2))
    ]
    + ["txt/p225/p225_001.txt", "log.txt"],
    "voicebank": [
        f"{side}_{part}_wav/{speaker}_00{n}.wav"
        for side, n in itertools.product(("clean", "noisy"), (1, 2))
        for part, speaker in (
            ("trainset_28spk", "p226"),
            ("trainset_28spk", "p227"),
            ("testset", "p232"),
            ("testset", "p257"),
        )
    ],
    "libritts-r": [
        f"LibriTTS_R/{part}/{speaker}/1/{speaker}_1_00000{n}_000000.wav"
        for part, speaker, n in itertools.product(("train-clean-100", "train-clean-360"), (103, 118), (1, 2))
    ]
    + ["LibriTTS_R/test-clean/61/70968/61_70968_000000_000000.wav", "LibriTTS_R/test-clean/61/70968/61.trans.tsv"],
    "daps": [f"daps/clean/{speaker}_script{n}_clean.wav" for speaker in ("f1", "m1", "m10") for n in (1, 2)]
    + ["daps/clean/._f1_script1_clean.wav", "daps/ipad_office1/f1_script1_ipad_office1.wav"],
    "dns5-noise": [f"datasets_fullband/noise_fullband/{name}.wav" for name in ("-0G2vNrtg", "door_1", "0a b")]
    + [f"datasets_fullband/noise_fullband/door_Freesound_validated_38049{k}_{n}.wav" for k in (1, 2) for n in (0, 1)],
    "dns5-rooms": [
        f"datasets_fullband/impulse_responses/SLR26/simulated_rirs_48k/smallroom/Room00{room}/Room00{room}-0000{n}.wav"
        for room, n in itertools.product((1, 2, 3), (1, 2))
    ]
    + ["datasets_fullband/impulse_responses/SLR28/RIRS_NOISES/real_rirs_isotropic_noises/air_1.wav"],
    "micirp": ["AKG D12.wav", "Beyer M500 Ribbon.wav", "Altec_639.wav", "collection.csv"],
    "simulated-rooms": [f"room000{n}.wav" for n in range(3)],
    # the SHA-1 of 4.wav and 17.wav are multiples of 10
    "picovoice-intents": [f"benchmark-1/data/speech/clean/{n}.wav" for n in (1, 2, 4, 17)]
    + ["benchmark-1/data/noise/cafe.wav"],
    "picovoice-wake-words": ["benchmark-1/audio/view glass/0.flac", "benchmark-1/audio/alexa/0.wav"]
    + ["benchmark-1/audio/multiple_keywords.wav"],
    "kerstin": ["voice-1/verified/1.flac", "voice-1/audio/1.wav"],
    "nathalie": ["voice-1/verified/1.flac"],
    "kathleen": ["voice-1/data/arctic_1.wav", "voice-1/data/arctic_1.txt"],
    "flemishguy": ["voice-1/wavs/1.wav", "voice-1/wavs/2.wav"],
    "festvox-ru": ["usr/share/festival/voices/russian/msu_ru_nsh_clunits/wav/ru_1.wav", "usr/share/doc/copyright"],
    "asterisk-sounds": [f"usr/share/asterisk/sounds/{name}.g722" for name in ("it_m/1", "it_m/digits/1", "ru_f/1")],
    "esc-10": [
        f"ESC-10-1/001 - Dog bark/{fold}-{n}-{letter}.ogg"
        for fold, n, letter in itertools.product((1, 5), (7, 8), "AB")
    ],
    "noisekun": ["Noisekun-1/.github/assets/sounds/rain.ogg", "Noisekun-1/apps/web/public/sounds/alarm.ogg"],
    "blanket": [f"blanket-1/data/resources/sounds/{name}.ogg" for name in ("city", "rain")],
    "moodist": [
        f"moodist-1/public/sounds/{name}.mp3" for name in ("rain/rain", "urban/road", "places/cafe", "noise/pink")
    ],
    "precise-community": [
        f"Precise-Community-Data-1/{name}.wav"
        for name in ("computer/en/computer-en-1", "not-wake-words/es/no-1", "x/1")
    ],
    "finally-demo": [f"finally-demo-1/samples/real_data/{folder}/0.wav" for folder in ("input", "output")],
}


def make_published(corpus: str, folder: Path) -> None:
    for name in PUBLISHED[corpus]:
        if name.endswith((".wav", ".flac", ".ogg", ".mp3", ".g722")) and "/._" not in name:
            write(folder / name)
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"no audio")


@pytest.mark.parametrize("corpus", CORPORA)
def test_published_layouts(corpus, tmp_path):
    make_published(corpus, tmp_path / "in")
    counts = prepare(corpus, tmp_path / "in", tmp_path / "out", 16000)
    assert all(counts.values()) and set(counts) == set(CORPORA[corpus].splits)
    assert rows(tmp_path / "out" / "dropped.csv") == []
    table = [row for split in counts for row in rows(tmp_path / "out" / f"{split}.csv")]
    expected = {
        **{"vctk": 6, "voicebank": 8, "libritts-r": 9, "daps": 6, "dns5-noise": 7, "dns5-rooms": 6, "micirp": 3},
        **{"simulated-rooms": 3, "picovoice-intents": 4, "picovoice-wake-words": 2, "kerstin": 1, "nathalie": 1},
        **{"kathleen": 1, "flemishguy": 2, "festvox-ru": 1, "asterisk-sounds": 3},
        **{"esc-10": 8, "noisekun": 1, "blanket": 1, "moodist": 3, "precise-community": 2, "finally-demo": 1},
    }
    assert len(table) == expected[corpus]
    groups = defaultdict(set)
    for row in table:
        assert (tmp_path / "out" / row["path"]).is_file() and row["rate"] == "16000"
        unlabelled = ("picovoice", "precise-community", "finally-demo")
        labelled = CORPORA[corpus].kind in ("speech", "pairs") and not corpus.startswith(unlabelled)
        assert bool(row["speaker"]) == labelled
        group = {"dns5-rooms": Path(row["path"]).parent, "dns5-noise": row["path"].rpartition("_")[0]}.get(corpus)
        groups[row["speaker"] or group or row["path"]].add(row["split"])
        if corpus == "voicebank":
            assert (row["split"] == "test") == (row["speaker"] in ("p232", "p257"))
            assert row["noisy_path"] == row["path"].replace("clean", "noisy")
            assert (tmp_path / "out" / row["noisy_path"]).is_file()
        if corpus == "libritts-r":
            assert (row["split"] == "validation") == (row["speaker"] == "61")
    held_out = {row["path"].removeprefix("wav/") for row in table if row["split"] == "test"}
    if corpus in ("picovoice-intents", "moodist"):
        assert held_out == {"picovoice-intents": {"4.wav", "17.wav"}, "moodist": {"places/cafe.wav"}}[corpus]
    if corpus == "esc-10":
        assert len(held_out) == 4 and all("/5-" in path for path in held_out)
        groups = defaultdict(set)
        for row in table:
            groups[row["path"].rpartition("-")[0]].add(row["split"])
    if corpus != "dns5-noise":  # there the pieces of one recording stay together, other names that end in _1 do not
        assert all(len(splits) == 1 for splits in groups.values())
    else:
        assert len(groups["wav/datasets_fullband/noise_fullband/door_Freesound_validated_380491"]) <= 1


def test_a_speakers_column_says_who(tmp_path):
    for corpus, speakers in (("vctk", {"p225", "p226", "p227"}), ("daps", {"f1", "m1", "m10"})):
        make_published(corpus, tmp_path / corpus)
        recordings, remarks = find_recordings(corpus, tmp_path / corpus)
        assert {r.speaker for r in recordings} == speakers
        assert "outside the published layout" in remarks[0]


@pytest.mark.parametrize("corpus", [name for name, corpus in CORPORA.items() if corpus.kind != "pairs"])
def test_any_folder_of_recordings(corpus, tmp_path):
    for speaker in ("Anna Ä", "Bert", "Carl", "Dora"):
        write(tmp_path / "in" / "export" / speaker / "take 1" / "ä.flac", tone(rate=44100, channels=2), 44100)
        write(tmp_path / "in" / "export" / speaker / "b.ogg", tone(0.5, 22050), 22050)
    write(tmp_path / "in" / "export" / "alone.wav")
    counts = prepare(corpus, tmp_path / "in", tmp_path / "out", 48000)
    reserved = (CORPORA[corpus].reserved or ("none",))[0]
    assert sum(counts.values()) == 9 and all(count for split, count in counts.items() if split != reserved)
    if CORPORA[corpus].kind == "speech":
        speakers = {split: {row["speaker"] for row in rows(tmp_path / "out" / f"{split}.csv")} for split in counts}
        assert set().union(*speakers.values()) == {"Anna Ä", "Bert", "Carl", "Dora", "alone"}
        assert sum(map(len, speakers.values())) == 5


def test_own_recordings_as_voicebank_come_in_pairs(tmp_path):
    write(tmp_path / "in" / "a.wav")
    with pytest.raises(UserError, match=r"put the clean recordings into .*/clean and the noisy ones"):
        prepare("voicebank", tmp_path / "in", tmp_path / "out", 16000)
    for n in range(5):
        write(tmp_path / "in" / "clean" / f"{n}.wav")
        write(tmp_path / "in" / "noisy" / f"{n}.flac", tone(0.3 if n else 0.4))
    write(tmp_path / "in" / "clean" / "lonely.wav")
    counts = prepare("voicebank", tmp_path / "in", tmp_path / "out", 16000)
    assert counts == {"train": 2, "validation": 1, "test": 1}
    reasons = {row["path"]: row["reason"] for row in rows(tmp_path / "out" / "dropped.csv")}
    assert reasons["clean/lonely.wav"] == "no noisy counterpart"
    assert "differ in length: 4800 samples at 16000 Hz, 6400" in reasons["clean/0.wav"]


def test_two_files_of_one_name_stay_two(tmp_path):
    for name in ("a.wav", "a.flac", "x/b_c.wav", "x_b/c.wav", "d.wav"):
        write(tmp_path / "in" / name)
    prepare("vctk", tmp_path / "in", tmp_path / "out", 16000)
    paths = [row["path"] for split in ("train", "validation") for row in rows(tmp_path / "out" / f"{split}.csv")]
    manifests = [Manifest(tmp_path / "out" / f"{split}.csv") for split in ("train", "validation")]
    names = {manifest.name(index) for manifest in manifests for index in range(len(manifest))}
    assert len(set(paths)) == len(names) == 5


def test_a_link_to_a_folder_above_is_no_loop(tmp_path):
    write(tmp_path / "in" / "a" / "a.wav")
    (tmp_path / "in" / "a" / "up").symlink_to(tmp_path / "in")
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    assert [r.source for r in find_recordings("daps", tmp_path / "linked")[0]] == ["a/a.wav"]


# ---------------------------------------------------------------------------------------------------------------------
# Splits


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    corpus=st.sampled_from(sorted(CORPORA)),
    speakers=st.lists(st.integers(0, 500), min_size=1, max_size=40, unique=True),
    files=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_splits_by_names_alone(corpus, speakers, files, seed):
    recordings = [Recording(f"{s}/{n}.wav", f"{s}/{n}.wav", f"s{s}", f"s{s}") for s in speakers for n in range(files)]
    wanted = {CORPORA[corpus].rest, *CORPORA[corpus].held_out}
    needed = len(wanted)
    if len(recordings) < needed:
        with pytest.raises(UserError, match="cannot fill the splits"):
            assign_splits(recordings, corpus, seed)
        return
    split, _ = assign_splits(recordings, corpus, seed)
    again, _ = assign_splits(recordings[::-1], corpus, seed)
    assert {r.source: r.split for r in split} == {r.source: r.split for r in again}
    assert {r.split for r in split} == wanted
    where = defaultdict(set)
    for r in split:
        where[r.speaker].add(r.split)
    assert all(len(splits) == 1 for splits in where.values())
    if len(speakers) >= needed:
        assert {r.speaker for r in split} == {r.speaker for r in recordings}


def test_more_speakers_move_few_others():
    def held_out(count: int) -> set:
        recordings = [Recording(f"{s}.wav", f"{s}.wav", f"p{s}", f"p{s}") for s in range(count)]
        return {r.speaker for r in assign_splits(recordings, "vctk", 0)[0] if r.split == "validation"}

    assert len(held_out(110)) == 6  # whole speakers, 5 %
    assert len(held_out(110) - held_out(100)) <= 2
    assert held_out(110) == held_out(110)


def test_a_missing_set_is_split_from_the_others(tmp_path):
    for speaker in ("1", "2", "3"):
        write(tmp_path / "LibriTTS_R" / "train-clean-100" / speaker / "9" / f"{speaker}_9_0_0.wav")
    recordings, _ = assign_splits(find_recordings("libritts-r", tmp_path)[0], "libritts-r", 0)
    assert sorted(r.split for r in recordings) == ["train", "train", "validation"]


# ---------------------------------------------------------------------------------------------------------------------
# Splits of a user's own folder


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def said(folder: Path, kind: str = "speech") -> dict[str, tuple[str | None, str]]:
    """Recording -> the split that its folders say, and its speaker (or group)."""
    return {r.source: (r.split, r.group) for r in find_recordings("mine", folder, own_corpus(kind))[0]}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train/anna/1.wav", "Test/bert/1.wav", "DEV/1.wav"), {"Test": "test", "DEV": "validation"}),
        (("x/TRAIN/a/1.wav", "x/EVAL/b/1.wav", "x/Valid/c/1.wav"), {"EVAL": "test", "Valid": "validation"}),
        (("anna/1.wav", "bert/1.wav", "test/1.wav", "1.wav"), {"test": "test"}),
        (("train-clean-100/7/1.flac", "dev-clean/8/1.flac", "test-other/9/1.flac"),
         {"dev-clean": "validation", "test-other": "test"}),
        (("training set/1.wav", "test_set/1.wav", "validationset/1.wav"),
         {"test_set": "test", "validationset": "validation"}),
        (("close/train/a/1.wav", "close/test/b/1.wav", "far/train/a/2.wav", "far/test/b/2.wav"), {"test": "test"}),
        (("anna/train/1.wav", "anna/test/2.wav", "bert/val/1.wav"), {"test": "test", "val": "validation"}),
    ],
)  # fmt: skip
def test_folders_named_as_splits_are_these_splits(names, expected, tmp_path):
    splits = said(touch(tmp_path, *names))
    for name in names:
        assert splits[name][0] == next((s for f, s in expected.items() if f in name.split("/")), None), name


@pytest.mark.parametrize(
    "names",
    [
        ("bus/1.wav", "train/1.wav", "train/2.wav", "tram/1.wav"),  # trains are a kind of noise
        ("anna/1.wav", "dev-patel/1.wav", "test-pilot/1.wav"),
        ("anna/1.wav", "bert/test/1.wav", "bert/talk/1.wav"),
        ("test/1.wav", "test/2.wav"),  # all there is
    ],
)
def test_other_folders_say_nothing_about_splits(names, tmp_path):
    assert {split for split, _ in said(touch(tmp_path, *names)).values()} == {None}


def test_speakers_are_the_folders_below_those_of_the_splits(tmp_path):
    names = ("train/wav/anna/1.wav", "train/wav/bert/a/1.wav", "test/wav/anna/2.wav", "train/wav/1.wav")
    splits = said(touch(tmp_path, *names))
    assert [splits[name][1] for name in names] == ["anna", "bert", "anna", "train/wav/1"]
    _, remarks = assign_splits(
        find_recordings("mine", tmp_path, own_corpus("speech"))[0], "mine", 0, own_corpus("speech")
    )
    assert any("1 speakers are in several splits, as the folders say, such as anna" in remark for remark in remarks)


def test_a_published_name_follows_the_folders_too(tmp_path, speech):
    for split, clips in {"train": speech[:12], "test": speech[12:15]}.items():
        for clip in clips:
            (tmp_path / "in" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / split / clip.name).symlink_to(clip)
    counts = prepare("vctk", tmp_path / "in", tmp_path / "out", 16000)
    assert counts == {"train": 11, "validation": 1, "test": 3}
    for split, folder in {"train": "train", "validation": "train", "test": "test"}.items():
        assert all(row["path"].startswith(f"wav/{folder}/") for row in rows(tmp_path / "out" / f"{split}.csv"))


@pytest.mark.parametrize(
    ("places", "noisy"),
    [
        (("clean/train/1", "clean/train/2", "clean/test/3"), "noisy/{}"),
        (("train/clean/1", "train/clean/2", "test/clean/3"), "{}"),
    ],
)
def test_pairs_have_their_splits_inside_or_outside(places, noisy, tmp_path):
    touch(tmp_path, *(f"{place}.wav" for place in places))
    touch(tmp_path, *(f"{place.replace('clean', 'noisy')}.flac" for place in places))
    found = find_recordings("mine", tmp_path, own_corpus("pairs"))[0]
    assert {(r.output, r.noisy_output, r.split) for r in found} == {
        ("clean/train/1.wav", "noisy/train/1.wav", None),
        ("clean/train/2.wav", "noisy/train/2.wav", None),
        ("clean/test/3.wav", "noisy/test/3.wav", "test"),
    }
    assert all(r.noisy_source for r in found)


def test_side_files_change_nothing(tmp_path):
    names = [f"{place}/{n}.wav" for place in ("a/anna", "a/bert", "a/carl") for n in range(3)]
    before = find_recordings("vctk", touch(tmp_path, *names))
    touch(tmp_path, "README", "README.md", "COPYING", "LICENSE", "a/LICENSE.txt", "index.csv", "test/labels.csv")
    touch(
        tmp_path,
        "a/anna/0.PHN",
        "a/anna/0.TextGrid",
        "a/anna/0.lab",
        "a/anna/0.json",
        "a/cover.jpg",
        "lost+found/x.wav",
    )
    (tmp_path / "a" / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    (tmp_path / "TEXT").write_bytes("speaker;age".encode("utf-16"))
    assert find_recordings("vctk", tmp_path) == before


@pytest.mark.parametrize(
    ("sizes", "share", "expected"),
    [
        ({"anna": 40, "bert": 40, "carl": 40, "dora": 6, "emil": 5}, 0.1, (5, 14)),
        ({"anna": 300, "bert": 10, "carl": 10, "dora": 10}, 0.1, (30, 40)),
        ({f"s{n}": 1 + 7 * n for n in range(40)}, 0.05, (220, 330)),
        ({"anna": 50, "bert": 50}, 0.1, (10, 10)),  # two speakers: by file, or half of it would be lost
        ({"anna": 50, "bert": 50, "carl": 50}, 0.05, (8, 8)),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_about_the_share_that_is_asked_for(sizes, share, expected, seed):
    recordings = [
        Recording(f"{s}/{n}.wav", f"{s}/{n}.wav", s, s, own=True) for s, count in sizes.items() for n in range(count)
    ]
    split, _ = assign_splits(recordings, "mine", seed, own_corpus("speech", share))
    held_out = sum(r.split == "validation" for r in split)
    assert expected[0] <= held_out <= expected[1]
    assert {
        r.source: r.split for r in assign_splits(recordings[::-1], "mine", seed, own_corpus("speech", share))[0]
    } == {r.source: r.split for r in split}


def test_a_share_that_whole_speakers_cannot_give_is_told():
    recordings = [Recording(f"{s}{n}.wav", "", s, s, own=True) for s in "abcd" for n in range(20)]
    _, remarks = assign_splits(recordings, "mine", 0, own_corpus("speech", 0.05))
    assert remarks == ["validation has 25% of the recordings, not 5%: whole speakers are held out"]


# ---------------------------------------------------------------------------------------------------------------------
# What is written, and what is left out


def test_resampled_once_mixed_and_nothing_cut(tmp_path, speech):
    for number, clip in enumerate(speech[:3]):
        wav, rate = sf.read(clip, dtype="float32")
        write(tmp_path / "in" / f"{number}.wav", np.stack([wav, 0.5 * wav], 1), rate, subtype="PCM_24")
    prepare("vctk", tmp_path / "in", tmp_path / "out", 16000)
    for row in rows(tmp_path / "out" / "train.csv"):
        source = next(path for path in (tmp_path / "in").iterdir() if path.stem == Path(row["path"]).stem)
        wav, rate = decode(source)
        expected = resample(mono(wav), rate, 16000)
        written, written_rate = read(tmp_path / "out" / row["path"])
        assert written_rate == 16000 and sf.info(tmp_path / "out" / row["path"]).subtype == "PCM_16"
        assert len(written) == int(row["samples"]) == len(expected)
        np.testing.assert_allclose(written, expected, atol=0.51 / 32768)
        assert float(row["peak"]) == pytest.approx(np.abs(expected).max(), abs=1e-5) and row["gain"] == "1.0"


def test_too_loud_is_scaled_and_said(tmp_path):
    for name in "abcd":
        write(tmp_path / "in" / "clean" / f"{name}.wav", tone(level=0.6), subtype="FLOAT")
        write(tmp_path / "in" / "noisy" / f"{name}.wav", tone(level=1.5), subtype="FLOAT")
    prepare("voicebank", tmp_path / "in", tmp_path / "out", 16000)
    row = rows(tmp_path / "out" / "train.csv")[0]
    clean, noisy = (read(tmp_path / "out" / row[key])[0] for key in ("path", "noisy_path"))
    assert float(row["gain"]) == pytest.approx(1 / 1.5, rel=1e-3) and float(row["peak"]) == pytest.approx(0.4, rel=1e-3)
    np.testing.assert_allclose(noisy, 2.5 * clean, atol=1e-3)
    assert np.abs(noisy).max() == pytest.approx(1, abs=1e-3)


def test_dropped_by_rule_each_with_a_line(tmp_path):
    source = tmp_path / "in"
    for name in ("good 1.wav", "gut ä.wav", "好.wav", "new\nline.wav", "d.wav", "e.wav", "f.wav"):
        write(source / name)
    write(source / "bytes.wav").rename(source / os.fsdecode(b"\xff\xfe.wav"))  # not UTF-8
    write(source / "silent.wav", np.zeros(8000))
    write(source / "nearly silent.wav", tone(level=5e-4), subtype="FLOAT")
    write(source / "short.wav", tone(0.05))
    (source / "zero.wav").write_bytes(b"")
    (source / "corrupt.flac").write_bytes(b"fLaC" + bytes(400))
    write(source / "no samples.wav", np.zeros(0))
    (source / "notes.txt").write_text("not even tried")
    prepare("vctk", source, tmp_path / "out", 16000)
    reasons = {row["path"]: row["reason"] for row in rows(tmp_path / "out" / "dropped.csv")}
    assert set(reasons) == {
        "silent.wav",
        "nearly silent.wav",
        "short.wav",
        "zero.wav",
        "corrupt.flac",
        "no samples.wav",
    }
    for name, reason in {"silent": "silent: peak 0", "short": "shorter than 0.1 s", "zero": "empty"}.items():
        assert reason in reasons[f"{name}.wav"]
    kept = [row for split in ("train", "validation") for row in rows(tmp_path / "out" / f"{split}.csv")]
    assert len(kept) == 8 and all((tmp_path / "out" / row["path"]).is_file() for row in kept)
    for split in ("train", "validation"):
        manifest = Manifest(tmp_path / "out" / f"{split}.csv")
        for index in range(len(manifest)):
            assert len(read(manifest.path(index))[0]) == manifest.samples[index]


def test_what_is_no_file_is_dropped_and_nothing_waits(tmp_path):
    source = tmp_path / "in"
    for name in "abcdefgh":
        write(source / f"{name}.wav")
    (source / "gone.wav").symlink_to(tmp_path / "nowhere.wav")
    (source / "endless.wav").symlink_to("/dev/zero")
    os.mkfifo(source / "pipe.wav")
    os.mkfifo(source / "pipe without a name")
    counts = prepare("vctk", source, tmp_path / "out", 16000)
    assert sum(counts.values()) == 8
    reasons = {row["path"]: row["reason"] for row in rows(tmp_path / "out" / "dropped.csv")}
    assert reasons == {
        "endless.wav": "is not a file",
        "gone.wav": "is a link to nothing",
        "pipe.wav": "is not a file",
    }
    write(tmp_path / "nowhere.wav")  # the link leads somewhere now
    assert sum(prepare("vctk", source, tmp_path / "out", 16000).values()) == 9


def test_a_header_without_sense_is_one_line(tmp_path, monkeypatch):
    source = tmp_path / "in"
    for name in "abcde":
        write(source / f"{name}.wav")
    write(source / "slow.wav", rate=1)
    write(source / "fast.wav", rate=2_000_000_000)

    def large(path: Path, accept_cut: bool):
        if path.stem == "a":
            raise MemoryError
        return decode(path, accept_cut)

    monkeypatch.setattr("finallyse.corpora.prepare.decode", large)
    prepare("vctk", source, tmp_path / "out", 16000)
    reasons = {row["path"]: row["reason"] for row in rows(tmp_path / "out" / "dropped.csv")}
    assert reasons == {
        "a.wav": "needs more memory than there is; cut it into pieces",
        "fast.wav": "its header gives 2000000000 Hz, which no recording has",
        "slow.wav": "its header gives 1 Hz, which no recording has",
    }


def test_long_names_are_shortened_and_stay_different(tmp_path):
    deep = "/".join(["a folder with a name of some length"] * 6)
    for name in ("x" * 251, "ä" * 125, f"{deep}/one", f"{deep}/two", "short"):
        write(tmp_path / "in" / f"{name}.wav")
    prepare("mine", tmp_path / "in", tmp_path / "out", 16000, own=own_corpus("speech", 0.4))
    files = [tmp_path / "out" / f"{split}.csv" for split in ("train", "validation")]
    both = [Manifest(file) for file in files]
    names = {manifest.name(index) for manifest in both for index in range(len(manifest))}
    assert len(names) == 5 and "short" in names
    assert all(len(name.encode()) <= LONGEST_NAME for name in names)
    together = Manifest(files)
    for index in range(len(together)):
        assert together.path(index).is_file()
        write(tmp_path / "validation" / f"{together.name(index)}.wav.part.wav")
    again = prepare("mine", tmp_path / "in", tmp_path / "out", 16000, own=own_corpus("speech", 0.4))
    assert sum(again.values()) == 5
    assert names == {m.name(index) for m in map(Manifest, files) for index in range(len(m))}


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    write(tmp_path / "anna" / "a.wav")
    write(tmp_path / "bert" / "b.wav")
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("bert"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    for search in (lambda: prepare("vctk", tmp_path, f"{tmp_path}-out", 16000), lambda: folder_fingerprint(tmp_path)):
        with pytest.raises(UserError, match=r"bert: cannot be listed \(Permission denied\); allow it, or move"):
            search()


def test_nothing_or_too_little_to_use(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        prepare("vctk", tmp_path / "in", tmp_path / "out", 16000)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.txt").write_text("nothing here")
    with pytest.raises(UserError, match="contains no audio files"):
        prepare("vctk", tmp_path / "in", tmp_path / "out", 16000)
    write(tmp_path / "in" / "a.wav")
    with pytest.raises(UserError, match="1 usable recordings cannot fill the splits train, validation"):
        prepare("vctk", tmp_path / "in", tmp_path / "out", 16000)
    for name in ("b", "c"):
        write(tmp_path / "in" / f"{name}.wav", np.zeros(9000))
    with pytest.raises(UserError, match=r"2 of 3 recordings of vctk are unusable, more than 50% \(b\.wav: silent"):
        prepare("vctk", tmp_path / "in", tmp_path / "out", 16000)
    assert not (tmp_path / "out" / "train.csv").exists() and len(rows(tmp_path / "out" / "dropped.csv")) == 2
    with pytest.raises(UserError, match="did you mean 'voicebank'"):
        prepare("voicebnk", tmp_path / "in", tmp_path / "out", 16000)


def test_responses_are_aligned_and_bounded(tmp_path):
    rng = np.random.default_rng(0)
    for number, delay in enumerate((0, 30, 4800)):
        response = 0.01 * rng.standard_normal(48000) * np.exp(-np.arange(48000) / 2000)
        response[:delay] = 0
        response[delay] = 0.5
        response[delay + 300] = -0.6  # two reflections that arrive together
        second = 0.1 * rng.standard_normal(48000)
        write(tmp_path / "in" / f"Room{number}" / "a.wav", np.stack([response, second], axis=1), 48000)
    write(tmp_path / "in" / "Room9" / "silent.wav", np.zeros(48000), 48000)
    for rate in (16000, 48000):
        out = tmp_path / str(rate)
        prepare("dns5-rooms", tmp_path / "in", out, rate)
        assert "no energy" in rows(out / "dropped.csv")[0]["reason"]
        for row in [row for split in ("train", "validation") for row in rows(out / f"{split}.csv")]:
            wav, offset = read(out / row["path"])[0], int(row["offset"])
            assert sf.info(out / row["path"]).subtype == "FLOAT" and len(wav) == int(row["samples"])
            assert np.sum(wav.astype(np.float64) ** 2) == pytest.approx(1, rel=1e-4)
            assert offset <= round(0.0025 * rate) and abs(wav[offset]) > 0.5 * np.abs(wav).max()
            reflection = round(offset + 300 * rate / 48000)
            assert np.argmax(np.abs(wav)) == pytest.approx(reflection, abs=1)


# ---------------------------------------------------------------------------------------------------------------------
# Again, elsewhere, and after a kill


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "journal.jsonl"
    }


def test_only_what_changed_is_prepared_again(tmp_path, capsys):
    for name in "abcdef":
        write(tmp_path / "in" / f"{name}.wav")
    prepare("vctk", tmp_path / "in", tmp_path / "out", 16000)
    stamps = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "wav").iterdir()}
    write(tmp_path / "in" / "a.wav", tone(0.4))  # other contents
    os.utime(tmp_path / "in" / "b.wav")  # touched
    (tmp_path / "in" / "c.wav").unlink()
    (tmp_path / "out" / "wav" / "d.wav").write_bytes(b"damaged")
    (tmp_path / "out" / "wav" / "stale.wav.123.part").write_bytes(b"left by a kill")
    capsys.readouterr()
    prepare("vctk", tmp_path / "in", tmp_path / "out", 16000)
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "wav").iterdir()}
    assert set(again) == {"a.wav", "b.wav", "d.wav", "e.wav", "f.wav"}
    assert {name for name in again if again[name] != stamps[name]} == {"a.wav", "d.wav"}
    assert "5 of 5 recordings (2 kept from an earlier run)" in capsys.readouterr().out
    fresh = prepare("vctk", tmp_path / "in", tmp_path / "fresh", 16000)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh") and sum(fresh.values()) == 5
    prepare("vctk", tmp_path / "in", tmp_path / "out", 48000)  # another rate into the same folder
    assert {row["rate"] for row in rows(tmp_path / "out" / "train.csv")} == {"48000"}
    assert sf.info(tmp_path / "out" / "wav" / "e.wav").samplerate == 48000


def test_killed_and_continued_with_more_processes(tmp_path, root, speech):
    """SIGKILL amid the work; the next run keeps what was finished, and the result is that of an uninterrupted run."""
    for copy, clip in itertools.product(range(5), speech):
        target = tmp_path / "in" / f"{clip.stem.split('_')[0]}{copy}" / clip.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(clip)

    def command(output: str, jobs: int) -> list[str]:
        options = {
            "corpus": "vctk",
            "source": tmp_path / "in",
            "output": tmp_path / output,
            "rate": 16000,
            "jobs": jobs,
        }
        return [sys.executable, "scripts/prepare.py", *(f"--{key}={value}" for key, value in options.items())]

    journal = tmp_path / "out" / "journal.jsonl"
    process = subprocess.Popen(command("out", 2), cwd=root, stdout=subprocess.PIPE, text=True, start_new_session=True)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 41:  # a line of settings and 40 recordings
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out" / "train.csv").exists()
    deadline = time.monotonic() + 20  # the workers notice that they are orphans
    while _group_is_alive(process.pid):
        assert time.monotonic() < deadline, "the workers outlived the run"
        time.sleep(0.05)
    with journal.open("a") as file:
        file.write('{"source": "torn li')

    done = subprocess.run(command("out", 1), cwd=root, capture_output=True, text=True, check=True)
    kept = int(done.stdout.split(" kept from an earlier run")[0].rpartition("(")[2])
    assert 40 <= kept < 5 * len(speech)
    subprocess.run(command("whole", 2), cwd=root, capture_output=True, check=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def _group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_full_disk_stops_and_drops_nothing(tmp_path, monkeypatch):
    for name in "abc":
        write(tmp_path / "in" / f"{name}.wav")
    replace = Path.replace

    def full(self, target):
        if target.suffix == ".wav":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/a\.wav'"):
            prepare("vctk", tmp_path / "in", tmp_path / "out", 16000)
    assert not list((tmp_path / "out").glob("*.csv")) and not list((tmp_path / "out" / "wav").iterdir())
    assert sum(prepare("vctk", tmp_path / "in", tmp_path / "out", 16000).values()) == 3


def test_the_command_line_says_errors_in_one_line(tmp_path, root):
    (tmp_path / "in").mkdir()
    command = [sys.executable, "scripts/prepare.py", "--corpus=vctk", f"--source={tmp_path / 'in'}"]
    done = subprocess.run(
        [*command, f"--output={tmp_path / 'out'}", "--rate=16000"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr == f"error: {tmp_path / 'in'}: contains no audio files for vctk\n"
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Manifests


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column 'path'"),
        ("path,samples,rate\n", "lists no recordings"),
        ("path,rate\na.wav,16000\n", "no column 'samples'"),
        ("path,samples,rate\na.wav,many,16000\n", "line 2 is not a manifest's row"),
        ("path,samples,rate\na.wav,5\n", "line 2 has 2 columns"),
        ("path,samples,rate\na.wav,99999999999999999999,16000\n", "line 2 is not a manifest's row"),
        ("path,samples,rate\na.wav,0,16000\n", "without samples"),
        ("path,samples,rate\na.wav,5,16000\nb.wav,5,48000\n", "different sample rates"),
    ],
)
def test_a_manifest_that_is_none(tmp_path, text, message):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        Manifest(tmp_path / "train.csv")
    assert str(tmp_path / "train.csv") in str(error.value)


def test_recordings_with_a_noisy_background_are_left_out(tmp_path, speech, monkeypatch):
    clean, rate = sf.read(speech[0], dtype="float32")
    noise = np.random.default_rng(0).standard_normal(len(clean)) * 0.1
    for number in range(3):
        write(tmp_path / "in" / f"clean{number}" / "a.wav", clean, rate)
    write(tmp_path / "in" / "noisy" / "a.wav", (clean * 0.5 + noise).clip(-1, 1), rate)
    counts = prepare("vctk", tmp_path / "in", tmp_path / "out", 16000, min_bak=3.0)
    assert sum(counts.values()) == 3
    [left_out] = rows(tmp_path / "out" / "dropped.csv")
    assert left_out["path"] == "noisy/a.wav" and "DNSMOS BAK" in left_out["reason"]
    assert left_out["reason"].endswith("below 3")

    with pytest.raises(UserError, match="micirp: min_bak=3 judges speech"):
        prepare("micirp", tmp_path / "in", tmp_path / "other", 16000, min_bak=3.0)

    def again(wav):
        raise AssertionError("scored twice")

    monkeypatch.setattr("finallyse.metrics.dnsmos.background", again)  # scores are in the journal, thresholds are not
    assert sum(prepare("vctk", tmp_path / "in", tmp_path / "out", 16000, min_bak=1.01).values()) == 4
    assert sum(prepare("vctk", tmp_path / "in", tmp_path / "out", 16000).values()) == 4
