"""Reading and writing of audio files: every format, ranges, broken files, nothing clipped or half-written."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile as sf

from finallyse.audio.io import decode, mono, read, write_wav
from finallyse.audio.resample import resample
from finallyse.errors import UserError
from support.corpora import lag


def encode(path: Path, wav: np.ndarray, rate: int, codec: str, format: str | None = None) -> None:
    """Write a file with FFmpeg."""
    with av.open(str(path), "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        sample_format = "s16" if codec == "g722" else "fltp"
        samples = np.rint(wav * 32767).astype(np.int16) if sample_format == "s16" else wav
        frame = av.AudioFrame.from_ndarray(samples[None], format=sample_format, layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for piece in (frame, None):
            for packet in stream.encode(piece):
                container.mux(packet)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "MS_ADPCM"])
def test_decode_wavs_of_any_kind(tmp_path, speech_16k, subtype):
    stereo = np.stack([speech_16k, 0.5 * speech_16k])
    sf.write(tmp_path / "a.wav", stereo.T, 16000, subtype=subtype)
    wav, rate = decode(tmp_path / "a.wav")
    assert rate == 16000 and wav.dtype == np.float32 and wav.shape[0] == 2
    assert np.abs(wav[:, :64000] - stereo).mean() < 0.01
    assert lag(speech_16k, mono(wav)[: len(speech_16k)], 200) == 0


@pytest.mark.parametrize(
    ("name", "codec", "format"),
    [
        ("a.mp3", "libmp3lame", None),
        ("a.m4a", "aac", None),
        ("a.mp4", "aac", None),
        ("a.opus", "libopus", None),
        ("a.webm", "libopus", None),
        ("a.g722", "g722", "g722"),
        ("sound track é.mkv", "aac", None),
    ],
)
def test_decode_other_formats_in_time(tmp_path, speech_48k, speech_16k, name, codec, format):
    original, rate = (speech_16k, 16000) if codec == "g722" else (speech_48k, 48000)
    encode(tmp_path / name, original, rate, codec, format)
    wav, decoded_rate = decode(tmp_path / name)
    assert decoded_rate == rate
    assert abs(wav.shape[1] - len(original)) < rate // 10
    # FFmpeg's Matroska does not state the delay of its AAC encoder, a frame of 1024 samples.
    late = lag(original, fitted(mono(wav), len(original)), 3000)
    assert abs(late - (1024 if name.endswith(".mkv") else 0)) <= (30 if codec == "g722" else 1)


def fitted(wav: np.ndarray, length: int) -> np.ndarray:
    return np.pad(wav, (0, max(0, length - len(wav))))[:length]


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.aiff", "a.au", "a.w64", "a.caf"])
def test_decode_with_libsndfile(tmp_path, speech_16k, name):
    sf.write(tmp_path / name, speech_16k, 16000)
    wav, rate = decode(tmp_path / name)
    assert (rate, wav.shape) == (16000, (1, len(speech_16k)))
    assert lag(speech_16k, wav[0], 200) == 0


def test_a_name_says_nothing_about_the_contents(tmp_path, speech_16k):
    for name in ("a.raw", "a.g722", "no_suffix", "ä ö.mp3"):
        sf.write(tmp_path / name, speech_16k, 16000, format="WAV")
        assert decode(tmp_path / name)[0].shape == (1, len(speech_16k))


def test_broken_files_name_their_path(tmp_path, speech_16k):
    sf.write(tmp_path / "good.wav", speech_16k, 16000)
    sf.write(tmp_path / "good.flac", speech_16k, 16000)
    encode(tmp_path / "good.m4a", speech_16k, 16000, "aac")
    good = (tmp_path / "good.wav").read_bytes()
    flac = (tmp_path / "good.flac").read_bytes()
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "cut.wav").write_bytes(good[:50000])
    (tmp_path / "cut.flac").write_bytes(flac[: len(flac) // 2])
    (tmp_path / "corrupt.flac").write_bytes(flac[:30000] + bytes(400) + flac[30400:])
    (tmp_path / "cut.m4a").write_bytes((tmp_path / "good.m4a").read_bytes()[:9000])
    (tmp_path / "text.mp3").write_bytes(b"not audio at all " * 99)
    write_wav(tmp_path / "no_samples.wav", np.zeros(0), 16000)
    sf.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    with av.open(str(tmp_path / "silent film.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        for piece in (frame, None):
            container.mux(stream.encode(piece))
    broken = sorted(path for path in tmp_path.iterdir() if not path.stem.startswith("good"))
    assert len(broken) == 9
    for path in [*broken, tmp_path / "missing.wav", tmp_path]:
        with pytest.raises(UserError) as error:
            decode(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_stream_without_a_length_is_whole(tmp_path, speech_16k):
    """Programs that write to a pipe set the length of the data to 0xFFFFFFFF."""
    write_wav(tmp_path / "a.wav", speech_16k, 16000)
    data = bytearray((tmp_path / "a.wav").read_bytes())
    data[40:44] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(data)
    assert decode(tmp_path / "a.wav")[0].shape == (1, len(speech_16k))


@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 2])
def test_read_ranges(tmp_path, speech_16k, subtype, channels):
    wav = np.stack([speech_16k, -speech_16k])[:channels]
    write_wav(tmp_path / "a.wav", wav, 16000, subtype)
    whole, rate = read(tmp_path / "a.wav")
    assert rate == 16000 and whole.dtype == np.float32
    np.testing.assert_array_equal(whole, sf.read(tmp_path / "a.wav", dtype="float32")[0])
    np.testing.assert_allclose(whole.reshape(-1, channels).T, wav, atol=0.51 / 32768)
    for start, frames in ((0, 10), (12345, 8192), (len(speech_16k) - 1, 1), (100, -1)):
        part = read(tmp_path / "a.wav", start, frames)[0]
        np.testing.assert_array_equal(part, whole[start : None if frames < 0 else start + frames])


def test_read_outside_of_a_file(tmp_path, speech_16k):
    write_wav(tmp_path / "a.wav", speech_16k, 16000)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[:1000])
    for name, start, frames in (("a.wav", 0, 64001), ("a.wav", 64001, -1), ("a.wav", -1, 5), ("cut.wav", 0, 5000)):
        with pytest.raises(UserError, match=name):
            read(tmp_path / name, start, frames)
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "missing.wav")


def test_write_clips_nothing(tmp_path):
    loud = np.array([0.5, -2.0, 1.0], np.float32)
    with pytest.raises(UserError, match=r"a\.wav: not written: the signal's peak is 2\.000"):
        write_wav(tmp_path / "a.wav", loud, 16000)
    assert not list(tmp_path.iterdir())
    assert write_wav(tmp_path / "a.wav", loud, 16000, overload="scale") == 0.5
    np.testing.assert_allclose(read(tmp_path / "a.wav")[0], loud / 2, atol=1 / 32768)
    assert write_wav(tmp_path / "a.wav", loud, 16000, subtype="FLOAT") == 1.0
    np.testing.assert_array_equal(decode(tmp_path / "a.wav")[0][0], loud)
    with pytest.raises(UserError, match="not finite"):
        write_wav(tmp_path / "a.wav", np.array([np.inf]), 16000)


def test_writing_is_whole_or_not_at_all(tmp_path, monkeypatch):
    write_wav(tmp_path / "a.wav", np.zeros(10), 16000)
    before = (tmp_path / "a.wav").read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/a\.wav'"):
        write_wav(tmp_path / "a.wav", np.ones(10), 16000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == before


def test_the_same_samples_give_the_same_bytes(tmp_path):
    for subtype in ("PCM_16", "FLOAT"):
        write_wav(tmp_path / "a.wav", np.linspace(-1, 1, 99), 48000, subtype)
        write_wav(tmp_path / "b.wav", np.linspace(-1, 1, 99), 48000, subtype)
        assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
        assert sf.info(tmp_path / "a.wav").subtype == subtype


def test_mono_is_the_mean():
    np.testing.assert_array_equal(mono(np.array([[1, 2], [3, 4]], np.float32)), [2, 3])


def test_a_segment_of_a_large_file_is_quick(tmp_path):
    """The segment is read, not the file: a sparse file of 2 GB would take seconds."""
    write_wav(tmp_path / "a.wav", np.zeros(1), 16000)
    header = bytearray((tmp_path / "a.wav").read_bytes()[:44])
    header[40:44] = (2**31).to_bytes(4, "little")
    with (tmp_path / "a.wav").open("wb") as file:
        file.write(header)
        os.truncate(file.fileno(), 44 + 2**31)
    assert read(tmp_path / "a.wav", 2**29, 8192)[0].shape == (8192,)


@pytest.mark.parametrize("from_rate", [16000, 24000, 44100, 48000])
@pytest.mark.parametrize("to_rate", [16000, 48000])
def test_resampling_keeps_time_and_level(from_rate, to_rate):
    def tones(rate: int) -> np.ndarray:
        time = np.arange(rate) / rate
        window = 0.5 - 0.5 * np.cos(2 * np.pi * time)
        return np.stack([np.sin(2 * np.pi * 440 * time), np.cos(2 * np.pi * 3000 * time)]) * window

    out = resample(tones(from_rate), from_rate, to_rate)
    assert out.dtype == np.float32 and out.shape == (2, to_rate)
    np.testing.assert_allclose(out, tones(to_rate), atol=1e-3)


def test_resampling_to_the_same_rate_changes_nothing(speech_16k):
    np.testing.assert_array_equal(resample(speech_16k, 16000, 16000), speech_16k)
