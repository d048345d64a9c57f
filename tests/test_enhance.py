"""finallyse enhance and finallyse.load: windows without seams, any recording, nothing clipped or half-written."""

import errno
import fcntl
import io
import itertools
import os
import resource
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import finallyse
from finallyse.audio.blocks import BlockReader
from finallyse.audio.mel import LogMel
from finallyse.audio.resample import resample
from finallyse.errors import UserError
from finallyse.inference import renderer as renderer_module
from finallyse.inference.command import run
from finallyse.inference.enhancer import Enhancer
from finallyse.inference.files import FORMATS, Options, _Spool, _write, enhance_file, plan_outputs
from finallyse.inference.pack import pack
from finallyse.inference.validation import enhance_item
from finallyse.inference.windows import join, length_at, plan
from finallyse.models.base import Generator
from finallyse.models.checkpoint import load_checkpoint, save_checkpoint
from finallyse.models.wavlm import WavLM
from support.networks import NARROW_HIFI, NARROW_VOCODER, SMALL, SMALL_WAVLM, make_network, write_wavlm
from support.speech import read_speech

torch.set_num_threads(1)  # networks this small are slower with more, much slower on a busy machine

FINALLY = NARROW_HIFI | {
    "use_upsamplewaveunet": True,
    "upsamplewaveunet_block_widths": [4, 4, 4, 4, 8],
    "upsamplewaveunet_block_depth": 1,
    "upsamplewaveunet_upsampler_features": 8,
    "ssl_dim": 16,
}
NETWORKS = {
    "vocoder": ("hifigan_gen", NARROW_VOCODER),
    "denoise": ("a2a_hifi++_gen", NARROW_HIFI),
    "mask": ("complex_mask_gen", SMALL["complex_mask_gen"]),
    "finally": ("finally_gen", FINALLY),
}


def build(name):
    network, args = NETWORKS[name]
    return make_network(network, **args).eval()


@pytest.fixture(scope="module")
def wavlm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavlm") / "small"
    write_wavlm(folder, **SMALL_WAVLM | {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32})
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, wavlm_folder):
    """Checkpoints of small networks with random weights, by name."""
    folder = tmp_path_factory.mktemp("results")
    paths = {}
    for name, (network, args) in NETWORKS.items():
        paths[name] = folder / f"{name}.ckpt"
        config = {
            "exp": {"results": "results"},
            "generator": {"name": network, "args": args},
            "wavlm": str(wavlm_folder) if name == "finally" else None,
        }
        state = build(name).state_dict()
        save_checkpoint(paths[name], network=name, config=config, step=1, generator=state, discriminators={})
    return paths


@pytest.fixture(scope="module")
def minute():
    """A minute and a bit of speech at 16 kHz."""
    return read_speech(16000, 60 + 777 / 16000)


def decibels(difference, signal):
    power = [np.mean(np.square(wav, dtype=np.float64)) for wav in (difference, signal)]
    return 10 * np.log10(power[0] / power[1] + 1e-30)


@torch.inference_mode()
def in_one_piece(generator, wav, wavlm=None):
    """The generator's output for wav [T] with zeros up to a multiple of its alignment; features of WavLM for wav."""
    padded = torch.from_numpy(np.pad(wav, (0, -len(wav) % generator.alignment)))[None, None]
    given = (padded,)
    if wavlm:
        features = wavlm.last_hidden_state(torch.from_numpy(wav.copy())[None])
        missing = (padded.shape[-1] - wavlm.receptive_field) // wavlm.hop + 1 - features.shape[-1]
        given += (torch.nn.functional.pad(features, (0, missing), mode="replicate"),)
    factor = generator.output_rate // generator.input_rate
    return generator(*given)[0, 0, : len(wav) * factor].numpy()


# --- windows ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 5000),
    grid=st.sampled_from([1, 8, 20]),
    size=st.integers(60, 700),
    context=st.integers(4, 19),
    fade=st.integers(0, 4).map(lambda n: 2 * n),
)
def test_windows_cover_the_signal_on_the_grid_and_join_to_it(length, grid, size, context, fade):
    windows = plan(length, size, context, grid)
    assert windows[0][0] == 0 and windows[-1][1] == length
    for start, stop in windows:
        assert start % grid == 0 and (stop - start) % grid == length % grid
        assert stop - start <= size + grid
    if len(windows) > 1:  # as many as it takes, as long as it takes
        seen = windows[0][1] * len(windows)
        assert seen < length + len(windows) * (2 * context + 3 * grid)
    for left, right in itertools.pairwise(windows):
        assert left[0] < right[0] and left[1] - right[0] >= 2 * context
    signal = np.arange(length, dtype=np.float64)[None]
    joined = np.concatenate(list(join(windows, [signal[:, a:b] for a, b in windows], fade)), axis=1)
    np.testing.assert_allclose(joined, signal, rtol=1e-12)


