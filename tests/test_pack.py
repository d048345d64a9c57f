"""finallyse pack: checkpoints to give away, with a model card, as files of torch.save and of safetensors."""

import csv
import json
import shutil
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import finallyse
from finallyse.cli import main
from finallyse.errors import UserError
from finallyse.hashes import sha256
from finallyse.inference.pack import KEY, pack
from finallyse.models import models_registry
from finallyse.models.checkpoint import load_checkpoint, save_checkpoint
from finallyse.models.tensors import load_tensors, save_safetensors
from finallyse.pretrained import checkpoint_file
from support.networks import NARROW_HIFI, NARROW_VOCODER, SMALL_WAVLM, write_wavlm
from support.speech import read_speech

torch.set_num_threads(1)
CONFIG = {
    "generator": {"name": "hifigan_gen", "args": NARROW_VOCODER},
    "losses": {"generator": {"l1_mel_loss": {"weight": 45}, "adversarial": {"weight": 1}}},
    "data": {
        "train": {
            "name": "mel_dataset",
            "args": {"manifest": ["/home/me/resources/prepared/vctk/16000/train.csv"], "segment": 8192},
        }
    },
}


@pytest.fixture
def trained(tmp_path):
    """A checkpoint in a folder of results with scores."""
    results = tmp_path / "results"
    torch.manual_seed(0)
    state = models_registry["hifigan_gen"](**NARROW_VOCODER).state_dict()
    extra = {"mpd": {"weight": torch.zeros(100_000)}}
    values = {"network": "hifigan", "config": CONFIG, "step": 1200, "generator": state, "discriminators": extra}
    save_checkpoint(results / "hifigan.ckpt", **values, devices={"cpu": 1200})
    return results / "hifigan.ckpt"


def write_scores(results):
    (results / "metrics").mkdir()
    with (results / "metrics" / "hifigan.summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["metric", "mean", "ci95", "n", "noisy_mean", "noisy_ci95"])
        writer.writerow(["wb_pesq", "2.345678", "0.1", "30", "1.5", "0.2"])
        writer.writerow(["estoi", "", "", "0", "", ""])
    (results / "state" / "hifigan").mkdir(parents=True)
    lines = "step,stoi,items,seconds\n600,0.7,24,1.5\n1200,0.8125,24,1.5\n"
    (results / "state" / "hifigan" / "validation.csv").write_text(lines)


@pytest.mark.parametrize("name", ["packed.ckpt", "packed.safetensors"])
def test_what_was_written_is_told(trained, tmp_path, name, capsys):
    output = tmp_path / "out" / name
    with pytest.raises(SystemExit) as done:
        main(["pack", str(trained), str(output)])
    assert not done.value.code
    told = capsys.readouterr().out
    card = output.with_name("packed.md")
    parameters = sum(p.numel() for p in finallyse.load(output, device="cpu").generator.parameters())
    for part in (str(output), "hifigan_gen, step 1200", "16000 Hz in", f"{parameters:,}", str(card), sha256(output)):
        assert part in told
    assert {path.name for path in output.parent.iterdir()} == {name, "packed.md"}
    loaded = load_checkpoint(output)
    assert loaded.card == card.read_text() and loaded.discriminators == {} and loaded.level == {"peak": 0.95}
    assert loaded.devices == {"cpu": 1200} and loaded.config == CONFIG
    wav = np.random.default_rng(0).standard_normal(5000) * 0.1
    before = finallyse.load(trained, device="cpu").enhance(wav, 16000)
    np.testing.assert_array_equal(finallyse.load(output, device="cpu").enhance(wav, 16000), before)


def test_the_card_says_what_is_recorded(trained, tmp_path):
    pack(trained, tmp_path / "a.ckpt")
    card = (tmp_path / "a.md").read_text()
    for part in (
        "# hifigan",
        "`hifigan_gen` (arXiv 2010.05646)",
        "a peak of 0.95",
        "1,200 on cpu",
        "vctk",
        "l1_mel_loss",
    ):
        assert part in card, part
    assert "Not measured" in card and "/home/me" not in card.partition("## Configuration")[0]
    write_scores(trained.parent)
    pack(trained, tmp_path / "b.ckpt")
    card = (tmp_path / "b.md").read_text()
    assert "| wb_pesq | 2.346 ± 0.100 | 1.500 ± 0.200 | 30 |" in card and "| estoi" not in card
    assert "Validation after step 1200:" in card and "| stoi | 0.812 |" in card and "0.700" not in card
    assert "Not measured" not in card
    (tmp_path / "own.txt").write_text("# mine, ähnlich")
    pack(tmp_path / "b.ckpt", tmp_path / "c.ckpt")
    assert (tmp_path / "c.md").read_text() == card  # that of the checkpoint is kept
    pack(trained, tmp_path / "d.ckpt", card=tmp_path / "own.txt")
    assert load_checkpoint(tmp_path / "d.ckpt").card == (tmp_path / "d.md").read_text() == "# mine, ähnlich"


def test_nothing_is_overwritten_or_half_written(trained, tmp_path):
    (tmp_path / "a.md").write_text("notes")
    with pytest.raises(UserError, match=r"a\.md: exists; give --force"):
        pack(trained, tmp_path / "a.ckpt")
    assert not (tmp_path / "a.ckpt").exists() and (tmp_path / "a.md").read_text() == "notes"
    with pytest.raises(UserError, match="name the checkpoint"):
        pack(trained, tmp_path / "b.md")
    (tmp_path / "card.bin").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"card\.bin: a model card is text in UTF-8"):
        pack(trained, tmp_path / "b.ckpt", card=tmp_path / "card.bin")
    with pytest.raises(UserError, match="no such checkpoint"):
        pack(tmp_path / "none.ckpt", tmp_path / "b.ckpt")
    pack(trained, tmp_path / "a.ckpt", force=True)
    assert "notes" not in (tmp_path / "a.md").read_text()


