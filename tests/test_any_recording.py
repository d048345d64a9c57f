"""Recordings as they come: every container and codec, whole and right; headers that are wrong; files that are cut."""

from __future__ import annotations

import logging
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile as sf

from finallyse.audio import ffmpeg, headers
from finallyse.audio.blocks import BlockReader
from finallyse.audio.channels import WAV_SPEAKERS
from finallyse.audio.io import decode
from finallyse.errors import UserError

RATE = 48000
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
FINEST = ("s32", "s32p", "flt", "fltp", "s16", "s16p")  # of the sample formats that an encoder takes, in this order


@pytest.fixture
def channels(speech_48k):
    """Eight channels that can be told apart: the speech at eight levels, each begins at another word, [8, T]."""
    return np.stack([0.9 ** (index + 1) * np.roll(speech_48k[: 2 * RATE], 11_000 * index) for index in range(8)])


def encode(path: Path, wav: np.ndarray, codec: str, rate: int = RATE, layout: str | None = None, **options) -> None:
    """Write float [C, T] with FFmpeg."""
    layout = layout or LAYOUTS[len(wav)]
    with av.open(str(path), "w", options={"strict": "-2"} | options.pop("container", {})) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout, options={"strict": "-2"} | options)
        possible = {kind.name for kind in stream.codec_context.codec.audio_formats or ()}
        stream.codec_context.format = next((kind for kind in FINEST if kind in possible), stream.format.name)
        resampler = av.AudioResampler(
            format=stream.format.name, layout=layout, rate=rate, frame_size=stream.codec_context.frame_size or 0
        )
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wav.T).reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        for piece in (*resampler.resample(frame), *resampler.resample(None), None):
            container.mux(stream.encode(piece))


def ffmpeg_samples(path: Path) -> np.ndarray:
    """What FFmpeg decodes, [C, T]."""
    with av.open(str(path)) as container:
        resampler, pieces = av.AudioResampler(format="flt"), []
        for frame in container.decode(audio=0):
            pieces += resampler.resample(frame)
        count = len(pieces[0].layout.channels)
        return np.concatenate([piece.to_ndarray().reshape(-1, count) for piece in pieces]).T


PCM = ("pcm_s16le", "pcm_s24le", "pcm_f32le")
LOSSLESS = [
    *(("a.wav", f"pcm_{kind}") for kind in ("u8", "s16le", "s24le", "s32le", "s64le", "f32le", "f64le")),
    *((name, kind) for name in ("a.w64", "a.caf", "a.mov", "a.mkv") for kind in PCM),
    *(("a.aiff", kind) for kind in ("pcm_s16be", "pcm_s24be", "pcm_s32be")),
    *(("a.au", kind) for kind in ("pcm_s16be", "pcm_s24be", "pcm_f32be")),
    *((name, "flac") for name in ("a.flac", "a.mkv", "a.mp4", "a.oga")),
    *((name, "alac") for name in ("a.m4a", "a.mov", "a.caf", "a.mkv")),
    *((name, "wavpack") for name in ("a.wv", "a.mka")),
    ("a.tta", "tta"),
]  # fmt: skip
LOSSY = [
    *(("a.wav", kind) for kind in ("pcm_alaw", "pcm_mulaw", "adpcm_ms", "adpcm_ima_wav")),
    *((name, "aac") for name in ("a.m4a", "a.aac", "a.mkv", "a.mov")),
    *((name, "ac3") for name in ("a.ac3", "a.mp4", "a.mkv")),
    *((name, "libmp3lame") for name in ("a.mp3", "a.mp4", "a.mka", "a.wav")),
    *((name, "mp2") for name in ("a.mp2", "a.mkv")),
    *((name, "vorbis") for name in ("a.ogg", "a.webm")),
]
STEPS = {"u8": 2**7, "s16": 2**15, "s24": 2**23}


def encode_or_skip(path: Path, wav: np.ndarray, codec: str) -> None:
    try:
        encode(path, wav, codec)
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"FFmpeg does not write {len(wav)} channels so: {error}")


@pytest.mark.parametrize("count", [1, 2, 3, 6, 8])
@pytest.mark.parametrize(("name", "codec"), LOSSLESS, ids=str)
def test_lossless_samples(tmp_path, channels, name, codec, count):
    encode_or_skip(tmp_path / name, channels[:count], codec)
    wav, rate = decode(tmp_path / name)
    assert rate == RATE and wav.dtype == np.float32
    step = next((1 / steps for kind, steps in STEPS.items() if kind in codec), 2.0**-15)
    if count < 8 or name not in ("a.caf", "a.aiff"):  # FFmpeg names the sides and the back of these the wrong way round
        np.testing.assert_allclose(wav, channels[:count], atol=1.01 * step)
    np.testing.assert_allclose(wav, in_order_of_wav(tmp_path / name), atol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 6, 8])
