"""What `finallyse enhance` writes: rounding, dither, channels, tags, times; pipes, side files, scratch, resuming."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf
import torch

import finallyse
from finallyse.audio.blocks import BlockReader
from finallyse.audio.io import decode
from finallyse.errors import UserError
from finallyse.inference.command import run
from finallyse.inference.enhancer import Enhancer
from finallyse.inference.files import SCRATCH, Options, enhance_file, scratch
from finallyse.models.base import Generator

RATE = 16000


class Same(Generator):
    """A network that changes nothing."""

    input_kind, alignment = "wav", 1

    def forward(self, wav):
        return wav.clone()


@pytest.fixture
def same():
    return Enhancer(Same(), device="cpu")


@pytest.mark.parametrize(("subtype", "step"), [("PCM_16", 2**-15), ("PCM_24", 2**-23)])
@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_integers_are_rounded(tmp_path, same, speech_16k, subtype, step, suffix):
    sf.write(tmp_path / "in.wav", 0.7 * speech_16k, RATE, "FLOAT")
    wav = sf.read(tmp_path / "in.wav")[0]
    errors = {}
    for dither in (False, True):
        target = tmp_path / f"{dither}{suffix}"
        enhance_file(same, str(tmp_path / "in.wav"), str(target), Options(subtype=subtype, dither=dither))
        errors[dither] = (sf.read(target)[0] - wav) / step
    assert abs(errors[False].mean()) < 0.01 and np.abs(errors[False]).max() <= 0.51
    assert errors[False].std() == pytest.approx(12**-0.5, abs=0.01)  # of rounding
    assert abs(errors[True].mean()) < 0.02
    assert errors[True].std() == pytest.approx(0.5, abs=0.01)  # and of triangular dither: 1/12 + 2/12


def test_dither_turns_distortion_into_noise(tmp_path, same):
    """A tone of half a step vanishes without, and stays with dither."""
    tone = 0.45 * 2**-15 * np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
    sf.write(tmp_path / "in.wav", tone, RATE, "FLOAT")
    found = {}
    for dither in (False, True):
        enhance_file(same, str(tmp_path / "in.wav"), str(tmp_path / f"{dither}.wav"), Options(dither=dither))
        found[dither] = np.abs(np.fft.rfft(sf.read(tmp_path / f"{dither}.wav")[0]))[1000] / (RATE / 2) * 2**15
    assert found[False] == 0 and found[True] == pytest.approx(0.45, abs=0.05)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".opus"])
@pytest.mark.parametrize("layout", ["5.1", "7.1", "quad", "5.1(side)"])
def test_channels_stay_where_they_are(tmp_path, same, suffix, layout):
    names = [channel.name for channel in av.AudioLayout(layout).channels]
    pitches = [60 if name == "LFE" else 200 * (index + 1) for index, name in enumerate(names)]
    tones = np.stack([0.2 * np.sin(2 * np.pi * pitch * np.arange(RATE) / RATE) for pitch in pitches])
    with av.open(str(tmp_path / "in.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout=layout)
        samples = np.rint(tones * 32767).astype(np.int16).T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout=layout)
        frame.sample_rate, frame.pts = RATE, 0
        for piece in (frame, None):
            container.mux(stream.encode(piece))
    target = tmp_path / f"out{suffix}"
    enhance_file(same, str(tmp_path / "in.wav"), str(target), Options())
    with BlockReader(target) as reader:
        got = np.concatenate(list(reader), 1)
        speakers, rate = reader.speakers, reader.rate
    peaks = np.abs(np.fft.rfft(got[:, rate // 4 : rate // 4 + rate // 2])).argmax(1) * 2
    assert peaks.tolist() == pitches
    if suffix == ".wav":
        assert list(speakers) == names


def test_a_wav_of_many_channels_is_extensible(tmp_path, same):
    sf.write(tmp_path / "in.wav", np.full((RATE, 5), 0.1), RATE)
    enhance_file(same, str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), Options())
    header = (tmp_path / "out.wav").read_bytes()[:44]
    assert struct.unpack("<H", header[20:22]) == (0xFFFE,)


def test_a_wav_beyond_4_gb_has_its_channel_mask(tmp_path, same, monkeypatch):
    monkeypatch.setattr("finallyse.inference.files.WAV_LIMIT", 1000)  # bytes
    with av.open(str(tmp_path / "in.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE, layout="5.1(side)")
        frame = av.AudioFrame.from_ndarray(np.full((1, 6 * RATE), 1000, np.int16), format="s16", layout="5.1(side)")
        frame.sample_rate, frame.pts = RATE, 0
        for piece in (frame, None):
            container.mux(stream.encode(piece))
    enhance_file(same, str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), Options())
    assert (tmp_path / "out.wav").read_bytes()[:4] == b"RF64"
    with BlockReader(tmp_path / "out.wav") as reader:
        assert reader.speakers == ("FL", "FR", "FC", "LFE", "SL", "SR")


def test_tags_and_times_are_kept_on_request(tmp_path, same, speech_16k):
    with sf.SoundFile(tmp_path / "in.flac", "w", RATE, 1) as file:
        file.title, file.artist, file.comment = "Gespräch", "A. Müller", "Zimmer 3"
        file.write(speech_16k[:RATE])
    os.utime(tmp_path / "in.flac", (1e9, 1e9))
    (tmp_path / "in.flac").chmod(0o400)
    enhance_file(same, str(tmp_path / "in.flac"), str(tmp_path / "plain.flac"), Options())
    kept = Options(keep_tags=True, keep_times=True)
    for name in ("out.flac", "out.ogg", "out.wav", "out.mp3"):
        enhance_file(same, str(tmp_path / "in.flac"), str(tmp_path / name), kept)
        assert (tmp_path / name).stat().st_mtime == 1e9 and (tmp_path / name).stat().st_mode & 0o200
        with BlockReader(tmp_path / name) as reader:
            assert (reader.tags["title"], reader.tags["artist"]) == ("Gespräch", "A. Müller"), name
    with BlockReader(tmp_path / "plain.flac") as reader:
        assert "title" not in reader.tags
    assert (tmp_path / "plain.flac").stat().st_mtime > 1e9


def test_the_rate_of_the_output(tmp_path, same, speech_16k):
    for rate, name, expected in (
        (8000, "a.wav", 16000),
        (44100, "b.wav", 44100),
        (44100, "c.opus", 48000),
        (96000, "d.opus", 48000),
        (11025, "e.mp3", 16000),
    ):
        sf.write(tmp_path / "in.wav", speech_16k[:8000], rate)
        enhance_file(same, str(tmp_path / "in.wav"), str(tmp_path / name), Options())
        assert decode(tmp_path / name)[1] == expected, name


def test_a_pipe_is_read(tmp_path, same, speech_16k):
    sf.write(tmp_path / "in.wav", speech_16k[:RATE], RATE)
    os.mkfifo(tmp_path / "pipe")
    feeding = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes((tmp_path / "in.wav").read_bytes()))
    feeding.start()
    enhance_file(same, str(tmp_path / "pipe"), str(tmp_path / "out.wav"), Options())
    feeding.join()
    np.testing.assert_array_equal(sf.read(tmp_path / "out.wav")[0], sf.read(tmp_path / "in.wav")[0])


class Fragile(Generator):
    """A network that fails at loud clips, in a way that nobody expected."""

    input_kind, alignment = "wav", 1

    def forward(self, wav):
        if wav.abs().max() > 0.8:
            raise ZeroDivisionError("something\nunheard of")
        return wav.clone()


@pytest.fixture
def network(tmp_path, monkeypatch):
    for module in ("command", "engine"):
        monkeypatch.setattr(f"finallyse.inference.{module}.checkpoint_file", lambda name, engine: name)
    monkeypatch.setattr(Enhancer, "from_checkpoint", lambda name, **options: Enhancer(Fragile(), device="cpu"))
    return dict(checkpoint="x", device="cpu", precision="fp32")


def test_any_exception_is_one_line(tmp_path, network, speech_16k, capfd):
    (tmp_path / "in").mkdir()
    for name in "abc":
        sf.write(tmp_path / "in" / f"{name}.wav", (0.9 if name == "b" else 0.1) * np.ones(RATE), RATE)
    assert run([str(tmp_path / "in")], str(tmp_path / "out"), **network) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.wav", "c.wav"]
    assert f"error: {tmp_path}/in/b.wav: ZeroDivisionError: something unheard of\n" in capfd.readouterr().err


def test_a_run_that_was_stopped_goes_on(tmp_path, network, capfd):
    (tmp_path / "in").mkdir()
    for name in "abc":
        sf.write(tmp_path / "in" / f"{name}.wav", np.full(RATE, 0.1), RATE)
    assert run([str(tmp_path / "in" / "b.wav")], str(tmp_path / "out"), **network) == 0
    before = (tmp_path / "out" / "b.wav").stat().st_mtime_ns
    capfd.readouterr()
    assert run([str(tmp_path / "in")], str(tmp_path / "out"), **network) == 0
    assert "1 of 3 outputs exist and are kept; --force replaces them" in capfd.readouterr().err
    assert (tmp_path / "out" / "b.wav").stat().st_mtime_ns == before
    single = [str(tmp_path / "in" / "b.wav")], str(tmp_path / "out" / "b.wav")
    assert run(*single, **network) == 1
    assert run(*single, **network, resume=True) == 0
    with pytest.raises(UserError, match="--force does again what --resume skips"):
        run(*single, **network, resume=True, force=True)


def test_side_files_are_left_out(tmp_path, network):
    """Of TIMIT, of lyrics, cue sheets, analyses and thumbnails: none is a recording, whatever its name is."""
    (tmp_path / "in").mkdir()
    sf.write(tmp_path / "in" / "SA1.WAV", np.full(RATE, 0.1), RATE)
    sf.write(tmp_path / "in" / "recorder", np.full(RATE, 0.1), RATE, format="WAV")
    for name in [
        "SA1.PHN",
        "SA1.WRD",
        "SA1.lrc",
        "SA1.cue",
        "SA1.wav.asd",
        "SA1.THM",
        "SA1.pek",
        "notes",
        "SA1.reapeaks",
    ]:
        (tmp_path / "in" / name).write_bytes(b"0 100 h#\n" if name != "SA1.THM" else b"\xff\xd8\xff\xe0 jpeg")
    os.mkfifo(tmp_path / "in" / "control")
    assert run([str(tmp_path / "in")], str(tmp_path / "out"), **network) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["SA1.wav", "recorder.wav"]


def testscratch_of_killed_runs_is_removed(tmp_path):
    code = f"""