def test_join_fades_where_windows_disagree():
    windows = plan(1000, 500, 50, 1)
    joined = np.concatenate(list(join(windows, [np.full(b - a, float(i)) for i, (a, b) in enumerate(windows)], 40)))
    assert len(joined) == 1000 and np.abs(np.diff(joined)).max() <= 1 / 40 + 1e-9
    with pytest.raises(ValueError, match="leave nothing"):
        plan(1000, 100, 50, 1)


# --- networks in windows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 777, 1024 + 5, 2048, 3000])
def test_windows_equal_one_piece(minute, cut):
    wav = minute[: len(minute) - cut]
    whole = in_one_piece(build("denoise"), wav)
    windowed = Enhancer(build("denoise"), device="cpu", window_s=6).enhance(wav, 16000, 16000)
    assert windowed.shape == whole.shape
    difference = windowed - whole
    assert decibels(difference, whole) < -100
    blocks = len(whole) // 4096 * 4096  # no block stands out: seams are inaudible
    loudest = np.square(difference[:blocks]).reshape(-1, 4096).mean(1).max()
    assert 10 * np.log10(loudest / np.square(whole).mean()) < -80


def test_vocoder_makes_speech_anew_from_its_mel(minute):
    with torch.inference_mode():
        padded = np.pad(minute, (0, -len(minute) % 256))
        whole = build("vocoder")(LogMel()(torch.from_numpy(padded)[None]))[0, 0].numpy()[: len(minute)]
    windowed = Enhancer(build("vocoder"), device="cpu").enhance(minute, 16000, 16000)
    assert decibels(windowed - whole, whole) < -100


def test_wavlm_in_windows(minute, wavlm_folder, monkeypatch):
    generator, wavlm = build("finally"), WavLM(wavlm_folder)
    wav = torch.from_numpy(minute)[None]
    with torch.inference_mode():
        features = wavlm.last_hidden_state(wav)
    whole = in_one_piece(generator, minute, wavlm)
    enhancer = Enhancer(generator, wavlm, device="cpu", window_s=6)
    assert enhancer.grid % 320 == 0
    windowed = enhancer.enhance(minute, 16000, 48000)
    assert windowed.shape == whole.shape == (3 * len(minute),)
    assert decibels(windowed - whole, whole) < -50
    # With WavLM over the whole signal what is left is which frame is nearest
    monkeypatch.setattr(renderer_module, "WAVLM_WINDOW_S", 1000.0)
    stream = renderer_module.Features(enhancer, lambda a, b: minute[None, a:b], len(minute), 1)
    for start, stop in ((0, 96000), (20480, 116480), (40960 * 20, len(minute))):
        part = stream.of(start, stop)[0]
        expected = features[0, :, start // 320 : start // 320 + part.shape[-1]]
        assert part.shape[-1] == (stop - start - 400) // 320 + 1
        np.testing.assert_allclose(part, expected, atol=1e-5, rtol=1e-4)


def test_wavlm_windows_share_at_least_ten_seconds(minute, wavlm_folder):
    wavlm = WavLM(wavlm_folder)
    with torch.inference_mode():
        features = wavlm.last_hidden_state(torch.from_numpy(minute)[None])[0].numpy()
    enhancer = Enhancer(build("finally"), wavlm, device="cpu")
    windows = []
    compute = renderer_module.Features._compute

    def seen(self, window):
        windows.append(window)
        return compute(self, window)

    renderer_module.Features._compute = seen
    try:
        stream = renderer_module.Features(enhancer, lambda a, b: minute[None, a:b], len(minute), 1)
        joined = stream.of(0, len(minute))[0]
    finally:
        renderer_module.Features._compute = compute
    assert len(windows) == 2 and all(stop - start >= 25 * 16000 for start, stop in windows)
    assert windows[0][1] - windows[1][0] >= 10 * 16000
    assert joined.shape == features.shape and decibels(joined - features, features) < -20


@pytest.mark.parametrize("batch", [1, 3])
def test_channels_are_enhanced_one_by_one_in_any_batch(minute, batch, checkpoints):
    model = finallyse.load(checkpoints["denoise"], device="cpu", window_s=5, batch=batch)
    wav = np.stack([minute[:200_000], minute[300_000:500_000]])
    together = model.enhance(wav, 16000, 48000)
    assert together.shape == (2, 600_000)
    for channel, enhanced in zip(wav, together, strict=True):
        np.testing.assert_allclose(model.enhance(channel, 16000, 48000), enhanced, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 2, 319, 1023, 1025, 4097])
