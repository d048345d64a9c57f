"""finallyse.Stream and finallyse enhance --live: the offline output, a stated time later, however the input comes."""

import signal
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import finallyse
from finallyse.audio.resample import Resampler, delay, resample
from finallyse.cli import main
from finallyse.errors import UserError
from finallyse.inference import live
from finallyse.inference.enhancer import Enhancer
from finallyse.inference.stream import mirrored, reach
from finallyse.models import models_registry
from finallyse.models.base import Generator
from support import ROOT
from support.speech import read_speech

torch.set_num_threads(1)
NOISY = ROOT / "resources" / "demo" / "example" / "noisy.flac"


class Echo(Generator):
    """Its output at t is wav[t] + wav[t - 300] / 2 + wav[t + 200] / 4: what it sees is known exactly."""

    input_kind, alignment = "wav", 64

    def forward(self, wav):
        padded = torch.nn.functional.pad(wav, (300, 200))
        length = wav.shape[-1]
        return wav + padded[..., :length] / 2 + padded[..., 500 : 500 + length] / 4


@pytest.fixture(scope="module")
def echo():
    return Enhancer(Echo(), device="cpu")


@pytest.fixture(scope="module")
def small():
    return finallyse.load(device="cpu")


@pytest.fixture(scope="module")
def noisy():
    return sf.read(NOISY, dtype="float32")[0]


def decibels(difference, signal):
    return 10 * np.log10(np.mean(np.square(difference)) / np.mean(np.square(signal)) + 1e-30)


def pushed(stream, wav, sizes):
    """The whole output for blocks of these sizes, repeated."""
    made, start, turn = [], 0, 0
    while start < wav.shape[-1]:
        made.append(stream.push(wav[..., start : start + sizes[turn % len(sizes)]]))
        start, turn = start + sizes[turn % len(sizes)], turn + 1
    return np.concatenate([*made, stream.flush()], axis=-1)


# --- equal to the offline output --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [102_400, 64_000, 77_777])
def test_equals_the_offline_output(small, noisy, length):
    wav = np.resize(noisy, length)
    offline = small.enhance(wav, 16000)
    streamed = pushed(finallyse.Stream(small, block=0.02), wav, [320])
    assert streamed.shape == offline.shape and decibels(streamed - offline, offline) < -70
    tenths = np.square(streamed - offline)[: length // 1600 * 1600].reshape(-1, 1600).mean(1)
    assert 10 * np.log10(tenths.max() / np.square(offline).mean()) < -60


def test_less_lookahead_costs_quality_as_documented(small, noisy):
    noisy = noisy[:48_000]
    offline = small.enhance(noisy, 16000)
    differences = []
    for lookahead in (0.0, 0.04, 0.08, None):
        stream = finallyse.Stream(small, lookahead=lookahead)
        assert stream.latency == pytest.approx((0.136 if lookahead is None else lookahead) + 0.1)
        differences.append(decibels(pushed(stream, noisy, [4000]) - offline, offline))
    assert differences == sorted(differences, reverse=True)
    assert differences[0] < -18 and differences[1] < -22 and differences[3] < -60


def test_the_network_reaches_as_far_as_it_says(small, noisy):
    noisy = np.resize(noisy, 30 * 4096)
    past, future = reach(small, noisy)
    assert 1.0 < past <= small.reach_back / 16000 and 0.05 < future <= small.reach_ahead / 16000
    assert reach(small, noisy, -20.0) < (past, future)
    with pytest.raises(UserError, match=r"at least 1\.024 s"):
        reach(small, noisy[:5000])


def test_reach_of_a_network_that_is_known(echo, noisy):
    past, future = reach(echo, noisy, -200.0, step=0.001)
    assert past == pytest.approx(300 / 16000, abs=0.002) and future == pytest.approx(200 / 16000, abs=0.002)


@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(1, 12_000),
    sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=6).filter(any),
    channels=st.sampled_from([None, 1, 3]),
    rates=st.sampled_from([(16000, None), (48000, 48000), (8000, 11025), (16000, 44100)]),
    lookahead=st.sampled_from([0.03, 0.3]),
)
def test_any_blocks_give_the_offline_output(echo, noisy, length, sizes, channels, rates, lookahead):
    wav = noisy[:length] if channels is None else np.stack([np.roll(noisy, 999 * i)[:length] for i in range(channels)])
    sample_rate, rate = rates
    streamed = pushed(finallyse.Stream(echo, lookahead=lookahead, sample_rate=sample_rate, rate=rate), wav, sizes)
    offline = echo.enhance(wav, sample_rate, rate)
    assert streamed.shape == offline.shape and streamed.dtype == np.float32
    np.testing.assert_allclose(streamed, offline, atol=2e-5)


