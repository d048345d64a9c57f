"""The benchmark of quality: its mixtures, its scores, its peers, and a run of all of it."""

import csv
import importlib.metadata
import re
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from finallyse.audio.io import read
from finallyse.augmentations.noise import active_power
from finallyse.errors import UserError
from finallyse.models import models_registry
from finallyse.models.checkpoint import save_checkpoint
from support.networks import HIFI

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import peers
import quality

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def resources(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("resources")
    quality.quick_resources(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("checkpoint") / "untrained.ckpt"
    save_checkpoint(
        path,
        network="untrained",
        config={"generator": {"name": "a2a_hifi++_gen", "args": HIFI}},
        step=0,
        generator=models_registry["a2a_hifi++_gen"](**HIFI).state_dict(),
        discriminators={},
    )
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Mixtures


def test_the_list_of_mixtures_is_a_function_of_its_seed(resources):
    first = quality.plan_mixtures(resources, 12)
    assert first == quality.plan_mixtures(resources, 12)
    assert first[:5] == quality.plan_mixtures(resources, 5), "more mixtures begin with the same ones"
    assert first != quality.plan_mixtures(resources, 12, seed=1)
    assert len({mixture.name for mixture in first}) == 12


def test_ratios_are_spread_evenly_over_both_corpora(resources):
    mixtures = quality.plan_mixtures(resources, 20)
    for corpus in quality.NOISES:
        ratios = sorted(m.snr_db for m in mixtures if m.noise.startswith(f"prepared/{corpus}/"))
        assert len(ratios) == 10
        assert all(-5 <= ratio <= 20 for ratio in ratios)
        assert max(np.diff([-5, *ratios, 20])) < 6


def test_mixtures_have_the_ratio_that_is_listed_and_do_not_clip(resources):
    for mixture in quality.plan_mixtures(resources, 8):
        noisy, clean = quality.mix(mixture, resources)
        source, _ = read(resources / mixture.speech)
        np.testing.assert_allclose(clean, source * np.float32(mixture.gain), atol=1e-7)
        noise_power = np.mean(np.square(noisy - clean, dtype=np.float64))
        assert 10 * np.log10(active_power(clean, 16000) / noise_power) == pytest.approx(mixture.snr_db, abs=0.02)
        assert max(np.abs(noisy).max(), np.abs(clean).max()) <= quality.PEAK + 1e-6


def test_corpora_that_are_not_prepared_are_named(tmp_path):
    with pytest.raises(UserError, match=r"picovoice-intents/16000/test\.csv: no such manifest"):
        quality.plan_mixtures(tmp_path, 4)


def test_real_recordings_with_the_outputs_of_others(tmp_path, resources):
    wav, rate = read(resources / quality.plan_mixtures(resources, 2)[0].speech)
    for folder in ("real_data/input", "real_data/output", "other/input"):
        (tmp_path / folder).mkdir(parents=True)
        quality.write_wav(tmp_path / folder / "0.wav", wav, rate)
    other, known = quality.real_sets(tmp_path)
    assert (other.title, other.others) == ("Real recordings: other", [])
    assert known.others == ["FINALLY (authors' output)"] and not known.has_reference
    (clip,) = known.clips()
    assert clip.clean is None and clip.others.keys() == {"FINALLY (authors' output)"}
    assert [test_set.count for test_set in quality.real_sets(tmp_path / "other" / "input")] == [1], "a plain folder"
    with pytest.raises(UserError, match="no such folder"):
        quality.real_sets(tmp_path / "nowhere")


def test_recordings_of_users_devices_are_as_many_of_each_folder(tmp_path, speech_16k):
    assert quality.community_set(tmp_path) == [], "not prepared"
    folder = tmp_path / "prepared" / "precise-community" / "16000"
    long, short = np.resize(speech_16k, 40000), np.resize(speech_16k, 20000)
    names = [(f"wav/{part}/en/{n}.wav", long) for part in ("a", "b") for n in range(6)] + [
        ("wav/a/en/short.wav", short)
    ]
    for name, wav in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        quality.write_wav(folder / name, wav, 16000)
    rows = [{"path": name, "samples": len(wav), "rate": 16000, "split": "test"} for name, wav in names]
    quality.write_csv(folder / "test.csv", quality.MANIFEST_COLUMNS, rows)
    (test_set,) = quality.community_set(tmp_path)
    clips = list(test_set.clips())
    assert test_set.count == len(clips) == 8 and not test_set.has_reference
    assert all(len(clip.noisy) == 40000 and clip.clean is None for clip in clips)
    assert sum(clip.name.startswith("a_") for clip in clips) == 4
    assert [clip.name for clip in clips] == [clip.name for clip in quality.community_set(tmp_path)[0].clips()]


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def test_scores_are_kept(tmp_path, speech_16k):
    path = tmp_path / "scores.csv"
    clean = speech_16k[:32000]
    noisy = clean + np.float32(0.01) * np.random.default_rng(0).standard_normal(len(clean)).astype(np.float32)
    first = quality.Scorer(["wb_pesq", "si_sdr"], path)
    scores = first.score(noisy, 16000, clean)
    assert scores.values.keys() == {"wb_pesq", "si_sdr"} and first.computed == 2
    again = quality.Scorer(["wb_pesq", "si_sdr", "estoi"], path)
    assert again.score(noisy, 16000, clean).values.items() >= scores.values.items()
    assert again.computed == 1, "only the new metric"
    again.score(noisy, 16000, 0.5 * clean)
    assert again.computed == 4, "another reference is another comparison"


def test_scores_of_another_version_are_not_used(tmp_path, speech_16k, monkeypatch):
    path = tmp_path / "scores.csv"
    quality.Scorer(["si_sdr"], path).score(speech_16k, 16000, speech_16k[::-1].copy())
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9.9")
    newer = quality.Scorer(["si_sdr"], path)
    newer.score(speech_16k, 16000, speech_16k[::-1].copy())
    assert newer.computed == 1


def test_a_line_cut_short_by_a_kill_is_scored_again(tmp_path, speech_16k):
    path = tmp_path / "scores.csv"
    noise = speech_16k[::-1].copy()
    value = quality.Scorer(["si_sdr"], path).score(noise, 16000, speech_16k).values
    path.write_bytes(path.read_bytes()[:-30])
    again = quality.Scorer(["si_sdr"], path)
    assert again.score(noise, 16000, speech_16k).values == value and again.computed == 1


# ---------------------------------------------------------------------------------------------------------------------
# Networks


def test_a_peer_that_is_not_installed_says_so(monkeypatch):
    monkeypatch.setattr(peers.Gtcrn, "package", "finallyse-no-such-package")
    system = quality.peer_system("gtcrn")
    assert system.absent == "not installed (pip install --no-deps finallyse-no-such-package==0.5.8)"
    assert system.enhance is None


def test_the_requirements_are_the_versions_that_the_peers_were_written_for(root):
    lines = (root / "requirements-bench.txt").read_text().splitlines()
    required = {line for line in lines if line and not line.startswith("#")}
    assert required == {f"{peer.package}=={peer.tested}" for peer in peers.PEERS.values()}


@pytest.mark.parametrize("name", peers.PEERS)
def test_a_peers_output_has_the_length_and_the_place_of_its_input(name, speech_16k):
    try:
        peer = peers.PEERS[name]()
    except peers.NotInstalled as reason:
        pytest.skip(str(reason))
    wav = speech_16k[:48001]
    peer.reset()
    out = peer.enhance(wav)
    assert out.shape == wav.shape and out.dtype == np.float32
    assert abs(peers.lag(out, wav)) < 1
    assert np.corrcoef(out, wav)[0, 1] > 0.9, "clean speech stays what it is"
    peer.reset()
    np.testing.assert_array_equal(peer.enhance(wav), out)  # no trace of the recording before


def test_lag():
    wav = np.random.default_rng(0).standard_normal(4000)
    assert peers.lag(np.roll(wav, 7), wav) == pytest.approx(7, abs=0.1)
    assert peers.lag(np.roll(wav, -3), wav) == pytest.approx(-3, abs=0.1)


def test_analysis_and_synthesis_give_the_signal_back():
    wav = np.random.default_rng(0).standard_normal(1001).astype(np.float32)
    window = peers.sqrt_hann(64)
    out = peers.synthesise(peers.analyse(wav, window, 32), window, 32, len(wav))
    np.testing.assert_allclose(out, wav, atol=1e-5)


def test_a_checkpoint_that_is_named_must_be_there(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        quality.our_system(str(tmp_path / "nothing.ckpt"))


# ---------------------------------------------------------------------------------------------------------------------
# All of it


def test_a_quick_run(tmp_path, checkpoint, monkeypatch, capsys):
    monkeypatch.setattr(quality, "tune_process", lambda: None)  # settings of the whole process: not for other tests
    monkeypatch.setattr(peers.NsNet2, "package", "finallyse-no-such-package")
    output = tmp_path / "quality.md"
    command = ["--quick", "--checkpoint", str(checkpoint), "--models", "ours", "nsnet2", "--output", str(output)]
    quality.main(command)
    text = output.read_text()
    assert "numbers mean nothing" in text and str(tmp_path) not in text
    number = r"−?\d[\d.]* ± \d[\d.]*"
    for row in ("input", "finallyse untrained"):
        assert re.search(rf"^\| {row} \| {number} \| {number} \| {number} \|$", text, re.MULTILINE), row
    assert text.count("| NSNet2 | not installed (pip install --no-deps finallyse-no-such-package==0.2.3)") == 3
    printed = capsys.readouterr().out
    assert printed.index("<!-- quality: ") < printed.index("<!-- /quality -->")
    with output.with_suffix(".mixtures.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["name"][:9] for row in listed] == ["000_esc-1", "001_moodi", "002_esc-1", "003_moodi"]
    assert set(listed[0]) == set(asdict(quality.Mixture(*[None] * 7)))

    page = output.with_suffix(".html").read_text()
    assert page.count('class="player"') == 2, "ESC-10's share of four mixtures"
    assert page.count("<audio ") == 2 * 3 and "data:audio/mpeg;base64," in page
    assert "moodist_" not in page and "Not installed" not in page
    assert "https://freesound.org/s/0/" in page, "credits"
    assert not re.search(r"(?:src|href)=\"(?!data:|#|https://freesound|https://github)", page), "nothing from elsewhere"
    assert len(page) < 6e6

    lines = output.with_suffix(".scores.csv").read_bytes()
    quality.main(command)
    assert output.with_suffix(".scores.csv").read_bytes() == lines, "a rerun scores nothing again"
    assert re.sub(r"\| 0\.\d+ \|", "", output.read_text()) == re.sub(r"\| 0\.\d+ \|", "", text)


def test_credits_name_the_authors_of_the_noises(tmp_path):
    readme = tmp_path / "unpacked" / "esc-10" / "ESC-10-553c8f1" / "README.md"
    readme.parent.mkdir(parents=True)
    readme.write_text(
        "- **[5-203128-A.ogg](https://github.com/x/5-203128-A.ogg)**:  clip derived from [A (b) <c>.mp3]"
        "(http://www.freesound.org/people/P%20G/sounds/203128/) by *P G* ([CC-BY](http://creativecommons.org/))\n"
    )
    authors = quality.esc10_authors(tmp_path, None)
    mixture = quality.Mixture("n", "s", "prepared/esc-10/16000/wav/001 - Dog bark/5-203128-A.wav", 0.0, 3.0, 1.0, 0)
    line = quality.credit(mixture, authors)
    assert "A (b) &lt;c&gt;.mp3</a> by P G, " in line and ">CC-BY</a>" in line and "/sounds/203128/" in line
    assert quality.noise_class(mixture) == "Dog bark"