@pytest.mark.parametrize("name", NETWORKS)
def test_short_signals(checkpoints, name, samples):
    model = finallyse.load(checkpoints[name], device="cpu")
    for rate, to_rate in ((8000, None), (44100, None), (8000, 48000)):
        made = model.enhance(np.full(samples, 0.1, np.float32), rate, to_rate)
        length = length_at(samples, rate, to_rate or max(rate, model.output_rate))
        assert made.shape == (length,) and np.isfinite(made).all()


def test_signals_of_any_type(checkpoints, minute):
    model = finallyse.load(checkpoints["denoise"], device="cpu")
    expected = model.enhance(minute[:16000], 16000)
    for wav in (
        np.rint(minute[:16000] * 2.0**31).astype(np.int32),
        np.rint(minute[:16000] * 2.0**15).astype(np.int16),
        minute[:16000].astype(np.float64),
        torch.from_numpy(minute[:16000].copy()).requires_grad_(),
        list(map(float, minute[:16000])),
    ):
        np.testing.assert_allclose(model.enhance(wav, 16000.0, rate=np.int64(16000)), expected, atol=2e-3)
    unsigned = np.rint(minute[:16000] * 128 + 128).astype(np.uint8)
    np.testing.assert_allclose(model.enhance(unsigned, 16000), expected, atol=0.1)


def test_load_says_what_is_wrong(checkpoints, tmp_path, minute):
    model = finallyse.load(checkpoints["denoise"])
    for wav, rate, message in (
        (np.zeros(0), 16000, "at least one sample"),
        (np.zeros((1, 1, 5)), 16000, "must be"),
        (np.array([0.1, np.nan]), 16000, "not finite"),
        (minute[:100], 0, "sample_rate must be a positive whole number of Hz, not 0"),
        (minute[:100], 16000.5, "sample_rate must be a positive whole number"),
        (minute[:100], float("nan"), "sample_rate must be a positive whole number"),
        (np.zeros((16000, 2)), 16000, r"must be \[C, T\], and \[16000, 2\] looks like \[T, C\]: give wav.T"),
        (np.zeros(100, np.int64), 16000, "not int64"),
        (np.zeros(100, complex), 16000, "not complex128"),
    ):
        with pytest.raises(UserError, match=message):
            model.enhance(wav, rate)
    with pytest.raises(UserError, match="rate must be a positive whole number"):
        model.enhance(minute[:100], 16000, 0)
    with pytest.raises(UserError, match="no such checkpoint"):
        finallyse.load(tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"--chunk 1: must be seconds, at least"):
        finallyse.load(checkpoints["denoise"], window_s=1)
    content = torch.load(checkpoints["finally"], weights_only=True)
    content["config"]["wavlm"] = "resources/weights/wavlm-large"
    torch.save(content, tmp_path / "moved.ckpt")
    with pytest.raises(UserError, match=r"needs the WavLM .* not in resources/weights/wavlm-large.*--wavlm"):
        finallyse.load(tmp_path / "moved.ckpt")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="--device=cuda: PyTorch sees no CUDA device"):
            finallyse.load(checkpoints["denoise"], device="cuda")


def test_wavlm_is_found_beside_the_results(checkpoints, wavlm_folder, tmp_path, monkeypatch):
    content = torch.load(checkpoints["finally"], weights_only=True)
    content["config"]["wavlm"] = "resources/weights/small"
    (tmp_path / "project" / "results").mkdir(parents=True)
    (tmp_path / "project" / "resources" / "weights").mkdir(parents=True)
    (tmp_path / "project" / "resources" / "weights" / "small").symlink_to(wavlm_folder)
    torch.save(content, tmp_path / "project" / "results" / "x.ckpt")
    monkeypatch.chdir(tmp_path)
    assert finallyse.load("project/results/x.ckpt").wavlm.dim == 16