def test_wavlm_in_a_safetensors_file(tmp_path):
    wavlm = SMALL_WAVLM | {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    write_wavlm(tmp_path / "wavlm", **wavlm)
    args = NARROW_HIFI | {"ssl_dim": 16}
    torch.manual_seed(0)
    state = models_registry["finally_gen"](**args).state_dict()
    config = {"generator": {"name": "finally_gen", "args": args}, "wavlm": str(tmp_path / "wavlm")}
    save_checkpoint(tmp_path / "x.ckpt", network="x", config=config, step=1, generator=state, discriminators={})
    told = pack(tmp_path / "x.ckpt", tmp_path / "x.safetensors")
    assert "WavLM       inside" in told
    wav = np.random.default_rng(0).standard_normal(8000) * 0.1
    before = finallyse.load(tmp_path / "x.ckpt", device="cpu").enhance(wav, 16000)
    shutil.rmtree(tmp_path / "wavlm")
    np.testing.assert_array_equal(finallyse.load(tmp_path / "x.safetensors", device="cpu").enhance(wav, 16000), before)
    told = pack(tmp_path / "x.safetensors", tmp_path / "again.ckpt")  # and back
    assert "WavLM       inside" in told and set(load_tensors(tmp_path / "again.ckpt")[KEY]) == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }


