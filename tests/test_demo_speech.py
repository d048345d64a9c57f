"""Speech of any folder, brought into pieces by several speakers."""

from __future__ import annotations

import csv
import errno
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from finallyse.demo import speech as demo_speech
from finallyse.demo.speech import collect_speech, read_speech
from finallyse.errors import UserError


def collect(folder: Path, **options) -> tuple[list[dict], dict[str, str], str]:
    """Rows of speech.csv, what was left out and why, and what was said."""
    said: list[str] = []
    table = folder.parent / "out" / "speech.csv"
    collect_speech(folder, table, say=said.append, **options)
    with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    with table.with_name("left_out.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        left_out = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    return rows, left_out, "\n".join(said)


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "recordings").mkdir()
    return tmp_path / "recordings"


def write(path: Path, wav: np.ndarray, rate: int, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wav, rate, **options)
    return path


def voice(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    envelope = np.repeat(rng.uniform(0.05, 1, int(seconds * 5) + 1), rate // 5)[: int(seconds * rate)]
    return 0.3 * envelope * rng.standard_normal(len(envelope)).clip(-3, 3) / 3


def test_the_embedded_clips_are_taken_as_they_are(speech, tmp_path):
    said: list[str] = []
    collect_speech(speech[0].parent, tmp_path / "speech.csv", say=said.append)
    speakers = read_speech(tmp_path / "speech.csv")
    assert sorted(speakers) == ["alpha", "gongitsune", "joe", "kumo", "nezumi", "tebukuro"]
    assert all(len(files) == 9 for files in speakers.values())
    original, _ = soundfile.read(speech[0], dtype="int16")
    piece, rate = soundfile.read(speakers["alpha"][0], dtype="int16")
    assert rate == 24_000 and np.array_equal(original, piece)
    assert "speakers: what stands before the numbers in the names: alpha" in "\n".join(said)


def test_the_same_folder_gives_the_same_pieces(speech, tmp_path):
    for name in ("a", "b"):
        collect_speech(speech[0].parent, tmp_path / name / "speech.csv", seconds=60)
    first, second = ({p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.*")} for n in "ab")
    assert first == second
    with (tmp_path / "a" / "speech.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert 50 <= sum(float(row["seconds"]) for row in rows) <= 100
    assert len({row["speaker"] for row in rows}) == 6, "the budget is spread over the speakers"


def test_formats_rates_channels_and_names(folder):
    write(folder / "Anna Müller" / "1 – früh.wav", voice(4, 8_000), 8_000)
    write(folder / "Anna Müller" / "deep" / "2.flac", np.stack([voice(4, 96_000)] * 2, 1), 96_000)
    write(folder / "李" / "a.ogg", voice(5, 44_100), 44_100)
    write(folder / "Zoë" / "x.mp3", voice(5, 22_050), 22_050)
    write_g722(folder / "bob" / "prompt.g722", voice(5))
    write(folder / "eve" / "24 bit.aiff", voice(4, 48_000), 48_000, subtype="PCM_24")
    (folder / "eve" / "notes.txt").write_text("hello")
    (folder / "eve" / "mystery.xyz").write_bytes(b"what is this?" * 50)
    (folder / ".DS_Store").write_bytes(b"x")
    rows, left_out, said = collect(folder)
    assert {row["speaker"] for row in rows} == {"Anna Müller", "李", "Zoë", "bob", "eve"}
    assert {int(row["rate"]) for row in rows} == {8_000, 16_000, 22_050, 44_100, 48_000}
    assert left_out == {"eve/mystery.xyz": "not audio", "eve/notes.txt": "not audio"}
    assert "6 recordings" in said and "2 not audio" in said and "the 5 folders of level 1" in said
    for row in rows:
        info = soundfile.info(folder.parent / "out" / row["file"])
        assert info.channels == 1 and info.samplerate == int(row["rate"]) and info.subtype == "PCM_16"


def write_g722(path: Path, wav: np.ndarray) -> None:
    """Raw G.722 at 16 kHz, as telephone systems keep it."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray((wav * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)


def test_long_recordings_are_cut_at_pauses_and_nothing_is_lost(folder):
    for name in "abcd":
        wav = voice(40, seed=ord(name))
        for pause in (9.0, 18.5, 30.0):
            wav[int(pause * 16_000) : int((pause + 0.5) * 16_000)] = 0
        write(folder / name / "long.wav", wav, 16_000)
    rows, left_out, _ = collect(folder)
    assert not left_out
    for name in "abcd":
        seconds = [float(row["seconds"]) for row in rows if row["speaker"] == name]
        assert sum(seconds) == pytest.approx(40, abs=0.01) and max(seconds) <= 12 and min(seconds) >= 3
        cuts = np.cumsum(seconds)[:-1]
        assert all(min(abs(cut - pause - 0.25) for pause in (9.0, 18.5, 30.0)) < 0.3 for cut in cuts[:2])


def test_short_recordings_are_joined(folder):
    for name in "abcd":
        for number in range(9):
            write(folder / name / f"{number}.wav", voice(0.8, seed=number), 16_000)
    rows, left_out, _ = collect(folder)
    assert not left_out
    assert all(float(row["seconds"]) >= 3 for row in rows)
    assert sum(row["sources"].count(".wav") for row in rows) == 36
    assert sum(float(row["seconds"]) for row in rows) == pytest.approx(36 * 0.8 + (36 - len(rows)) * 0.2, abs=0.1)


def test_what_is_left_out_is_listed_with_the_reason(folder):
    for name in "abcdefghij":
        write(folder / name / "long.wav", voice(20 + ord(name) - 97, seed=ord(name)), 16_000)
    write(folder / "j" / "silent.wav", np.zeros(64_000), 16_000)
    rows, left_out, said = collect(folder)
    assert len({row["speaker"] for row in rows}) == 8
    assert left_out["j/silent.wav"] == "silent"
    assert left_out["a/long.wav"] == "8 of 10 speakers are used, those with the most speech"
    assert set(left_out) == {"a/long.wav", "b/long.wav", "j/silent.wav"}
    assert "3 files left out" in said
    rows, left_out, said = collect(folder, seconds=30)
    assert "30 s of" in said


def test_a_rest_that_fits_nowhere_is_listed(folder):
    for name in "abcd":
        write(folder / name / "good.wav", voice(5), 16_000)
    write(folder / "e" / "tiny.wav", voice(0.5), 16_000)
    _, left_out, _ = collect(folder)
    assert left_out == {"e/tiny.wav": "a remainder shorter than 3 s, with nothing of its speaker to join it to"}


@pytest.mark.parametrize("folders", [0, 2])
def test_speakers_are_made_where_none_can_be_told(folder, folders):
    for number in range(12):
        place = folder / f"folder{number % folders}" if folders else folder
        write(place / f"take {'abcdefghijkl'[number]}.wav", voice(5, seed=number), 16_000)
    rows, left_out, said = collect(folder)
    assert not left_out and len(rows) == 12
    assert len({row["speaker"] for row in rows}) == 6
    assert (
        f"only {max(1, folders)} can be distinguished" in said and "a voice may be in training and validation" in said
    )


def test_one_long_recording_is_enough(folder):
    write(folder / "lecture.flac", voice(60), 16_000)
    rows, _, _ = collect(folder)
    assert len({row["speaker"] for row in rows}) >= 4


@pytest.mark.parametrize("content", ["nothing", "texts"])
def test_a_folder_without_audio(folder, content):
    if content == "texts":
        (folder / "a.txt").write_text("x")
        (folder / "b.unknown").write_bytes(b"x")
    with pytest.raises(UserError, match=rf"recordings: contains no audio files \({2 * (content == 'texts')} of other"):
        collect(folder)


def test_a_missing_folder(folder):
    with pytest.raises(UserError, match="absent: no such folder of recordings"):
        collect(folder / "absent")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("zero bytes.wav", b"", r"zero bytes.wav: the file is empty \(0 bytes\)"),
        ("broken.flac", b"fLaC" + b"\0" * 100, r"broken.flac: "),
        ("text.mp3", b"this is not audio at all, whatever its name says " * 20, r"text.mp3: "),
    ],
)
def test_bad_recordings_stop_with_their_name(folder, name, content, message):
    for speaker in "abcd":
        write(folder / speaker / "good.wav", voice(5), 16_000)
    (folder / "a" / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        collect(folder)
    assert "\n" not in str(error.value)
    assert not (folder.parent / "out" / "speech.csv").exists()


def test_a_recording_of_zero_samples_stops_with_its_name(folder):
    for speaker in "abcd":
        write(folder / speaker / "good.wav", voice(5), 16_000)
    write(folder / "b" / "ünd leer.wav", np.zeros(0), 16_000)
    with pytest.raises(UserError, match=r"b/ünd leer.wav: has no samples"):
        collect(folder)


def test_a_full_disk_names_the_piece(folder, monkeypatch):
    for speaker in "abcd":
        write(folder / speaker / "good.wav", voice(5), 16_000)
    replace = Path.replace

    def full(self, target):
        if target.suffix == ".flac":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/1/001\.flac'"):
        collect(folder)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_stops_with_its_name(kind, folder):
    for speaker in "abcd":
        write(folder / speaker / "good.wav", voice(5), 16_000)
    if kind == "link":
        (folder / "a" / "odd.wav").symlink_to(folder / "absent")
    else:
        os.mkfifo(folder / "a" / "odd.wav")
    with pytest.raises(UserError, match=r"odd.wav: (no such file|is not a file); remove it"):
        collect(folder)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "speaker,file\nx\n"])
def test_a_damaged_table_of_speech_is_told(text, tmp_path):
    (tmp_path / "speech.csv").write_text(text)
    with pytest.raises(UserError, match=r"speech.csv: not a table of speech"):
        read_speech(tmp_path / "speech.csv")


def test_too_little_speech(folder):
    write(folder / "a.wav", voice(7), 16_000)
    with pytest.raises(UserError, match=r"contains 1 usable pieces of speech \(7 s\); at least 4 of 3 s"):
        collect(folder)


def test_a_second_collection_replaces_the_first(folder):
    for speaker in "abcdef":
        write(folder / speaker / "good.wav", voice(5), 16_000)
    collect(folder)
    shutil.rmtree(folder / "e")
    shutil.rmtree(folder / "f")
    collect(folder)
    assert sorted(path.name for path in (folder.parent / "out").iterdir()) == [
        "1", "2", "3", "4", "left_out.csv", "speech.csv",
    ]  # fmt: skip


@pytest.mark.parametrize("seconds", [12.0, 12.1, 13.0, 15.0, 24.0, 25.0, 61.7])
def test_cuts_cover_everything_within_bounds(seconds):
    wav = voice(seconds)
    cuts = demo_speech._cuts(wav, 16_000)
    assert cuts[0][0] == 0 and cuts[-1][1] == len(wav)
    assert all(end == start for (_, end), (start, _) in itertools.pairwise(cuts))
    assert all(2.9 <= (end - start) / 16_000 <= 12 for start, end in cuts)


def test_telephone_prompts_and_letters_of_debian(tmp_path):
    """Real recordings, where they are installed: raw G.722 and Ogg of many languages."""
    places = [Path("/usr/share/asterisk/sounds/en_US_f_Allison"), Path("/usr/share/klettres")]
    if not all(place.is_dir() for place in places):
        pytest.skip("needs the packages asterisk-core-sounds-en-g722 and klettres-data")
    (tmp_path / "real").mkdir()
    for place in places:
        (tmp_path / "real" / place.name).symlink_to(place)
    rows, left_out, _ = collect(tmp_path / "real", seconds=60)
    assert len({row["speaker"] for row in rows}) == 8
    listed = {source.rsplit(" ", 1)[0] for row in rows for source in row["sources"].split("; ")} | set(left_out)
    assert len(listed) == sum(1 for place in places for path in place.rglob("*") if path.is_file())