def test_a_packed_checkpoint_needs_nothing_else(checkpoints, tmp_path, minute):
    content = torch.load(checkpoints["finally"], weights_only=True)
    content["discriminators"] = {"mpd": {"weight": torch.zeros(1000)}}
    torch.save(content, tmp_path / "trained.ckpt")
    packed = tmp_path / "packed.ckpt"
    pack(tmp_path / "trained.ckpt", packed)
    before = finallyse.load(checkpoints["finally"], device="cpu").enhance(minute[:30_000], 16000)
    content = torch.load(packed, weights_only=True)
    content["config"]["wavlm"] = "gone"
    torch.save(content, packed)
    assert content["discriminators"] == {}
    np.testing.assert_array_equal(finallyse.load(packed, device="cpu").enhance(minute[:30_000], 16000), before)
    with pytest.raises(UserError, match="exists; give --force"):
        pack(checkpoints["denoise"], packed)
    pack(packed, tmp_path / "again.ckpt")
    assert (tmp_path / "again.ckpt").stat().st_size == pytest.approx(packed.stat().st_size, rel=0.01)
    pack(checkpoints["denoise"], packed, force=True)
    assert load_checkpoint(packed).network == "denoise" and load_checkpoint(packed).level == {"peak": 0.95}
    content = torch.load(checkpoints["denoise"], weights_only=True)
    torch.save(content | {"level": {"peak": 0.5}}, tmp_path / "trained.ckpt")
    pack(tmp_path / "trained.ckpt", packed, force=True)
    assert load_checkpoint(packed).level == {"peak": 0.5}


def test_bf16_is_close(minute):
    wav = minute[:48000]
    exact = Enhancer(build("denoise"), device="cpu").enhance(wav, 16000, 16000)
    fast = Enhancer(build("denoise"), device="cpu", precision="bf16").enhance(wav, 16000, 16000)
    assert decibels(fast - exact, exact) < -30


def test_import_is_cheap():
    code = "import finallyse, sys; print([m for m in ('torch', 'numpy', 'soundfile') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["denoise", "vocoder"])
def test_the_output_follows_the_level_of_the_input(checkpoints, minute, name):
    wav = minute[:30_000]
    model, unaware = finallyse.load(checkpoints[name], device="cpu"), Enhancer(build(name), device="cpu")
    loud, item = model.enhance(wav, 44100), enhance_item(model, {"input_wav": wav})
    for gain in (0.3, 0.03, 1e-3, 1e-20, 10):
        scaled = np.float32(gain) * wav
        assert decibels(model.enhance(scaled, 44100) / np.float32(gain) - loud, loud) < -100
        assert decibels(enhance_item(model, {"input_wav": scaled}) / np.float32(gain) - item, item) < -100
    quiet = unaware.enhance(0.03 * wav, 44100) / 0.03
    assert decibels(quiet - loud, loud) > -30  # a network that is not given its level does something else


def test_a_network_hears_the_level_that_it_was_trained_at(minute):
    wav = minute[:30_000]
    scaled = wav * np.float32(0.5 / np.abs(wav).max())
    expected = in_one_piece(build("denoise"), scaled) * (np.abs(wav).max() / 0.5)
    enhanced = Enhancer(build("denoise"), device="cpu", level={"peak": 0.5}).enhance(wav, 16000, 16000)
    assert decibels(enhanced - expected, expected) < -100


def test_every_channel_has_one_level_over_all_windows(checkpoints, tmp_path, minute):
    """A long file with rising level and different levels per channel, one silent: the same as in one piece."""
    ramp = minute[: 30 * 16000] * np.geomspace(0.01, 1, 30 * 16000, dtype=np.float32)
    wav = np.stack([ramp, 0.03 * ramp[::-1], 1e-3 * ramp, 0 * ramp])
    sf.write(tmp_path / "in.wav", wav.T, 16000, subtype="FLOAT")
    generator = build("denoise")
    peaks = np.array([*np.abs(wav[:3]).max(axis=1), 0.95], np.float32)[:, None]
    shown = wav * (np.float32(0.95) / peaks)
    whole = np.stack([in_one_piece(generator, channel) for channel in shown]) * (peaks / np.float32(0.95))
    model = finallyse.load(checkpoints["denoise"], device="cpu", window_s=6)
    in_array = model.enhance(wav, 16000, 16000)
    options = Options(rate=16000, subtype="FLOAT")
    enhance_file(model, str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), options)
    in_file = sf.read(tmp_path / "out.wav", dtype="float32")[0].T
    np.testing.assert_array_equal(in_file, in_array)
    for enhanced, expected in zip(in_array, whole, strict=True):
        assert decibels(enhanced - expected, expected) < -100
        second = np.square(enhanced - expected)[: 30 * 16000].reshape(-1, 16000).mean(1)
        assert 10 * np.log10(second.max() / np.square(expected).mean()) < -80  # none stands out, nor does a window


