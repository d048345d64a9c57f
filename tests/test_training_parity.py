"""Training takes the published steps: losses, gradient norms, rates, and weights and output after twelve steps.

Where this project does otherwise on purpose, a switch brings the published behaviour back (`training_parity`); each of
them is needed, so each is a difference that the comparison sees.
"""

import pytest
import torch

from finallyse.audio import mel
from finallyse.config import read_yaml
from finallyse.losses import resampling
from finallyse.training.optim import learning_rate
from training_parity import (
    RUNS,
    SWITCHES,
    disagreements,
    double_precision,
    golden,
    published_rates,
    trace,
)

# Where a switch, left off, must show: run and number of steps, the cheapest that there are.
NEEDED = {
    "clip": ("hifigan", 6),
    "spectral": ("hifigan_published", 1),
    "normalize": ("finally_stage1", 1),
    "floor": ("finally_stage1_without_tanh", 12),
    "tanh": ("finally_stage1_without_tanh", 1),
    "rate": ("finally_stage3_pretrain", 1),
    "warmup": ("finally_stage3_pretrain", 1),
    "pesq": ("finally_stage3", 1),
    "emphasis": ("finally_stage3", 1),
    "zero_lr": ("finally_stage3_zero_lr", 1),
}


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in the same order everywhere; restored for the tests that follow."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", RUNS)
def test_training_takes_the_published_steps(name):
    run = RUNS[name]
    assert disagreements(trace(name, run.switches, run.tested_steps), golden(name)) == []


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_deliberate_difference_shows(switch):
    name, steps = NEEDED[switch]
    others = set(RUNS[name].switches) - {switch}
    assert len(others) == len(RUNS[name].switches) - 1
    assert disagreements(trace(name, others, steps), golden(name)) != []


def rates_of(section, warm_up):
    """This project's learning rates at the recorded steps."""
    recorded = published_rates()
    scheduler = {"warmup_steps": 0, **section["scheduler"]} | ({} if warm_up else {"warmup_steps": 0})
    return [
        learning_rate(step - 1, (step - 1) // recorded["epoch"], section["optimizer"]["lr"], scheduler)
        for step in recorded["steps"]
    ]


SCHEDULES = [(recipe, side) for recipe, sides in published_rates()["lr"].items() for side in sides]


@pytest.mark.parametrize("recipe,side", [each for each in SCHEDULES if each != ("finally_stage3", "generator")])
def test_learning_rates_decay_as_published(root, recipe, side):
    section = read_yaml(root / "config" / "experiments" / f"{recipe}.yaml")[side]
    published = published_rates()["lr"][recipe][side]
    assert rates_of(section, warm_up=False) == pytest.approx(published, rel=1e-9)
    warms_up = section["scheduler"].get("warmup_steps", 0) > 0
    assert (rates_of(section, warm_up=True) != pytest.approx(published, rel=1e-9)) == warms_up


def test_the_published_warm_up_of_stage_3_counts_periods_from_zero(root):
    """Ours over periods of 200 steps instead of steps, one period late; the decay begins when it has ended."""
    section = read_yaml(root / "config" / "experiments" / "finally_stage3.yaml")["generator"]
    periods = [(step - 1) // section["scheduler"]["every"] for step in published_rates()["steps"]]
    warm_up = section["scheduler"]["warmup_steps"]
    decays = section["scheduler"] | {"every": "epoch"}
    base = section["optimizer"]["lr"]
    ours = [learning_rate(period - 1, max(0, period - warm_up - 1), base, decays) for period in periods]
    published = published_rates()["lr"]["finally_stage3"]["generator"]
    assert ours == pytest.approx(published, rel=1e-9)
    assert published[:5] == [0.0] * 5
    assert rates_of(section, warm_up=True) != pytest.approx(published, rel=1e-2)


def test_double_precision_ends_with_its_context():
    clip = torch.zeros(1, 48000)
    before = mel.torch, torch.Tensor.float, torch.backends.mkldnn.is_available, dict(resampling._resamplers)
    with double_precision():
        assert resampling.to_16k(clip.double(), 48000).dtype == mel.LogMel()(clip).dtype == torch.zeros(1).dtype
        assert torch.zeros(1).dtype == torch.float64
    after = mel.torch, torch.Tensor.float, torch.backends.mkldnn.is_available, dict(resampling._resamplers)
    assert after == before
    assert resampling.to_16k(clip, 48000).dtype == mel.LogMel()(clip).dtype == torch.zeros(1).dtype == torch.float32


def test_the_table_of_differences_names_every_switch(root):
    page = (root / "docs" / "differences.md").read_text()
    assert [switch for switch in SWITCHES if f"`{switch}`" not in page] == []
