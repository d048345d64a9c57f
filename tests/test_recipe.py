"""Recipes: which changes make a training another one, and which do not."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from finallyse.models.checkpoint import save_checkpoint
from finallyse.options import Experiment, from_dict, option
from finallyse.recipe import Recipe, default_options, describe, fingerprints, recipe_of
from finallyse.schema import argument_defaults as defaults_of_schema
from finallyse.schema import build_schema
from finallyse.training.engine import argument_defaults
from support.training import experiment


def recorded(recipe: Recipe) -> Recipe:
    return Recipe.from_record(recipe.record())


def of_older(recipe: Recipe) -> Recipe:
    """As a version recorded it that wrote only the definition."""
    return Recipe.from_record({key: recipe.record()[key] for key in ("key", "definition")})


@pytest.fixture(scope="module")
def stage3(tmp_path_factory) -> Experiment:
    folder = tmp_path_factory.mktemp("resources")
    return from_dict(Experiment, experiment("finally_stage3", folder, folder))


def without(recipe: Recipe, *options: str) -> Recipe:
    """The recipe as a version recorded it that did not know these options."""
    kept = {k: v for k, v in recipe.definition.items() if not any(f"{k}.".startswith(f"{o}.") for o in options)}
    return of_older(Recipe(kept))


@pytest.mark.parametrize(
    "added",
    [
        "train.tf32",
        "train.clip",
        "generator.ema_decay",
        "generator.optimizer.betas",
        "losses.generator.utmos.weight",
        "data.train.args.level_db",
        "data.train.args.augmentations.0.args.snr_db",
        "discriminators.parts.ms-stft_disc.args.n_ffts",
    ],
)
def test_an_option_of_a_newer_version_at_its_default_changes_nothing(stage3, added):
    now = recipe_of(stage3, argument_defaults)
    known = [key for key in now.definition if f"{key}.".startswith(f"{added}.")]
    if not set(known) & set(now.defaults) and added not in now.defaults:
        pytest.skip("not at its default in this recipe")
    old = without(now, added)
    assert known and not old.differences(now), "an upgrade"
    assert not recorded(now).differences(old), "and back to the version before"