def test_silence_is_left_at_its_level(checkpoints):
    for silence in (np.zeros(8000, np.float32), np.full(8000, 1e-40, np.float32)):
        enhanced = finallyse.load(checkpoints["denoise"], device="cpu").enhance(silence, 16000)
        np.testing.assert_array_equal(enhanced, Enhancer(build("denoise"), device="cpu").enhance(silence, 16000))
        assert np.isfinite(enhanced).all()


def test_finally_hears_levels_as_they_are(checkpoints, minute):
    model = finallyse.load(checkpoints["finally"], device="cpu")
    for gain in (1, 0.03):
        wav = np.float32(gain) * minute[:48_000]
        np.testing.assert_array_equal(model.enhance(wav, 16000), in_one_piece(model.generator, wav, model.wavlm))


def test_an_unknown_level_is_told(checkpoints, tmp_path):
    content = torch.load(checkpoints["denoise"], weights_only=True)
    for level in ({"rms": 0.1}, {"peak": 0.0}):
        torch.save(content | {"level": level}, tmp_path / "x.ckpt")
        with pytest.raises(UserError, match=r"x\.ckpt: trained at the level .*update the package"):
            finallyse.load(tmp_path / "x.ckpt")


# --- recordings -------------------------------------------------------------------------------------------------------


def command(*arguments, **more):
    """`finallyse enhance` in a separate process."""
    code = "from finallyse.cli import main; main()"
    arguments = [sys.executable, "-c", code, "enhance", *map(str, arguments)]
    return subprocess.run(arguments, capture_output=True, **more)


def enhance_all(inputs, output, checkpoint, **changes):
    options = {
        "rate": 48000,
        "suffix": ".wav",
        "subtype": None,
        "force": False,
        "device": "cpu",
        "precision": "fp32",
        "batch": None,
        "window_s": 16.0,
        "wavlm": None,
        "threads": None,
    }
    return run(list(map(str, inputs)), str(output), str(checkpoint), **(options | changes))


def expected_output(checkpoint, wav, rate, to_rate=48000):
    return finallyse.load(checkpoint, device="cpu").enhance(wav, rate, to_rate)


