"""Training learns: each trainer fits one batch, at its level; a small denoiser beats its input on voices it never heard.

These fail where training is broken, whatever the tests of its parts say.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from finallyse.datasets import datasets_registry
from finallyse.training import trainers_registry
from finallyse.training.batches import collate
from finallyse.training.distributed import Group
from training_parts import experiment, prepare_resources

# of the regression loss that each recipe has, after STEPS steps on one batch: share of the first value, at most
SHARES = {
    "hifigan": ("l1_mel_loss", 0.5),
    "hifipp_denoise": ("l1_mel_loss", 0.5),
    "finally_stage1": ("lmos", 0.5),
    "finally_stage2": ("lmos", 0.5),
    "finally_stage3_pretrain": ("lmos", 0.5),
    "finally_stage3": ("lmos", 0.5),
}
STEPS = 120


@pytest.fixture(scope="module")
def resources(tmp_path_factory) -> Path:
    return prepare_resources(tmp_path_factory.mktemp("resources"))


@pytest.mark.parametrize("network", SHARES)
def test_every_trainer_fits_one_batch_at_its_level(network, resources, tmp_path):
    settings = experiment(network, resources, tmp_path)
    for side in ("generator", "discriminators"):
        settings[side]["optimizer"]["lr"] *= 10
    settings["data"]["train"]["args"]["segment"] = {"hifigan": 8192, "hifipp_denoise": 8192}.get(
        network, settings["data"]["train"]["args"]["segment"]
    )
    part = settings["data"]["train"]
    dataset = datasets_registry[part["name"]](**part["args"])
    items = [dataset[(0, index)] for index in range(2)]
    trainer = trainers_registry[settings["trainer"]](settings, Group(torch.device("cpu")), set(items[0]))
    loss, share = SHARES[network]
    values, levels = [], []
    for step in range(STEPS):
        trainer.begin(step, 0)
        values.append(trainer.train_step(collate(items))[loss].item())
        if step % 20 == 19:
            with trainer.inference():
                batch = collate(items)
                output = trainer.synthesize_wavs(batch)
            rms = [wav.square().mean().sqrt() for wav in (output, batch["wav"])]
            levels.append(round(20 * torch.log10(rms[0] / rms[1]).item(), 2))
    print(network, values[0], values[-1], values[-1] / values[0], levels)