@pytest.mark.parametrize(("name", "codec"), LOSSY, ids=str)
def test_lossy_samples_are_those_of_ffmpeg(tmp_path, channels, name, codec, count):
    encode_or_skip(tmp_path / name, channels[:count], codec)
    wav, rate = decode(tmp_path / name)
    assert rate == RATE
    np.testing.assert_allclose(wav, in_order_of_wav(tmp_path / name), atol=1e-6)
    for index in range(count):  # each is where it belongs
        levels = [np.abs(correlation(channels[index], wav[other])) for other in range(count)]
        assert index == int(np.argmax(levels)) or (count >= 6 and index == 3)  # low frequencies are all that it has


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Largest cross-correlation, normalised."""
    size = 1 << (len(a) + len(b)).bit_length()
    found = np.fft.irfft(np.fft.rfft(a, size) * np.conj(np.fft.rfft(b, size)))
    return float(np.abs(found[:2400]).max() + np.abs(found[-2400:]).max()) / np.linalg.norm(a) / np.linalg.norm(b)


def in_order_of_wav(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        names = [channel.name for channel in container.streams.audio[0].codec_context.layout.channels]
    known = all(name in WAV_SPEAKERS for name in names)
    return (
        ffmpeg_samples(path)[np.argsort([WAV_SPEAKERS.index(name) for name in names])]
        if known
        else ffmpeg_samples(path)
    )


@pytest.mark.parametrize("count", range(1, 17))
def test_up_to_sixteen_channels(tmp_path, channels, count):
    wav = np.concatenate([channels, 0.5 * channels])[:count]
    sf.write(tmp_path / "a.wav", wav.T, RATE, "FLOAT", format="WAVEX" if count > 2 else "WAV")
    np.testing.assert_array_equal(decode(tmp_path / "a.wav")[0], wav.astype(np.float32))
    with BlockReader(tmp_path / "a.wav") as reader:
        assert reader.channels == count


def test_channels_in_an_order_of_their_own(tmp_path, channels):
    """A QuickTime film in the order C L R Ls Rs LFE, which is MPEG's 5.1 D."""
    encode(tmp_path / "a.mov", channels[:6], "pcm_s16le")
    data = bytearray((tmp_path / "a.mov").read_bytes())
    at = data.find(b"chan")
    data[at + 8 : at + 16] = struct.pack(">II", (124 << 16) | 6, 0)
    (tmp_path / "a.mov").write_bytes(data)
    wav, _ = decode(tmp_path / "a.mov")
    # stored: C L R Ls Rs LFE; expected: FL FR FC LFE SL SR
    np.testing.assert_allclose(wav, channels[[1, 2, 0, 5, 3, 4]], atol=1e-4)
    with BlockReader(tmp_path / "a.mov") as reader:
        assert reader.speakers == ("FL", "FR", "FC", "LFE", "SL", "SR")


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_in_the_order_of_vorbis(tmp_path, subtype):
    """libsndfile stores channels as they come: as FL FC FR BL BR LFE for a 5.1 track by the specification."""
    pitches = dict(FL=300, FC=700, FR=500, BL=1100, BR=1300, LFE=60)
    time = np.arange(2 * RATE) / RATE
    tones = np.stack([0.2 * np.sin(2 * np.pi * pitch * time) for pitch in pitches.values()], 1)
    sf.write(tmp_path / "a.ogg", tones, RATE, subtype, format="OGG")
    wav, _ = decode(tmp_path / "a.ogg")
    assert wav.shape == (6, 2 * RATE)
    found = np.abs(np.fft.rfft(wav[:, 9600 : 9600 + RATE])).argmax(1)
    assert found.tolist() == [pitches[name] for name in ("FL", "FR", "FC", "LFE", "BL", "BR")]


def test_opus_is_decoded_by_libopus(tmp_path, speech_48k):
    sf.write(tmp_path / "a.opus", speech_48k, RATE, "OPUS", format="OGG")
    reference = sf.read(tmp_path / "a.opus", dtype="float32")[0]
    np.testing.assert_allclose(decode(tmp_path / "a.opus")[0][0], reference, atol=1e-5)