import os, pathlib, signal
from finallyse.inference.files import scratch
with scratch(pathlib.Path({str(tmp_path)!r})) as work:
    (work / "input.f32").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert len(list(tmp_path.glob(f"{SCRATCH}*"))) == 1
    (tmp_path / f"{SCRATCH}new").mkdir()  # about to be locked
    (tmp_path / f"{SCRATCH}old").mkdir()
    os.utime(tmp_path / f"{SCRATCH}old", (1e9, 1e9))
    with scratch(tmp_path) as first, scratch(tmp_path) as second:  # those in use stay
        assert sorted(tmp_path.iterdir()) == sorted([first, second, tmp_path / f"{SCRATCH}new"])
    (tmp_path / f"{SCRATCH}new").rmdir()
    assert not list(tmp_path.iterdir())


def test_a_wav_is_no_checkpoint(tmp_path):
    sf.write(tmp_path / "a.wav", np.zeros(100), RATE)
    torch.save({"weights": 1}, tmp_path / "b.ckpt")
    for name, message in (("a.wav", "not readable as a checkpoint"), ("b.ckpt", "not a checkpoint of this package")):
        with pytest.raises(finallyse.UserError, match=message):
            finallyse.load(tmp_path / name)


def test_names_for_users_exist():
    assert all(getattr(finallyse, name) for name in finallyse.__all__)
    assert finallyse.Enhancer is Enhancer
    with pytest.raises(AttributeError, match="has no attribute 'enhance'"):
        finallyse.enhance  # noqa: B018
    assert (Path(finallyse.__file__).parent / "py.typed").is_file()