def write_video(path, wav, rate):
    """An MP4 with a moving picture and an AAC sound track."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=10)
        picture.width, picture.height, picture.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream("aac", rate=rate)
        for index in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 40 * index, np.uint8), format="rgb24")
            container.mux(picture.encode(frame))
        frame = av.AudioFrame.from_ndarray(wav.astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate = rate
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        container.mux(picture.encode(None))


def test_recordings_of_all_kinds(checkpoints, tmp_path, minute):
    inputs = tmp_path / "in"
    (inputs / "deep").mkdir(parents=True)
    speech = minute[:40_000]
    left, right = (resample(x, 16000, 44100) for x in (speech, minute[50_000:90_000]))
    sf.write(inputs / "stereo.mp3", np.stack([left, right], 1), 44100)
    sf.write(inputs / "phone.wav", resample(speech, 16000, 8000), 8000, subtype="ULAW")
    sf.write(inputs / "deep" / "film sound.ogg", left, 44100)
    sf.write(inputs / "five.flac", np.stack([speech * gain for gain in (0.1, 0.3, 0.5, 0.7, 0.9)], 1), 16000)
    write_video(inputs / "video.mp4", left, 44100)
    (inputs / "notes.txt").write_text("no recording")
    assert enhance_all([inputs], tmp_path / "out", checkpoints["denoise"]) == 0

    outputs = {
        path.relative_to(tmp_path / "out").as_posix(): sf.read(path) for path in (tmp_path / "out").rglob("*.wav")
    }
    assert set(outputs) == {"stereo.wav", "phone.wav", "deep/film sound.wav", "five.wav", "video.wav"}
    assert all(rate == 48000 for _, rate in outputs.values())
    assert outputs["stereo.wav"][0].shape[1] == 2 and outputs["five.wav"][0].shape[1] == 5
    for name, source, rate in (
        ("stereo", "stereo.mp3", 44100),
        ("phone", "phone.wav", 8000),
        ("five", "five.flac", 16000),
    ):
        wav = sf.read(inputs / source, dtype="float32", always_2d=True)[0].T
        expected = expected_output(checkpoints["denoise"], wav, rate)
        got = outputs[f"{name}.wav"][0].reshape(expected.shape[1], -1).T
        np.testing.assert_allclose(got, expected, atol=2e-3)  # PCM-16, resampled in blocks
    assert len(outputs["phone.wav"][0]) == 120_000
    assert abs(len(outputs["video.wav"][0]) - 120_000) < 6000  # AAC comes in frames
    assert not list((tmp_path / "out").rglob(".*"))


def test_half_an_hour_in_constant_memory(checkpoints, tmp_path, minute):
    def peak(minutes):
        wav = np.tile(minute[: 60 * 16000], minutes)
        sf.write(tmp_path / f"{minutes}.wav", resample(wav, 16000, 8000), 8000)
        code = (
            "import resource, sys; from finallyse.cli import main\n"
            "try: main()\n"
            "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        arguments = ["enhance", f"{minutes}.wav", f"out{minutes}.wav", "--checkpoint", checkpoints["vocoder"]]
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert f"enhanced 1 of 1 files, {minutes}:00 of audio" in done.stderr
        assert sf.info(tmp_path / f"out{minutes}.wav").frames == minutes * 60 * 16000
        return int(done.stdout.split()[-1])

    short, long = peak(1), peak(30)
    assert long < 1.3 * short


def test_stdin_to_stdout(checkpoints, minute, tmp_path):
    buffer = io.BytesIO()
    sf.write(buffer, minute[:16000], 16000, format="WAV")
    done = command("-", "-", "--checkpoint", checkpoints["vocoder"], "--subtype", "FLOAT", input=buffer.getvalue())
    assert done.returncode == 0, done.stderr.decode()
    wav, rate = sf.read(io.BytesIO(done.stdout))
    assert rate == 16000
    expected = expected_output(checkpoints["vocoder"], np.rint(minute[:16000] * 32768) / 32768, 16000, 16000)
    np.testing.assert_allclose(wav, expected, atol=1e-3)
    piped = bytearray(buffer.getvalue())
    piped[4:8] = piped[40:44] = b"\xff" * 4  # a header written before its length was known
    (tmp_path / "piped.wav").write_bytes(piped)
    with BlockReader(tmp_path / "piped.wav") as reader:
        assert sum(block.shape[1] for block in reader) == 16000
    for data, message in ((b"", b"stdin: the file is empty"), (b"not audio" * 99, b"stdin: cannot be decoded")):
        done = command("-", "-", "--checkpoint", checkpoints["vocoder"], input=data)
        assert (done.returncode, done.stdout) == (1, b"") and message in done.stderr


def test_a_bad_file_does_not_stop_the_others(checkpoints, tmp_path, minute, capfd):
    inputs = tmp_path / "in"
    inputs.mkdir()
    for name in ("a", "c", "e"):
        sf.write(inputs / f"{name}.wav", minute[:8000], 16000)
    (inputs / "b.mp3").write_bytes(os.urandom(3000))
    sf.write(inputs / "d.wav", minute[:8000], 16000)
    cut_short = (inputs / "d.wav").read_bytes()[:9000]
    (inputs / "d.wav").write_bytes(cut_short)
    sf.write(inputs / "f.wav", np.zeros(0), 16000)
    assert enhance_all([inputs], tmp_path / "out", checkpoints["vocoder"]) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.wav", "c.wav", "e.wav"]
    report = capfd.readouterr().err
    assert "enhanced 3 of 6 files" in report and "real-time factor" in report
    listed = report.split("3 of 6 files were not enhanced:")[1]
    for name, why in (("b.mp3", "cannot be decoded"), ("d.wav", "cut short"), ("f.wav", "no samples")):
        assert f"{inputs / name}: " in listed and why in listed


def test_nothing_is_overwritten_without_force(checkpoints, tmp_path, minute, capfd):
    source, target = tmp_path / "a.wav", tmp_path / "b.wav"
    sf.write(source, minute[:8000], 16000)
    target.write_text("mine")
    assert enhance_all([source], target, checkpoints["vocoder"]) == 1
    assert target.read_text() == "mine" and "exists; give --force" in capfd.readouterr().err
    assert enhance_all([source], target, checkpoints["vocoder"], force=True) == 0
    assert sf.info(target).frames == 24_000
    with pytest.raises(UserError, match="overwrite itself"):
        enhance_all([source], source, checkpoints["vocoder"], force=True)


class Loud(Generator):
    """A network whose output exceeds full scale at one place."""

    input_kind, alignment = "wav", 1

    def forward(self, wav):
        return 0.5 * wav + 1.25 * (torch.arange(wav.shape[-1]) == 4000)


@pytest.mark.parametrize(
    ("suffix", "subtype"), [(".wav", "PCM_16"), (".flac", "PCM_24"), (".wav", "FLOAT"), (".mp3", None)]
)
def test_nothing_is_clipped(tmp_path, minute, suffix, subtype):
    sf.write(tmp_path / "in.wav", minute[:8000], 16000)
    target = tmp_path / f"out{suffix}"
    enhancer = Enhancer(Loud(), device="cpu")
    done = enhance_file(enhancer, str(tmp_path / "in.wav"), str(target), Options(rate=16000, subtype=subtype))
    wav, rate = sf.read(target)
    expected = 0.5 * sf.read(tmp_path / "in.wav")[0]
    expected[4000] += 1.25
    if subtype == "FLOAT":
        assert done.gain == 1 and np.abs(wav).max() > 1.1
    else:
        assert done.gain == pytest.approx(1 / np.abs(expected).max(), rel=1e-3)
    assert rate == 16000
    if suffix != ".mp3":
        np.testing.assert_allclose(wav, expected * done.gain, atol=1e-4)


def test_a_wav_beyond_its_limit_is_an_rf64(tmp_path, minute, monkeypatch):
    monkeypatch.setattr("finallyse.inference.files.WAV_LIMIT", 15_999)
    sf.write(tmp_path / "in.wav", minute[:8000], 16000)
    enhance_file(
        Enhancer(Loud(), device="cpu"), str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), Options(rate=16000)
    )
    assert sf.info(tmp_path / "out.wav").format == "RF64" and sf.info(tmp_path / "out.wav").frames == 8000


class Broken(Generator):
    """A network that fails midway."""

    input_kind, alignment = "wav", 1

    def forward(self, wav):
        return wav * float("nan")


def test_outputs_are_whole_or_not_there(tmp_path, minute):
    sf.write(tmp_path / "in.wav", minute[:8000], 16000)
    with pytest.raises(UserError, match="not finite"):
        enhance_file(Enhancer(Broken(), device="cpu"), str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), Options())
    assert [path.name for path in tmp_path.iterdir()] == ["in.wav"]


def test_what_killed_runs_have_left_is_removed_and_nothing_that_is_in_use(tmp_path, minute):
    sf.write(tmp_path / "in.wav", minute[:8000], 16000)
    used, killed, early, new = (tmp_path / f".enhance-{name}" for name in ("used", "killed", "early", "new"))
    for folder in (used, killed, early, new):
        folder.mkdir()
    for folder in (used, killed):
        (folder / "lock").touch()
        (folder / "input.f32").touch()
    os.utime(early, (1, 1))  # killed before its lock was there, unlike one that has just begun
    with (used / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        enhance_file(Enhancer(Loud(), device="cpu"), str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), Options())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".enhance-new", ".enhance-used", "in.wav", "out.wav"]


@pytest.mark.parametrize("links", [True, False])
def test_of_runs_at_once_the_first_one_makes_the_output(tmp_path, minute, monkeypatch, links):
    sf.write(tmp_path / "in.wav", minute[:8000], 16000)
    source, target = str(tmp_path / "in.wav"), tmp_path / "out.wav"

    class Other(Generator):
        """Another run writes the output while this network works."""

        input_kind, alignment = "wav", 1

        def forward(self, wav):
            target.write_text("of the other run")
            return wav

    if not links:

        def refuse(*_arguments):
            raise OSError(errno.EPERM, "no links here")

        monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(UserError, match=r"out\.wav: exists, since another run has just made it"):
        enhance_file(Enhancer(Other(), device="cpu"), source, str(target), Options())
    assert target.read_text() == "of the other run"
    enhance_file(Enhancer(Other(), device="cpu"), source, str(target), Options(force=True))
    assert sf.info(target).frames == 8000
    target.unlink()
    enhance_file(Enhancer(Loud(), device="cpu"), source, str(target), Options())
    assert sf.info(target).frames == 8000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.wav", "out.wav"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_full_disk_is_told_as_such(tmp_path, suffix):
    """libsndfile says no more than "System error."."""
    made = _Spool(tmp_path / "spool", 1)
    made.append(np.random.default_rng(0).uniform(-0.5, 0.5, (1, 48000)).astype(np.float32))
    container, subtype = FORMATS[suffix]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # as near to a full disk as a test comes
    try:
        with pytest.raises(OSError, match="File too large"):
            _write(made, tmp_path / f"out{suffix}", 16000, container, subtype)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_which_files_go_where(tmp_path):
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.wav", "sub/b.m4a", ".hidden.wav", "readme.md"):
        (folder / name).write_bytes(b"x")

    def names(inputs, output, **options):
        pairs = plan_outputs([str(i) for i in inputs], str(output), Options(**options))
        return [(os.path.relpath(a, tmp_path), os.path.relpath(b, tmp_path)) for a, b in pairs]

    out = tmp_path / "out"
    assert names([folder], out, suffix=".flac") == [("in/a.wav", "out/a.flac"), ("in/sub/b.m4a", "out/sub/b.flac")]
    assert names([folder / "a.wav"], tmp_path / "x.flac") == [("in/a.wav", "x.flac")]
    assert names([folder / "a.wav"], out) == [("in/a.wav", "out/a.wav")]
    assert names([folder / "a.wav", folder / "sub"], out) == [("in/a.wav", "out/a.wav"), ("in/sub/b.m4a", "out/b.wav")]
    (folder / "enhanced").mkdir()
    (folder / "enhanced" / "a.wav").write_bytes(b"x")
    assert ("in/enhanced/a.wav", "in/enhanced/enhanced/a.wav") not in names([folder], folder / "enhanced")
    (folder / "a.flac").write_bytes(b"x")
    (folder / "2024.05 talk").write_bytes(b"RIFF    WAVE")
    shutil.rmtree(folder / "enhanced")
    assert names([folder], out) == [
        ("in/2024.05 talk", "out/2024.05 talk.wav"),
        ("in/a.flac", "out/a.flac.wav"),
        ("in/a.wav", "out/a.wav.wav"),
        ("in/sub/b.m4a", "out/sub/b.wav"),
    ]
    (folder / "enhanced").mkdir()
    (folder / "enhanced" / "a.wav").write_bytes(b"x")
    for inputs, output, message in (
        ([folder / "a.wav", folder / "enhanced" / "a.wav"], out, "would both become"),
        ([tmp_path / "nothing"], out, "no such file or folder"),
        (["-", folder], out, "must be the only input"),
        ([folder], "-", "takes one input"),
        ([folder], folder / "a.wav", r"a\.wav: several inputs need a folder"),
        ([folder / "a.wav"], tmp_path / "x.m4a", r"x\.m4a: \.m4a cannot be written; choose .*x\.m4a/"),
    ):
        with pytest.raises(UserError, match=message):
            names(inputs, output)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="contains no recordings"):
        names([tmp_path / "empty"], out)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rate": 0}, "--rate 0"),
        ({"suffix": ".aac"}, "--format aac"),
        ({"subtype": "PCM_8"}, "--subtype PCM_8"),
        ({"device": "tpu"}, "--device tpu"),
        ({"precision": "int8"}, "--precision int8"),
    ],
)
def test_options_are_checked_first(option, message, tmp_path):
    with pytest.raises(UserError, match=message):
        enhance_all([tmp_path / "nothing.wav"], tmp_path / "out.wav", tmp_path / "nothing.ckpt", **option)


def test_one_line_errors(tmp_path, checkpoints, minute):
    sf.write(tmp_path / "in.wav", minute[:8000], 16000)
    (tmp_path / "other.ckpt").write_bytes(b"PK\x03\x04 nothing")
    done = command(tmp_path / "in.wav", tmp_path / "out.wav", "--checkpoint", tmp_path / "other.ckpt", text=True)
    assert (
        done.returncode == 2
        and done.stderr.startswith(f"error: {tmp_path}/other.ckpt: ")
        and done.stderr.count("\n") == 1
    )
    content = torch.load(checkpoints["vocoder"], weights_only=True)
    torch.save(content | {"format_version": 99}, tmp_path / "newer.ckpt")
    with pytest.raises(UserError, match="update the package"):
        enhance_all([tmp_path / "in.wav"], tmp_path / "out.wav", tmp_path / "newer.ckpt")
    with pytest.raises(UserError, match="allows 2 channels"):
        sf.write(tmp_path / "three.wav", np.zeros((100, 3)) + 0.1, 16000)
        options = Options(suffix=".mp3")
        model = Enhancer.from_checkpoint(checkpoints["vocoder"], device="cpu")
        enhance_file(model, str(tmp_path / "three.wav"), str(tmp_path / "three.mp3"), options)
    assert load_checkpoint(checkpoints["vocoder"]).network == "vocoder"