@settings(max_examples=6, deadline=None)
@given(sizes=st.lists(st.integers(1, 9000), min_size=1, max_size=5))
def test_the_same_bits_for_any_blocks(small, noisy, sizes):
    wav = noisy[:20_000]
    expected = pushed(finallyse.Stream(small, lookahead=0.04), wav, [len(wav)])
    np.testing.assert_array_equal(pushed(finallyse.Stream(small, lookahead=0.04), wav, sizes), expected)


@pytest.mark.parametrize("sample_rate", [16000, 44100])
def test_the_latency_is_kept(echo, sample_rate):
    stream = finallyse.Stream(echo, lookahead=0.05, sample_rate=sample_rate)
    assert stream.latency == pytest.approx(
        0.05 + stream.hop + delay(sample_rate, 16000) + delay(16000, stream.rate), abs=1e-9
    )
    given = got = 0
    wav = np.zeros(441, np.float32)
    for _ in range(300):
        given += len(wav)
        got += len(stream.push(wav))
        assert given / sample_rate - got / stream.rate <= stream.latency + 441 / sample_rate


def test_resampler_in_blocks_is_that_in_one_go(speech_48k):
    resampler, step = Resampler(48000, 16000, 1), 1234
    blocks = [resampler(speech_48k[None, i : i + step]) for i in range(0, len(speech_48k), step)]
    blocks.append(resampler(np.zeros((1, 0), np.float32), last=True))
    np.testing.assert_allclose(np.concatenate(blocks, axis=1)[0], resample(speech_48k, 48000, 16000), atol=1e-6)
    assert delay(16000, 16000) == 0 < delay(48000, 16000) < 0.2


def test_silence_integers_and_tensors(small, noisy):
    silence = pushed(finallyse.Stream(small, lookahead=0.04), np.zeros(20_000, np.float32), [777])
    assert np.abs(silence).max() <= 2 * np.abs(small.enhance(np.zeros(20_000), 16000)).max() < 0.01
    wav = np.rint(noisy[:10_000] * 32767).astype(np.int16)
    floats = pushed(finallyse.Stream(small, lookahead=0.04), wav / np.float32(32768), [320])
    np.testing.assert_allclose(pushed(finallyse.Stream(small, lookahead=0.04), wav, [320]), floats, atol=1e-6)
    tensor = torch.from_numpy(wav / np.float32(32768))
    np.testing.assert_array_equal(pushed(finallyse.Stream(small, lookahead=0.04), tensor, [320]), floats)


def test_mirrored():
    wav = np.arange(5.0)[None]
    np.testing.assert_array_equal(mirrored(wav, 6, 2)[0], [0, 1, 2, 3, 4, 3, 2, 2, 3, 3, 2])
    np.testing.assert_array_equal(mirrored(wav[:, :1], 2, 9)[0], [0, 0, 0])
    assert mirrored(wav, 0, 2).shape == (1, 5)


# --- networks and errors ----------------------------------------------------------------------------------------------


def test_a_trained_peak_needs_the_peak(noisy):
    enhancer = Enhancer(Echo(), device="cpu", level={"peak": 0.95})
    with pytest.raises(UserError, match=r"peak of 0\.95, to which a stream cannot be scaled .* say which peak"):
        finallyse.Stream(enhancer)
    peak = float(np.abs(noisy).max())
    streamed = pushed(finallyse.Stream(enhancer, peak=peak), noisy, [1000])
    np.testing.assert_allclose(streamed, enhancer.enhance(noisy, 16000), atol=1e-5)


def test_a_vocoder_streams(noisy):
    torch.manual_seed(0)
    args = {"resblock": "2", "upsample_initial_channel": 16, "resblock_kernel_sizes": [3]}
    vocoder = Enhancer(models_registry["hifigan_gen"](**args, resblock_dilation_sizes=[[1, 2]]), device="cpu")
    offline = vocoder.enhance(noisy, 16000)
    streamed = pushed(finallyse.Stream(vocoder), noisy, [1000])
    assert decibels(streamed - offline, offline) < -60


