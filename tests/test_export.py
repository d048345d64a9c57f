"""finallyse export: ONNX graphs that give what PyTorch gives, at any length, and run where PyTorch is not installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile as sf
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import finallyse
from finallyse.audio.mel import LogMel
from finallyse.audio.stft import istft, magnitude, reflect_pad, stft
from finallyse.cli import main
from finallyse.errors import UserError
from finallyse.export import command
from finallyse.export.check import speech_like
from finallyse.export.command import export
from finallyse.export.transforms import ExportedLogMel, ExportedMaskNet, factored, natural, reflect
from finallyse.inference.enhancer import Enhancer
from finallyse.inference.onnx_enhancer import OnnxEnhancer
from finallyse.models import models_registry
from finallyse.models.base import Generator
from finallyse.models.checkpoint import save_checkpoint
from finallyse.models.hifipp import SpectralMaskNet
from finallyse.pretrained import checkpoint_file
from support import ROOT
from support.networks import SMALL, UPSAMPLING, make_network, make_wavlm
from support.speech import read_speech

torch.set_num_threads(1)

EXAMPLE = ROOT / "resources" / "demo" / "example" / "noisy.flac"
GROUP_NORM = {"feat_extract_norm": "group", "do_stable_layer_norm": False}  # as WavLM-base
NETWORKS = {
    **{name: (name, SMALL[name]) for name in SMALL if name.endswith("_gen")},
    "finally_48k": ("finally_gen", SMALL["finally_gen"] | UPSAMPLING),
    "bare": ("a2a_hifi++_gen", SMALL["a2a_hifi++_gen"] | {"use_spectralmasknet": False, "waveunet_input": "waveform"}),
    "short_windows": ("complex_mask_gen", SMALL["complex_mask_gen"] | {"n_fft": 384}),
    "compressed": ("a2a_hifi++_gen", SMALL["a2a_hifi++_gen"] | {"spectralmasknet_compression": 0.3}),
}


def write_checkpoint(folder, name, wavlm=None, **more):
    network, args = NETWORKS[name]
    generator = make_network(network, **args | more)
    config = {"generator": {"name": network, "args": args | more}, "wavlm": str(wavlm) if wavlm else None}
    path = folder / f"{name}.ckpt"
    state = generator.state_dict()
    save_checkpoint(path, network=name, config=config, step=7, generator=state, discriminators={})
    return path


@pytest.fixture(scope="module")
def wavlm_folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wavlm")
    make_wavlm(folder / "large")
    make_wavlm(folder / "base", normalize=False, **GROUP_NORM)
    return folder


class Pairs(dict):
    """Small networks as (checkpoint, export), made when they are first asked for."""

    def __init__(self, folder, wavlm_folders):
        super().__init__()
        self.folder, self.wavlm_folders = folder, wavlm_folders

    def __missing__(self, name):
        takes_wavlm = NETWORKS[name][0] == "finally_gen"
        wavlm = self.wavlm_folders / ("large" if name == "finally_48k" else "base") if takes_wavlm else None
        self[name] = write_checkpoint(self.folder, name, wavlm), self.folder / f"{name}.onnx"
        export(*self[name], say=lambda line: None)
        return self[name]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory, wavlm_folders):
    return Pairs(tmp_path_factory.mktemp("exported"), wavlm_folders)


def decibels(difference, signal):
    power = [np.mean(np.square(wav, dtype=np.float64)) for wav in (difference, signal)]
    return 10 * np.log10(power[0] / power[1] + 1e-30)


def test_every_generator_is_tested():
    generators = {name for name, network in models_registry.items() if issubclass(network, Generator)}
    assert {network for network, _ in NETWORKS.values()} == generators


# --- transforms -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(hops=st.integers(1, 40), rows=st.integers(1, 3), by=st.integers(0, 510))
def test_transforms_are_those_of_the_networks(hops, rows, by):
    wav = torch.from_numpy(np.stack([speech_like(256 * hops + row, 16000)[: 256 * hops] for row in range(rows)]))
    torch.testing.assert_close(reflect(wav, by), reflect_pad(wav, by, by))
    mel = LogMel()
    torch.testing.assert_close(ExportedLogMel(mel)(wav), mel(wav), atol=2e-4, rtol=1e-4)
    if hops < 3:  # the networks that have a mask are aligned to more
        return
    net = SpectralMaskNet(rows, [4, 4], 1, "weight").eval()
    exported = ExportedMaskNet(net)
    spectra = exported.analysis(torch.nn.functional.pad(wav, (512, 512), mode="reflect"))
    ours = magnitude(stft(wav, 1024, 256, center=True))
    found = (spectra.square().sum(3) + 1e-9).sqrt().flatten(1, 2)
    torch.testing.assert_close(found[:, natural()], ours, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found, ours[:, factored()], atol=1e-4, rtol=1e-4)
    exported.net.mask = torch.ones_like  # passes everything through: the inverse gives the signal back
    with torch.no_grad():
        torch.testing.assert_close(exported(wav[None])[0], wav, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(istft(stft(wav, 1024, 256, center=True), 1024, 256, 256 * hops), wav, atol=2e-6, rtol=1)


def test_the_mask_network_is_the_same():
    torch.manual_seed(0)
    net = SpectralMaskNet(4, [4, 6, 8], 1, "weight", compression=0.3).eval()
    x = torch.randn(2, 4, 4096)
    with torch.no_grad():
        expected, found = net(x), ExportedMaskNet(net)(x)
    assert decibels((found - expected).numpy(), expected.numpy()) < -110


# --- graphs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_as_pytorch_at_any_length(pairs, name):
    checkpoint, exported = pairs[name]
    ours = Enhancer.from_checkpoint(checkpoint, device="cpu", window_s=5)
    theirs = OnnxEnhancer(exported, threads=1, window_s=5)
    attributes = ("input_rate", "output_rate", "alignment", "context", "grid", "window", "factor", "peak")
    assert all(getattr(ours, name) == getattr(theirs, name) for name in attributes)
    speech = read_speech(16000, 14)

    @settings(max_examples=8, deadline=None)
    @given(samples=st.one_of(st.integers(1, 5000), st.integers(5000, 40000)), channels=st.integers(1, 2))
    def check(samples, channels):
        wav = np.stack([speech[c * 30000 :][:samples] for c in range(channels)]) + np.float32(1e-4)
        expected, found = ours.enhance(wav, 16000), theirs.enhance(wav, 16000)
        assert found.dtype == np.float32 and found.shape == expected.shape
        assert decibels(found - expected, expected) < -80

    check()
    expected, found = ours.enhance(speech, 16000), theirs.enhance(speech, 16000)  # in windows
    assert decibels(found - expected, expected) < -80


def test_the_graphs_are_as_described(pairs):
    for name in NETWORKS:
        checkpoint, exported = pairs[name]
        graph = onnx.load(exported)
        onnx.checker.check_model(graph)
        about = json.loads({entry.key: entry.value for entry in graph.metadata_props}["finallyse"])
        session = onnxruntime.InferenceSession(exported)
        inputs = {node.name: node.shape for node in session.get_inputs()}
        assert inputs.pop("wav") == ["batch", 1, "samples"]
        model = Enhancer.from_checkpoint(checkpoint, device="cpu")
        if model.input_kind == "wav+ssl":
            assert inputs.pop("ssl") == ["batch", 24, "features"]
            beside = exported.with_suffix(".wavlm.onnx")
            sizes = {"dim": 24, "hop": 320, "sees": 400}
            assert about["ssl"].items() >= (sizes | {"file": beside.name}).items()
        else:
            assert about["ssl"] is None
        assert inputs == {} and [node.name for node in session.get_outputs()] == ["enhanced"]
        assert about["network"] == NETWORKS[name][0] and about["step"] == 7 and about["precision"] == "fp32"
        assert graph.opset_import[0].version == about["opset"] == 18
        size = about["alignment"]
        assert size == model.generator.alignment
        given = {"wav": np.zeros((3, 1, 2 * size), np.float32)}
        if about["ssl"]:
            given["ssl"] = np.zeros((3, 24, 2), np.float32)
        (out,) = session.run(None, given)
        assert out.shape == (3, 1, 2 * size * about["output_rate"] // about["input_rate"])


@pytest.mark.parametrize("folder", ["large", "base"])
def test_wavlm_at_any_length(pairs, folder):
    name = "finally_48k" if folder == "large" else "finally_gen"
    checkpoint, exported = pairs[name]
    ours, theirs = Enhancer.from_checkpoint(checkpoint, device="cpu"), OnnxEnhancer(exported, threads=1)

    @settings(max_examples=10, deadline=None)
    @given(samples=st.integers(400, 20000), batch=st.integers(1, 2))
    def check(samples, batch):
        wav = np.stack([speech_like(samples, 16000)] * batch)
        expected, found = ours.hidden_state(wav), theirs.hidden_state(wav)
        assert found.shape == expected.shape == (batch, 24, (samples - 400) // 320 + 1)
        assert decibels(found - expected, expected) < -80

    check()


@pytest.mark.parametrize(("precision", "worst", "largest"), [("fp16", -60, 0.62), ("int8", -35, 0.52)])
def test_shorter_weights(precision, worst, largest, tmp_path):
    output = tmp_path / "s.onnx"
    lines = []
    export("small", output, precision=precision, say=lines.append)
    assert f"{output}: " in lines[0] and " dB" in lines[0]
    full = tmp_path / "full.onnx"
    export("small", full, say=lines.append)
    assert output.stat().st_size < largest * full.stat().st_size
    model, exact = OnnxEnhancer(output, threads=1), finallyse.load(device="cpu", engine="torch")
    for gain in (1.0, 0.05):
        wav = np.float32(gain) * read_speech(16000, 5)
        expected = exact.enhance(wav, 16000)
        assert decibels(model.enhance(wav, 16000) - expected, expected) < worst


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_shorter_weights_of_the_pair(precision, pairs, tmp_path):
    checkpoint, exact = pairs["finally_48k"]
    export(checkpoint, tmp_path / "f.onnx", precision=precision, say=lambda line: None)
    for suffix in (".onnx", ".wavlm.onnx"):
        assert (tmp_path / f"f{suffix}").stat().st_size < exact.with_suffix(suffix).stat().st_size
    wav = read_speech(16000, 3)
    expected = OnnxEnhancer(exact, threads=1).enhance(wav, 16000)
    found = OnnxEnhancer(tmp_path / "f.onnx", threads=1).enhance(wav, 16000)
    assert decibels(found - expected, expected) < (-45 if precision == "fp16" else -20)


# --- the shipped network and the command ------------------------------------------------------------------------------


def test_the_shipped_graph_is_the_export_of_the_shipped_checkpoint(tmp_path):
    shipped = checkpoint_file("small", "onnx")  # checks its SHA-256
    weights = [path.stat().st_size for path in shipped.parent.iterdir() if path.suffix in (".ckpt", ".onnx")]
    assert sum(weights) < 4_000_000
    export("small", tmp_path / "again.onnx", precision="fp16", say=lambda line: None)
    old, new = (onnx.load(path) for path in (shipped, tmp_path / "again.onnx"))
    old_about, new_about = (json.loads(model.metadata_props[0].value) for model in (old, new))
    assert old_about == new_about | {"package_version": old_about["package_version"]}
    wav = read_speech(16000, 4)
    first, second = (OnnxEnhancer(path, threads=1).enhance(wav, 16000) for path in (shipped, tmp_path / "again.onnx"))
    assert decibels(second - first, first) < -120


@pytest.mark.parametrize("checkpoint", [None, "finally_48k"])
def test_the_command_gives_what_pytorch_gives(checkpoint, pairs, tmp_path):
    given = pairs[checkpoint] if checkpoint else (None, None)
    for engine, file in zip(("torch", "onnx"), given, strict=True):
        words = ["--checkpoint", str(file)] if file else ["--engine", engine]
        with pytest.raises(SystemExit) as done:
            main(["enhance", str(EXAMPLE), str(tmp_path / f"{engine}.wav"), "--subtype", "FLOAT", *words])
        assert not done.value.code
    (expected, rate), (found, found_rate) = (sf.read(tmp_path / f"{engine}.wav") for engine in ("torch", "onnx"))
    assert rate == found_rate and found.shape == expected.shape
    assert decibels(found - expected, expected) < -60


def test_the_level_of_the_training_is_kept(pairs):
    checkpoint, exported = pairs["bare"]
    ours, theirs = (finallyse.load(path, device="cpu", threads=1) for path in (checkpoint, exported))
    assert ours.peak == theirs.peak == 0.95
    wav = read_speech(16000, 1)
    loud, quiet = theirs.enhance(wav, 16000), theirs.enhance(np.float32(0.01) * wav, 16000)
    assert decibels(100 * quiet - loud, loud) < -80


ALLOWED = (
    "numpy",
    "soundfile",
    "_soundfile",
    "soxr",
    "av",
    "onnxruntime",
    "finallyse",
    "cffi",
    "_cffi_backend",
    "typing_extensions",
)
ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in ALLOWED and top not in sys.stdlib_module_names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name not in ALLOWED else real(name, *rest)
from finallyse.cli import main
main(sys.argv[1:])
"""