@pytest.mark.parametrize("name", ["half.ckpt", "half.safetensors"])
def test_weights_of_16_bits(name, tmp_path):
    torch.manual_seed(0)
    model = models_registry["hifigan_gen"](**NARROW_VOCODER)
    about = {"network": "x", "config": CONFIG, "step": 1, "discriminators": {}}
    save_checkpoint(tmp_path / "x.ckpt", generator=model.state_dict(), **about)
    pack(tmp_path / "x.ckpt", tmp_path / "whole.ckpt")
    pack(tmp_path / "x.ckpt", tmp_path / name, fp16=True)
    assert (tmp_path / name).stat().st_size < 0.7 * (tmp_path / "whole.ckpt").stat().st_size
    wav = read_speech(16000, 1)
    whole, half = (finallyse.load(tmp_path / file, device="cpu").enhance(wav, 16000) for file in ("whole.ckpt", name))
    assert half.dtype == np.float32
    assert 0 < np.mean((half - whole) ** 2) < 1e-6 * np.mean(whole**2)
    with torch.no_grad():
        model.conv_post.bias.fill_(1e6)
    save_checkpoint(tmp_path / "x.ckpt", generator=model.state_dict(), **about)
    with pytest.raises(UserError, match=r"--fp16: weights of conv_post\.bias are beyond the range"):
        pack(tmp_path / "x.ckpt", tmp_path / "y.ckpt", fp16=True)
    assert not (tmp_path / "y.ckpt").exists()


def test_the_shipped_network_as_safetensors_in_the_command(root, tmp_path):
    pack("small", tmp_path / "small.safetensors", safetensors=True)
    with safe_open(tmp_path / "small.safetensors", framework="np") as file:
        assert json.loads(file.metadata()["finallyse"])["network"] == load_checkpoint(checkpoint_file()).network
        assert all(key.startswith("generator/") for key in file.keys())  # noqa: SIM118
    command = [sys.executable, "-m", "finallyse.cli", "enhance", str(root / "resources/demo/example/noisy.flac")]
    for name, words in (("a.wav", []), ("b.wav", ["--checkpoint", str(tmp_path / "small.safetensors")])):
        subprocess.run([*command, str(tmp_path / name), *words], check=True, capture_output=True)
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


@pytest.fixture(scope="module")
def content():
    """What is in the checkpoint of the shipped network."""
    return load_tensors(checkpoint_file())


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_damage_is_one_line(content, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / "x.safetensors"
    save_safetensors(path, content)
    whole = path.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    if data.draw(st.booleans()):
        damaged = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, 8 + header - 1))
        damaged = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    path.write_bytes(damaged)
    try:
        load_checkpoint(path).build_generator()
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error)


def test_files_that_are_not_ours_are_refused(tmp_path):
    weights = {"a": torch.zeros(2)}
    save_file(weights, tmp_path / "foreign.safetensors")
    for name, tensors, header, message in (
        ("foreign", weights, None, "`finallyse pack` has not written"),
        ("text", weights, "{", "its header is not JSON"),
        ("list", weights, "[]", "'a' has no place"),
        ("twice", weights, '{"a": 1}', "'a' has no place"),
        ("inside", {"a/b": torch.zeros(2)}, '{"a": 1}', "'a/b' has no place"),
        ("deep", {"a/" * 99 + "b": torch.zeros(2)}, "{}", "has no place"),
        ("other", weights, "{}", "not a checkpoint of this package"),
    ):
        save_file(tensors, tmp_path / f"{name}.safetensors", header and {"finallyse": header})
        with pytest.raises(UserError, match=message):
            load_checkpoint(tmp_path / f"{name}.safetensors")


def test_shared_and_strided_tensors_are_written_whole(tmp_path):
    base = torch.arange(12.0)
    save_safetensors(tmp_path / "x", {"a": {"b": base, "c": base.view(3, 4).T}, "d": [1, None, "x"], "e": {}})
    found = load_tensors(tmp_path / "x")
    assert found["d"] == [1, None, "x"] and found["e"] == {}
    torch.testing.assert_close(found["a"]["b"], base)
    torch.testing.assert_close(found["a"]["c"], base.view(3, 4).T)
    with pytest.raises(TypeError):
        save_safetensors(tmp_path / "y", {"a": object()})
    with pytest.raises(UserError, match="could not be written"):
        save_safetensors(tmp_path / "x" / "y", {"a": base})