def test_errors(echo, noisy):
    for options, message in (
        ({"block": 0}, "block=0: must be between"),
        ({"lookahead": -0.1}, r"lookahead=-0\.1: must be between 0 and 5"),
        ({"lookahead": float("nan")}, "lookahead=nan"),
        ({"repeats": 1}, "repeats=1: must be"),
        ({"sample_rate": 0}, "sample_rate must be a positive whole number"),
        ({"rate": 1.5}, "rate must be a positive whole number"),
        ({"peak": 0.5}, "trained at any level"),
        ({"peak": -1}, "peak=-1: must be a positive number"),
    ):
        with pytest.raises(UserError, match=message):
            finallyse.Stream(echo, **options)
    wavlm_network = types.SimpleNamespace(input_kind="wav+ssl")
    with pytest.raises(UserError, match=r"hears through WavLM.*cannot enhance a stream"):
        finallyse.Stream(wavlm_network)
    stream = finallyse.Stream(echo)
    stream.push(noisy[:100])
    for wav, message in (
        (np.zeros((2, 5), np.float32), r"this stream is of samples \[n\], not \[2, 5\]"),
        (np.array([np.inf], np.float32), "not finite"),
        (np.zeros((1, 1, 1)), r"must be \[n\] or \[C, n\]"),
        (np.zeros(5, complex), "not complex128"),
    ):
        with pytest.raises(UserError, match=message):
            stream.push(wav)
    assert len(stream.flush()) == 100  # what was refused has left no trace
    for use in (lambda: stream.push(noisy), stream.flush):
        with pytest.raises(UserError, match="this stream has ended"):
            use()
    assert finallyse.Stream(echo).flush().shape == (0,)
    with finallyse.Stream(echo) as left:
        assert left.push(np.zeros(0, np.float32)).shape == (0,)
    with pytest.raises(UserError, match="has ended"):
        left.push(noisy)


# --- finallyse enhance --live -----------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "finallyse.cli", "enhance", "--live", "--device", "cpu", "--threads", "1"]


def raw(noisy):
    return np.rint(noisy * 32767).astype("<i2")