def alone(*words, cwd):
    """Run the command where only the packages of ALLOWED are installed."""
    code = f"ALLOWED = {ALLOWED!r}\n{ALONE}"
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=cwd, env=env, capture_output=True, text=True
    )


def test_enhances_without_pytorch(tmp_path, pairs):
    (tmp_path / "in").mkdir()
    shutil.copy(EXAMPLE, tmp_path / "in" / "a.flac")
    done = alone("enhance", "in", "out", "--format", "mp3", "--threads", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sf.info(tmp_path / "out" / "a.mp3").duration > 6
    done = alone("enhance", "in/a.flac", "b.wav", "--checkpoint", pairs["finally_48k"][1], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sf.info(tmp_path / "b.wav").samplerate == 48000
    for words, message in (
        (["--engine", "torch"], "the package torch is not installed"),
        (["--checkpoint", pairs["bare"][0]], f"finallyse export {pairs['bare'][0]} {pairs['bare'][1]}"),
    ):
        done = alone("enhance", "in/a.flac", "c.wav", *words, cwd=tmp_path)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_mistakes_of_export(tmp_path, pairs, monkeypatch):
    (tmp_path / "there.onnx").write_bytes(b"mine")
    (tmp_path / "pair.wavlm.onnx").write_bytes(b"mine")
    for name, message in (
        ("x.bin", r"x\.bin: must end in \.onnx"),
        ("x.wavlm.onnx", r"x\.wavlm\.onnx: must end in \.onnx, not in \.wavlm\.onnx"),
        ("there.onnx", r"there\.onnx: exists; give --force"),
        ("pair.onnx", r"pair\.wavlm\.onnx: exists; give --force"),
    ):
        with pytest.raises(UserError, match=message):
            export(pairs["bare"][0], tmp_path / name)
    with pytest.raises(UserError, match=r"smal: no such checkpoint; did you mean 'small'\?"):
        export("smal", tmp_path / "x.onnx")
    folder = tmp_path / "odd"
    folder.mkdir()
    with pytest.raises(UserError, match="cannot be exported with time_padding: power_of_two"):
        export(write_checkpoint(folder, "bare", time_padding="power_of_two"), tmp_path / "x.onnx")
    with pytest.raises(UserError, match="--wavlm DIR"):
        export(write_checkpoint(folder, "finally_gen"), tmp_path / "x.onnx")
    monkeypatch.setitem(command.WORST_DB, "fp32", -1000.0)
    with pytest.raises(UserError, match=r"x\.onnx: not written, since it differs from PyTorch by -1\d\d\.\d dB"):
        export(pairs["bare"][0], tmp_path / "x.onnx")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"the package onnx: pip install 'finallyse\[onnx\]'"):
        export(pairs["bare"][0], tmp_path / "x.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["odd", "pair.wavlm.onnx", "there.onnx"]
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"


def changed(path: Path, to: Path, **about) -> Path:
    """A copy of an export with other values in its description."""
    graph = onnx.load(path)
    now = json.loads(graph.metadata_props[0].value)
    onnx.helper.set_model_props(graph, {"finallyse": json.dumps(now | about)})
    onnx.save(graph, to)
    return to


def test_mistakes_of_use(tmp_path, pairs):
    checkpoint, exported = pairs["bare"]
    new = tmp_path / "new.onnx"
    for about, message in (
        ({"version": 2}, "newer than this one's 1; update the package"),
        ({"alignment": 0}, "impossible values; export it again"),
        ({"level": {"rms": 1}}, "impossible values"),
        ({"input_kind": "wav+ssl"}, "its description is not readable"),
        ({"format": "finallyse WavLM"}, "is the finallyse WavLM"),
    ):
        with pytest.raises(UserError, match=message):
            OnnxEnhancer(changed(exported, new, **about))
    graph = onnx.load(exported)
    del graph.metadata_props[:]
    onnx.save(graph, new)
    with pytest.raises(UserError, match="not a network of this package"):
        OnnxEnhancer(new)
    new.write_bytes(exported.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"new\.onnx: not readable as an ONNX graph"):
        OnnxEnhancer(new)
    with pytest.raises(UserError, match=r"finally_gen\.wavlm\.onnx beside it"):
        OnnxEnhancer(shutil.copy(pairs["finally_gen"][1], tmp_path / "finally_gen.onnx"))
    shutil.copy(pairs["finally_48k"][1].with_suffix(".wavlm.onnx"), tmp_path / "finally_gen.wavlm.onnx")
    with pytest.raises(UserError, match=r"not the WavLM that .* was exported with"):
        OnnxEnhancer(tmp_path / "finally_gen.onnx")
    for options, message in (
        ({"engine": "tensorflow"}, "--engine tensorflow: must be one of auto, torch, onnx"),
        ({"engine": "torch"}, "is for --engine onnx"),
        ({"device": "cuda"}, "--device cuda: not with ONNX Runtime"),
        ({"precision": "bf16"}, "--precision bf16: not with ONNX Runtime"),
        ({"wavlm": "x"}, "--wavlm: not with ONNX Runtime"),
        ({"window_s": 1}, "--chunk 1: must be seconds, at least"),
    ):
        with pytest.raises(UserError, match=message):
            finallyse.load(exported, **options)
    with pytest.raises(UserError, match="for --engine onnx export it first"):
        finallyse.load(checkpoint, engine="onnx")


def test_an_output_that_is_not_finite_is_told(tmp_path):
    network, args = NETWORKS["bare"]
    generator = models_registry[network](**args)
    state = {name: torch.full_like(value, torch.nan) for name, value in generator.state_dict().items()}
    path = tmp_path / "nan.ckpt"
    config = {"generator": {"name": network, "args": args}}
    save_checkpoint(path, network=network, config=config, step=1, generator=state, discriminators={})
    with pytest.raises(UserError, match="the network's output is not finite"):
        export(path, tmp_path / "nan.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["nan.ckpt"]
