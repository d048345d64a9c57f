"""The networks that come with the package: found, intact, described, and better than their input."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import finallyse
from finallyse import pretrained
from finallyse.cli import main
from finallyse.errors import UserError
from finallyse.metrics import metrics_registry
from finallyse.metrics.base import Utterance
from finallyse.models.checkpoint import load_checkpoint
from finallyse.models.table import row
from finallyse.pretrained import PRETRAINED, checkpoint_file

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "resources" / "demo" / "example"


@pytest.fixture(scope="module")
def small():
    return finallyse.load()


@pytest.mark.parametrize("name", PRETRAINED)
def test_each_is_small_intact_and_has_a_card(name):
    file = checkpoint_file(name)  # checks its SHA-256
    assert file.stat().st_size < 4_000_000
    loaded = load_checkpoint(file)
    assert not loaded.discriminators and loaded.step > 1000
    assert loaded.card == (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8")
    cost = row(loaded.network, loaded.config["generator"]["args"], 1.024)
    assert cost.parameters < 1_000_000 and cost.macs_per_second < 1e9
    assert str(loaded.step) in loaded.card.replace(",", "") and "CC-BY" in loaded.card


def test_a_name_a_file_or_neither(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert checkpoint_file() == checkpoint_file("small") == pretrained.FOLDER / "small.ckpt"
    shutil.copy(checkpoint_file(), "small")
    assert checkpoint_file("small") == Path("small")  # a file of the current folder has priority
    assert checkpoint_file() == pretrained.FOLDER / "small.ckpt"
    with pytest.raises(UserError, match=r"^smal: no such checkpoint; did you mean 'small'\?$"):
        checkpoint_file("smal")
    with pytest.raises(UserError, match=r"^results/x\.ckpt: no such checkpoint$"):
        checkpoint_file("results/x.ckpt")


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])])
def test_a_damaged_installation_is_noticed(damage, tmp_path, monkeypatch):
    shutil.copy(checkpoint_file(), tmp_path / "small.ckpt")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    damage(tmp_path / "small.ckpt")
    with pytest.raises(UserError, match=r"'small' is missing or damaged; install the package again"):
        checkpoint_file()


def test_the_example_gets_better(small):
    clean, rate = sf.read(EXAMPLE / "clean.flac", dtype="float32")
    noisy, _ = sf.read(EXAMPLE / "noisy.flac", dtype="float32")
    enhanced = small.enhance(noisy, rate, rate)
    for name, gain in {"wb_pesq": 0.2, "si_sdr": 2.0, "dnsmos": 0.2}.items():
        before, after = (
            metrics_registry[name]().score(Utterance(wav, rate, clean, rate))[name] for wav in (noisy, enhanced)
        )
        assert after > before + gain, name


def test_windows_join_without_a_seam(small):
    """A minute in windows of 8 s, and in one piece."""
    noisy = np.resize(sf.read(EXAMPLE / "noisy.flac", dtype="float32")[0], 60 * 16000)
    whole, windowed = (finallyse.load(window_s=seconds).enhance(noisy, 16000) for seconds in (61, 8))
    tenths = np.square(windowed - whole).reshape(-1, 1600).mean(1)
    assert tenths.max() < 1e-6 * np.square(whole).mean()


@pytest.mark.parametrize("kind", ["silence", "chord", "white noise", "full scale"])
def test_what_is_no_speech_does_not_come_back_louder(kind, small):
    t = np.arange(48000) / 16000
    wav = {
        "silence": np.zeros(48000),
        "chord": sum(0.15 * np.sin(2 * np.pi * f * t) / k for f in (220, 277, 330) for k in (1, 2, 3)),
        "white noise": 0.1 * np.random.default_rng(0).standard_normal(48000),
        "full scale": np.sign(np.sin(2 * np.pi * 150 * t)),
    }[kind].astype(np.float32)
    out = small.enhance(wav, 16000, 16000)
    level, level_out = (np.sqrt(np.mean(x**2)) for x in (wav, out))
    assert np.isfinite(out).all()
    # the square wave without some of its harmonics has higher peaks; files of integers are turned down, never clipped
    assert np.abs(out).max() <= (1.5 if kind == "full scale" else 1)
    assert level_out <= 1.06 * level + 1e-4  # half a decibel


def test_commands_use_it_without_a_checkpoint(tmp_path, capsys):
    output = tmp_path / "out.wav"
    with pytest.raises(SystemExit) as done:
        main(["enhance", str(EXAMPLE / "noisy.flac"), str(output), "--rate", "16000"])
    assert not done.value.code and sf.info(output).frames == sf.info(EXAMPLE / "noisy.flac").frames
    with pytest.raises(SystemExit):
        main(["models"])
    assert "small" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["models", "--card", "small"])
    assert capsys.readouterr().out.strip() == (ROOT / "MODEL_CARD.md").read_text(encoding="utf-8").strip()
    with pytest.raises(SystemExit) as done:
        main(["enhance", str(EXAMPLE / "noisy.flac"), str(tmp_path / "b.wav"), "--checkpoint", "smal"])
    assert done.value.code == 2 and "did you mean 'small'" in capsys.readouterr().err
