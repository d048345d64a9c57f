"""Training learns: each trainer fits one batch at its level; a small denoiser beats its input on voices new to it.

These fail if training is broken, even if the tests of its parts pass.
"""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from finallyse.datasets import datasets_registry
from finallyse.demo.synthesis import noise
from finallyse.metrics import MetricSet, Utterance
from finallyse.training import trainers_registry
from finallyse.training.batches import collate
from finallyse.training.distributed import Group
from finallyse.training.engine import train
from support.training import clip, experiment, prepare_resources, write_corpus

RATE = 16000
DEMO = "config/demo.yaml"


@pytest.fixture(scope="module")
def resources(tmp_path_factory) -> Path:
    return prepare_resources(tmp_path_factory.mktemp("resources"))


SMALL = "tests/data/small.yaml"
# where the experiment is from, steps, learning rate, losses of the generator (none: the experiment's own), the share of
# its first value that a loss must come down to
FITS = {
    "hifigan": (SMALL, 100, 1e-3, (), "l1_mel_loss", 0.5),
    "hifipp_bwe2": (DEMO, 60, 3e-3, (), "l1_mel_loss", 0.5),
    "finally_stage1": (DEMO, 60, 3e-3, (), "stft_loss", 0.6),
    "finally_stage1, lmos alone": (DEMO, 100, 3e-3, ("lmos",), "lmos", 0.3),
    "finally_stage2": (DEMO, 50, 3e-3, (), "stft_loss", 0.6),
    "finally_stage3_pretrain": (DEMO, 60, 1e-3, (), "stft_loss", 0.8),
    "finally_stage3": (DEMO, 30, 2e-3, (), "stft_loss", 0.8),
}


@pytest.mark.parametrize("case", FITS)
def test_every_trainer_fits_one_batch_at_its_level(case, resources, tmp_path):
    overlay, steps, rate, losses, told, share = FITS[case]
    settings = experiment(case.split(",")[0], resources, tmp_path, overlay=overlay)
    for side in ("generator", "discriminators"):
        settings[side]["optimizer"]["lr"] = rate
        settings[side]["scheduler"] = {"gamma": 0.975, "every": 1, "warmup_steps": 5}
    if losses:
        settings["losses"]["generator"] = {name: {"weight": 1.0, "args": {}} for name in losses}
    part = settings["data"]["train"]
    if "augmentations" in part["args"]:
        part["args"]["augmentations"] = part["args"]["augmentations"][:1]  # the noise
    dataset = datasets_registry[part["name"]](**part["args"])
    items = [dataset[(0, index)] for index in range(2)]
    trainer = trainers_registry[settings["trainer"]](settings, Group(torch.device("cpu")), set(items[0]))
    values = []
    for step in range(steps):
        trainer.begin(step, 0)
        values.append(trainer.train_step(collate(items))[told].item())
    batch = collate(items)
    with trainer.inference():
        output = trainer.synthesize_wavs(batch)
    rms, target = (wav.square().mean().sqrt() for wav in (output, batch["wav"]))
    level_db = 20 * torch.log10(rms / target).item()
    assert values[-1] < share * values[0], f"{told} from {values[0]:.3g} to {values[-1]:.3g}"
    assert abs(level_db) < 1.0


def noisy_corpus(folder: Path) -> None:
    """Clean and noisy clips: four voices for training, two others for testing."""
    rng = np.random.default_rng(0)
    speakers = {"train": ("alpha", "kumo", "nezumi", "tebukuro"), "test": ("gongitsune", "joe")}
    for split, names in speakers.items():
        clean = {f"{name}_{i:02d}": clip(f"{name}_{i:02d}", RATE) for name in names for i in (2, 5, 8)}
        noises = {
            name: noise(("white", "pink")[i % 2], len(wav) / RATE, RATE, rng, [])[: len(wav)]
            for i, (name, wav) in enumerate(clean.items())
        }
        noisy = {
            name: wav + noises[name] * (wav.std() / noises[name].std() * 10 ** (-rng.uniform(5, 15) / 20))
            for name, wav in clean.items()
        }
        write_corpus(folder, "voicebank", RATE, split, clean, noisy)


def test_a_small_denoiser_beats_its_input_on_voices_it_never_heard(tmp_path):
    noisy_corpus(tmp_path)
    metrics = ["wb_pesq", "si_sdr", "l1_mel_diff", "level"]
    options = {"train__steps": 100, "train__val_items": None, "data__batch_size": 4, "metrics": metrics}
    settings = experiment("hifipp_denoise", tmp_path, tmp_path / "results", overlay=DEMO, **options)
    settings["data"]["train"]["args"]["segment"] = 8192
    settings["generator"]["optimizer"]["lr"] = 2e-3
    settings["generator"]["scheduler"] = {"gamma": 0.97, "every": 1, "warmup_steps": 5}
    assert train(settings) == 0
    with (tmp_path / "results" / "state" / "hifipp_denoise" / "validation.csv").open(newline="") as file:
        output = {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}
    part = settings["data"]["validation"]
    dataset = datasets_registry[part["name"]](**part["args"])
    measures = MetricSet(metrics)
    scores = [measures.score(Utterance(item["input_wav"], RATE, item["wav"])).values for item in dataset]
    before = {name: fmean(score[name] for score in scores) for name in metrics}
    assert output["wb_pesq"] > before["wb_pesq"] + 0.1
    assert output["si_sdr"] > before["si_sdr"] + 1.0
    assert output["l1_mel_diff"] < 0.9 * before["l1_mel_diff"]
    assert abs(output["level"]) < 1.0