def test_a_chained_ogg_is_whole(tmp_path, speech_48k):
    for subtype in ("VORBIS", "OPUS"):
        links = []
        for index in range(3):
            sf.write(tmp_path / "link.ogg", speech_48k[: (index + 1) * RATE // 2], RATE, subtype, format="OGG")
            data = bytearray((tmp_path / "link.ogg").read_bytes())
            links.append(bytes(data))
        (tmp_path / "chain.ogg").write_bytes(b"".join(links))
        wav, _ = decode(tmp_path / "chain.ogg")
        assert abs(wav.shape[1] - 3 * RATE) <= 2000, subtype


def mp3(path: Path, wav: np.ndarray, **options) -> None:
    encode(path, wav[None], "libmp3lame", container={"write_xing": "0", "id3v2_version": "3"}, **options)


def test_mp3s_without_a_header_are_whole(tmp_path, speech_48k):
    quiet_end = np.concatenate([speech_48k[:RATE], 0.001 * speech_48k[: 4 * RATE]])
    mp3(tmp_path / "cbr.mp3", quiet_end, b="64000")
    sf.write(tmp_path / "vbr.mp3", quiet_end, RATE, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    data = (tmp_path / "vbr.mp3").read_bytes()
    first = data.find(b"\xff", 4)
    while data[first + 1] & 0xE0 != 0xE0:
        first = data.find(b"\xff", first + 1)
    (tmp_path / "vbr.mp3").write_bytes(data[first:])  # without the frame that says how many there are
    assert headers.length(tmp_path / "vbr.mp3").seconds is None
    (tmp_path / "two.mp3").write_bytes(data + data)
    for name, seconds in (("cbr.mp3", 5), ("vbr.mp3", 5), ("two.mp3", 10)):
        wav, rate = decode(tmp_path / name)
        assert rate == RATE and abs(wav.shape[1] / rate - seconds) < 0.12, name


def test_lengths_that_were_not_known(tmp_path, speech_48k, caplog):
    wav = speech_48k[: 3 * RATE]
    sf.write(tmp_path / "a.flac", wav, RATE)
    data = bytearray((tmp_path / "a.flac").read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # total samples of STREAMINFO
    (tmp_path / "a.flac").write_bytes(data)
    for stated in (0, 0xFFFFFFFF, 0x7FFFF000, 0x7FFFFFFF - 36):
        sf.write(tmp_path / f"{stated}.wav", wav, RATE)
        data = bytearray((tmp_path / f"{stated}.wav").read_bytes())
        data[4:8] = data[40:44] = struct.pack("<I", stated)
        (tmp_path / f"{stated}.wav").write_bytes(data)
    with caplog.at_level(logging.WARNING):
        for path in tmp_path.iterdir():
            assert decode(path)[0].shape == (1, len(wav)), path
    assert not caplog.records


def test_a_matroska_of_a_recorder_states_no_duration(tmp_path, channels, caplog):
    """FFmpeg then estimates one from the bit rate, or the size, which is no statement about the length."""
    for codec in ("libmp3lame", "ac3", "flac"):
        encode(tmp_path / f"{codec}.mkv", channels[:2], codec, container={"live": "1"})
        assert abs(decode(tmp_path / f"{codec}.mkv")[0].shape[1] - 2 * RATE) < 2500
    assert not caplog.records


def test_headers_of_no_sense_are_none(tmp_path, speech_48k):
    sf.write(tmp_path / "a.ogg", speech_48k[:RATE], RATE)
    with (tmp_path / "a.ogg").open("ab") as file:
        file.write(bytes(100_000))  # longer than a page
    assert headers.length(tmp_path / "a.ogg").missing_s == 0
    with (tmp_path / "zeros.wav").open("wb") as file:  # chunks without names or lengths, without end
        file.write(b"RIFF\0\0\0\0WAVE")
        file.truncate(1 << 31)
    assert headers.length(tmp_path / "zeros.wav") == headers.Length()


def test_damaged_packets_of_unknown_length_count(monkeypatch):
    """As the packet before them: nothing is left out in silence."""

    class Decoder:
        frame = SimpleNamespace(
            samples=480, sample_rate=RATE, format=SimpleNamespace(name="flt"), layout=SimpleNamespace(channels=[1])
        )

        def decode(self, packet):
            if packet.damaged:
                raise av.InvalidDataError(1, "damaged")
            return [self.frame]

    track = SimpleNamespace(index=0, time_base=Fraction(1, 1000), codec_context=SimpleNamespace(name="x"))
    track.decode = Decoder().decode
    packets = [
        SimpleNamespace(stream=track, pts=10 * index, time_base=track.time_base, duration=None, damaged=index in (3, 4))
        for index in range(8)
    ]
    pieces = ffmpeg._Pieces(SimpleNamespace(demux=lambda: iter(packets)), track)
    assert len(list(pieces)) == 6
    assert (pieces.damaged_s, pieces.damaged_at_s) == (pytest.approx(0.02), 0.03)


CUT = {
    "a.wav": "pcm_s16le", "b.wav": "adpcm_ms", "a.w64": "pcm_s16le", "a.aiff": "pcm_s16be", "a.au": "pcm_s16be",
    "a.caf": "pcm_s16le", "a.flac": "flac", "a.mp3": "libmp3lame", "a.mkv": "flac", "a.ogg": "vorbis", "a.mp4": "aac",
    "a.wv": "wavpack", "a.tta": "tta",
}  # fmt: skip


@pytest.mark.parametrize("name", [*CUT, "rf64.wav"])
def test_a_recording_that_is_cut_short_is_told(tmp_path, speech_48k, name, caplog):
    wav = 0.5 * speech_48k[: 4 * RATE]
    path = tmp_path / name
    if name == "rf64.wav":
        sf.write(path, wav, RATE, format="RF64")
    else:  # the stereo sound is louder to FFmpeg's Vorbis encoder, which knows two channels only
        options = {"container": {"movflags": "faststart"}} if name == "a.mp4" else {}
        encode(path, np.stack([wav, wav]), CUT[name], **options)
    assert abs(decode(path)[0].shape[1] - 4 * RATE) < RATE // 10
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    with pytest.raises(UserError) as error:
        decode(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and "--accept-cut" in message and "\n" not in message
    if name != "a.ogg":
        missing = float(message.split("cut short: ")[1].split(" s of ")[0])
        assert 0.8 < missing < 2.2 and ("of 4.0" in message or "of 3.9" in message)
    caplog.clear()
    rest = decode(path, accept_cut=True)[0]
    assert 1.8 * RATE < rest.shape[1] < 3 * RATE
    assert any("cut short" in record.message or "its end is missing" in record.message for record in caplog.records)


def test_a_header_that_is_slightly_off_only_warns(tmp_path, speech_48k, caplog):
    sf.write(tmp_path / "a.wav", speech_48k[:RATE], RATE)
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(data[:-4800])  # 0.05 s
    assert decode(tmp_path / "a.wav")[0].shape == (1, RATE - 2400)
    assert "cut short: 0.05 s of 1.00 s are missing (5%)" in caplog.text


def test_damage_within_is_told(tmp_path, speech_48k, caplog):
    encode(tmp_path / "a.mkv", speech_48k[None, : 4 * RATE], "flac")
    data = bytearray((tmp_path / "a.mkv").read_bytes())
    at = len(data) // 2
    for start in range(at, at + 30000, 2000):
        data[start : start + 40] = bytes(40)
    (tmp_path / "a.mkv").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.mkv: (damaged|cut short)"):
        decode(tmp_path / "a.mkv")
    assert decode(tmp_path / "a.mkv", accept_cut=True)[0].shape[1] > 2 * RATE


def test_the_default_track_of_a_film(tmp_path, speech_48k):
    with av.open(str(tmp_path / "film.mkv"), "w") as container:
        tracks = [container.add_stream("flac", rate=RATE, layout="mono") for _ in range(2)]
        tracks[0].disposition = av.stream.Disposition.comment.value
        tracks[1].disposition = av.stream.Disposition.default.value
        for track, gain in zip(tracks, (0.1, 0.8), strict=True):
            frame = av.AudioFrame.from_ndarray(
                np.rint(gain * speech_48k[None, :RATE] * 32767).astype(np.int16), format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts = RATE, 0
            for piece in (frame, None):
                container.mux(track.encode(piece))
    np.testing.assert_allclose(decode(tmp_path / "film.mkv")[0][0], 0.8 * speech_48k[:RATE], atol=1e-4)


def test_a_crash_of_the_decoder_costs_one_file(tmp_path, speech_48k, monkeypatch):
    sf.write(tmp_path / "a.ogg", speech_48k[:RATE], RATE)
    reader = BlockReader(tmp_path / "a.ogg")
    reader._decoding._process.kill()
    with pytest.raises(UserError, match=r"a\.ogg: the decoder crashed \(SIGKILL\)"):
        list(reader)
    waiting = ffmpeg._start()
    waiting.kill()
    waiting.wait()
    monkeypatch.setattr(ffmpeg, "_idle", [waiting])
    assert decode(tmp_path / "a.ogg")[0].shape == (1, RATE)


@pytest.mark.parametrize("name", ["a:b.ogg", "file:x.ogg", "100%.ogg", "-a.ogg", "e\u0301.ogg", b"caf\xe9.ogg"])
def test_names_of_any_kind(tmp_path, speech_48k, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(name)
    sf.write("x.wav", speech_48k[:RATE], RATE)
    sf.write("plain.ogg", speech_48k[:RATE], RATE)
    Path("plain.ogg").rename(name)
    assert decode(name)[0].shape == (1, RATE)


def test_threads_decode_at_the_same_time(tmp_path, speech_48k):
    for index in range(8):
        sf.write(tmp_path / f"{index}.ogg", 0.1 * (index + 1) * speech_48k[:RATE], RATE)
    with ThreadPoolExecutor(4) as pool:
        peaks = list(pool.map(lambda path: np.abs(decode(path)[0]).max(), sorted(tmp_path.iterdir()) * 3))
    assert np.all(np.diff(np.reshape(peaks, (3, 8)), axis=1) > 0)
