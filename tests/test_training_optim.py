"""From gradients to updates: clipping, refusal of non-finite ones, learning rate, averages, spectral norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from finallyse.training.clipping import Clipper
from finallyse.training.distributed import Group
from finallyse.training.optim import (
    Guard,
    MovingAverage,
    SpectralNorms,
    Updater,
    frozen,
    learning_rate,
    orthogonal,
)

CPU = torch.device("cpu")


def quantile_clipper(quantile: float = 0.9, window: int = 100) -> Clipper:
    return Clipper("quantile", 1.0, quantile, window, CPU)


def clipped(clipper: Clipper, *norms: float) -> list[float]:
    """The norms after clipping."""
    return [float(norm * clipper.factor(torch.tensor(norm))) for norm in norms]


@pytest.mark.parametrize("ordinary", [1, 3, 8, 50])
def test_an_outlier_does_not_open_the_door_for_the_next(ordinary):
    clipper = quantile_clipper()
    assert clipped(clipper, *[1.0] * ordinary) == [1.0] * ordinary
    assert clipped(clipper, 100.0, 50.0) == pytest.approx([1.0, 1.0])


def test_the_threshold_follows_a_lasting_rise():
    clipper = quantile_clipper(window=20)
    clipped(clipper, *[1.0] * 20)
    assert clipped(clipper, *[10.0] * 20)[0] == pytest.approx(1.0)
    assert clipped(clipper, 10.0) == pytest.approx([10.0])


def test_the_first_norm_passes_and_non_finite_ones_are_not_remembered():
    clipper = quantile_clipper()
    assert clipped(clipper, 5.0) == [5.0]
    for bad in (float("nan"), float("inf")):
        clipper.factor(torch.tensor(bad))
    assert int(clipper.seen) == 1 and clipped(clipper, 7.0) == pytest.approx([5.0])


def test_quantile_state_is_restored():
    one, other = quantile_clipper(window=5), quantile_clipper(window=5)
    clipped(one, 3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0)
    other.load_state_dict(one.state_dict())
    assert clipped(one, 6.0, 5.0, 3.0) == clipped(other, 6.0, 5.0, 3.0)


def test_norm_mode_and_none():
    assert clipped(Clipper("norm", 2.0, 0.9, 10, CPU), 1.0, 8.0) == pytest.approx([1.0, 2.0])
    assert clipped(Clipper("none", 2.0, 0.9, 10, CPU), 1e6) == [1e6]


def updater(parameters, mode="none", on_nonfinite="stop", norm=1.0, weight_decay=0.0, name="adamw") -> Updater:
    return Updater(
        parameters,
        {"name": name, "lr": 0.1, "betas": [0.8, 0.99], "weight_decay": weight_decay},
        {"gamma": 0.5, "every": 10, "warmup_steps": 0},
        Clipper(mode, norm, 0.9, 10, CPU),
        Guard(on_nonfinite, CPU),
        Group(CPU),
    )


def give(parameter: nn.Parameter, gradient: float, subject: Updater, loss: float = 1.0):
    parameter.grad = torch.full_like(parameter, gradient)
    return subject.update(torch.tensor([loss]))


def test_an_update_is_that_of_adamw_with_clipping():
    ours, theirs = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
    subject = updater([ours], mode="norm", norm=0.5, weight_decay=0.01)
    reference = torch.optim.AdamW([theirs], lr=0.1, betas=(0.8, 0.99), weight_decay=0.01)
    for gradient in (1.0, -2.0, 0.1, 3.0):
        _, norm, skipped = give(ours, gradient, subject)
        assert norm == pytest.approx(2 * abs(gradient)) and skipped == 0 and ours.grad is None
        theirs.grad = torch.full_like(theirs, gradient)
        nn.utils.clip_grad_norm_([theirs], 0.5)
        reference.step()
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 4, 3), (4, 2, 1, 3)])
def test_an_orthogonalised_update_is_that_of_pytorchs_muon(shape):
    torch.manual_seed(0)
    ours = nn.Parameter(torch.randn(shape))
    theirs = nn.Parameter(ours.detach().flatten(1).clone())
    subject = updater([ours], weight_decay=0.01, name="muon")
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.flatten(1).clone()
        before = ours.detach().clone()
        subject.update(torch.ones(1))
        reference.step()
        change = (ours - before).square().mean().sqrt()
        assert 0.1 * 0.1 < change < 0.1 * 0.3  # of the size of AdamW's, for all shapes
    torch.testing.assert_close(ours.flatten(1), theirs, rtol=0, atol=2e-3)  # theirs is computed in bfloat16


def test_orthogonal_keeps_the_directions_and_evens_out_their_lengths():
    torch.manual_seed(0)
    matrices = torch.randn(2, 20, 50) * torch.logspace(-2, 2, 20).unsqueeze(-1)
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    lengths = left.mT @ orthogonal(matrices) @ right.mT
    diagonal = lengths.diagonal(dim1=1, dim2=2)
    assert (lengths - torch.diag_embed(diagonal)).abs().max() < 1e-3
    assert diagonal[:, 0].min() > 0.6 and diagonal.max() < 1.3
    assert torch.equal(orthogonal(torch.zeros(1, 2, 3)), torch.zeros(1, 2, 3))


def test_muon_leaves_vectors_to_adamw_whatever_their_shape():
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((4,), (4, 1, 1), (1, 4), (4, 3), (2, 1, 5))]
    subject = updater(parameters, name="muon")
    grouped = {name: each.param_groups[0]["params"] for name, each in subject.optimizers.items()}
    assert [p.shape for p in grouped["adamw"]] == [(4,), (4, 1, 1), (1, 4)]
    assert [p.shape for p in grouped["muon"]] == [(4, 3), (2, 1, 5)]


def test_muons_state_is_restored():
    one, other = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3, 4))
    first, second = updater([one], name="muon"), updater([other], name="muon")
    give(one, 1.0, first)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    other.data.copy_(one)
    for subject, weight in ((first, one), (second, other)):
        weight.grad = torch.arange(12.0).view(3, 4)
        subject.update(torch.ones(1))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("gradient,loss", [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan"))])
def test_nothing_non_finite_reaches_the_weights(gradient, loss, name):
    weight = nn.Parameter(torch.ones(4, 2))
    subject = updater([weight], mode="quantile", on_nonfinite="stop", name=name)
    give(weight, 1.0, subject)
    before = weight.detach().clone()
    assert give(weight, gradient, subject, loss)[2] == 1
    assert torch.equal(weight, before)
    assert give(weight, 1.0, subject)[2] == 1  # stop: none after it either, until the host has read of it
    assert torch.equal(weight, before)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_skip_goes_on_after_a_bad_update(name):
    weight, other = nn.Parameter(torch.ones(4, 2)), nn.Parameter(torch.ones(4, 2))
    skipping, plain = updater([weight], on_nonfinite="skip", name=name), updater([other], name=name)
    for gradient in (1.0, float("nan"), 2.0):
        give(weight, gradient, skipping)
    for gradient in (1.0, 2.0):
        give(other, gradient, plain)
    assert torch.equal(weight, other)  # as if it had not been: moments and their count are untouched too


def test_learning_rate():
    epochs = {"gamma": 0.5, "every": "epoch", "warmup_steps": 0}
    assert [learning_rate(step, epoch, 1.0, epochs) for step, epoch in ((0, 0), (9, 0), (10, 1))] == [1.0, 1.0, 0.5]
    steps = {"gamma": 0.5, "every": 4, "warmup_steps": 2}
    assert [learning_rate(step, 0, 1.0, steps) for step in (0, 1, 3, 4, 8)] == [0.5, 1.0, 1.0, 0.5, 0.25]


def test_moving_average_and_its_use():
    module = nn.Linear(2, 1)
    average = MovingAverage(module, decay=0.75)
    start, moved = module.weight.detach().clone(), torch.full((1, 2), 4.0)
    module.weight.data.copy_(moved)
    average.update(module, step=100)
    expected = 0.75 * start + 0.25 * moved
    with average.in_place(module):
        torch.testing.assert_close(module.weight.detach(), expected)
    assert torch.equal(module.weight, moved)


def test_moving_average_of_a_short_run_forgets_the_untrained_weights():
    module = nn.Linear(2, 1)
    average = MovingAverage(module, decay=0.9999)
    start, moved = module.weight.detach().clone(), torch.full((1, 2), 4.0)
    module.weight.data.copy_(moved)
    for step in range(60):
        average.update(module, step)
    left = (average.weights["weight"] - moved) / (start - moved)
    assert left.abs().max() < 1e-6  # a decay of 0.9999 from the first step on would leave 0.994 of them


def test_spectral_norm_advances_once_a_step_whatever_is_computed():
    torch.manual_seed(0)
    layers = [nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    norms = [SpectralNorms(layer) for layer in layers]
    for step in range(3):
        for norm in norms:
            norm.advance()
        for _ in range(step):
            layers[1](torch.ones(1, 4))  # more passes in the one than in the other
        assert torch.equal(layers[0].weight, layers[1].weight)
    fresh = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))
    before = fresh.parametrizations.weight[0]._u.clone()
    SpectralNorms(fresh).advance()
    assert not torch.equal(before, fresh.parametrizations.weight[0]._u)


def test_frozen_lets_gradients_through_and_makes_none():
    module = nn.Linear(2, 1)
    module.bias.requires_grad_(False)
    inputs = torch.ones(1, 2, requires_grad=True)
    with frozen(module):
        module(inputs).sum().backward()
    assert inputs.grad is not None and module.weight.grad is None
    assert module.weight.requires_grad and not module.bias.requires_grad