def test_live_through_pipes(small, noisy):
    samples = raw(noisy)
    done = subprocess.run([*COMMAND, "-", "-"], input=samples.tobytes(), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    made = np.frombuffer(done.stdout, "<i2")
    expected = pushed(finallyse.Stream(small, lookahead=0.04), samples, [320])
    assert len(made) == len(samples)
    np.testing.assert_allclose(made / 32768, np.clip(expected, -1, 1), atol=2e-4)
    text = done.stderr.decode()
    assert "latency 140 ms" in text and "enhanced 6.4 s live: real-time factor" in text


def test_live_of_other_rates_formats_and_channels():
    stereo = np.stack([read_speech(48000, 1.0), read_speech(48000, 2.0)[48000:]]).astype("<f4")
    words = ["--live-format", "f32le", "--live-rate", "48000", "--live-channels", "2", "--rate", "44100"]
    content = stereo.T.tobytes() + b"abc"
    done = subprocess.run([*COMMAND, *words], input=content, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    made = np.frombuffer(done.stdout, "<f4").reshape(-1, 2)
    assert len(made) == 44100 and np.isfinite(made).all() and np.std(made, axis=0).min() > 1e-3
    assert b"stdin ended within a sample: 3 of 8 bytes" in done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_all_that_came_in(noisy, number, status):
    samples = raw(noisy)[:24_000]
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        process.stdin.write(samples.tobytes())
        process.stdin.flush()
        first = process.stdout.read(2)  # it has begun; stdin stays open
        process.send_signal(number)
        received = []
        reader = threading.Thread(target=lambda: received.append(process.stdout.read()))
        reader.start()
        assert process.wait(timeout=300) == status
        reader.join()
        assert first and 2 + len(received[0]) == 2 * len(samples)
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()


def test_a_closed_output_ends_it(noisy):
    process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    _, errors = process.communicate(raw(noisy).tobytes(), timeout=300)
    assert process.returncode == 1 and b"Traceback" not in errors


def test_live_says_what_is_wrong(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(isatty=lambda: True))
    for words, message in (
        (["enhance", "--live"], "stdin is a terminal"),
        (["enhance", "--live", "a.wav"], "a.wav: --live takes its input from - (raw samples on stdin) or mic"),
        (["enhance", "--live", "-", "b.wav"], "b.wav: --live writes to -"),
        (["enhance", "--live", "a", "b", "c"], "at most an INPUT and an OUTPUT"),
        (["enhance", "--live", "--live-format", "s24"], "--live-format s24: must be s16le or f32le"),
        (["enhance", "--live", "--live-rate", "5"], "--live-rate 5: must be between"),
        (["enhance", "--live", "--live-channels", "99"], "--live-channels 99: at most 64"),
        (["enhance", "--live", "mic", "--precision", "fp8"], "--precision fp8"),
        (["enhance", "--live", "--force"], "--force: not with --live"),
        (["enhance", "a.wav", "b.wav", "--lookahead", "1"], "--lookahead: only with --live"),
    ):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert done.value.code == 2 and message in capsys.readouterr().err, words


def test_a_network_that_is_too_slow_is_told_once():
    said = []
    pace = live.Pace(said.append)
    for _ in range(40):
        pace.add(0.1, 0.05)
    assert said == []
    for _ in range(80):
        pace.add(0.1, 0.15)
    assert len(said) == 1 and "1.50 s of work per second of sound, 1.0 s behind" in said[0] and "\n" not in said[0]
    assert pace.slowest == 0.15


class FakeDevices:
    """A stand-in for the sounddevice module: a microphone that gives the blocks of a signal, and what is played."""

    class PortAudioError(Exception):
        pass

    def __init__(self, wav, fail=False):
        self.wav, self.fail, self.played, self.overflow = wav, fail, [], False
        devices = self

        class InputStream:
            def __init__(self, *, samplerate, channels, dtype, blocksize, latency, callback):
                if devices.fail:
                    raise devices.PortAudioError("Error querying device -1")
                self.size, self.callback = blocksize, callback

            def __enter__(self):
                status = types.SimpleNamespace(input_overflow=devices.overflow)
                for start in range(0, len(devices.wav), self.size):
                    self.callback(devices.wav[start : start + self.size, None], self.size, None, status)

            def __exit__(self, *_):
                pass

        class OutputStream:
            def __init__(self, **_):
                pass

            def __enter__(self):
                pass

            def __exit__(self, *_):
                pass

            def write(self, wav):
                devices.played.append(wav[:, 0])
                if sum(map(len, devices.played)) > len(devices.wav) // 2:
                    signal.raise_signal(signal.SIGINT)  # Ctrl-C, once

        self.InputStream, self.OutputStream = InputStream, OutputStream


@pytest.fixture
def signals_afterwards():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_microphone_to_loudspeaker(echo, noisy, monkeypatch, capsys, signals_afterwards):
    devices = FakeDevices(noisy)
    devices.overflow = True
    sent = []
    monkeypatch.setitem(sys.modules, "sounddevice", devices)
    monkeypatch.setattr(signal, "raise_signal", lambda number: sent or (sent.append(1), signal.getsignal(number)(2, 0)))
    assert live.run(echo, live.Live("mic", "speaker")) == 0
    played = np.concatenate(devices.played)
    cushion = round(live.CUSHION_S * 16000)
    assert not played[:cushion].any() and len(played) == cushion + len(noisy)
    expected = np.clip(echo.enhance(noisy, 16000), -1, 1)
    np.testing.assert_allclose(played[cushion:], expected, atol=1e-5)
    assert "the system has dropped some of its sound" in capsys.readouterr().err


def test_devices_that_fail(echo, monkeypatch, signals_afterwards):
    monkeypatch.setitem(sys.modules, "sounddevice", FakeDevices(np.zeros(10), fail=True))
    with pytest.raises(UserError, match=r"mic: cannot be used at 16000 Hz with 1 channel\(s\): Error querying device"):
        live.run(echo, live.Live("mic", "speaker"))
    monkeypatch.setitem(sys.modules, "sounddevice", FakeDevices(np.zeros(16000 * 60, np.float32)))
    with pytest.raises(UserError, match="10 s behind, so that sound would be lost"):  # a minute at once
        live.run(echo, live.Live("mic", "speaker"))
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UserError, match="need sounddevice: pip install sounddevice"):
        live.run(echo, live.Live("mic", "speaker"))
