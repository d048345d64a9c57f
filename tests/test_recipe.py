"""Recipes: which changes make a training another one, and which do not."""

from __future__ import annotations

import pytest
import torch

from finallyse.models.checkpoint import save_checkpoint
from finallyse.options import Experiment, from_dict
from finallyse.recipe import Recipe, choices, default_options, describe, fingerprints, recipe_of
from finallyse.schema import argument_defaults as schema_defaults
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
        "losses.generator.pesq.weight",
        "losses.generator.lmos.args.features",
        "data.train.args.silence_ratio",
        "data.train.args.augmentations.0.args.snr_db",
        "data.train.args.augmentations.1.probability",
        "discriminators.parts.ms-stft_disc.args.n_ffts",
    ],
)
def test_an_option_of_a_newer_version_at_its_default_changes_nothing(stage3, added):
    now = recipe_of(stage3, argument_defaults)
    old = without(now, added)
    assert len(old.definition) < len(now.definition)
    assert not old.differences(now), "an upgrade"
    assert not recorded(now).differences(old), "and back to the version before"


@pytest.mark.parametrize(
    "added", ["generator.args.ssl_dim", "losses.generator.lmos", "data.train.args.augmentations.7", "data.batch_size"]
)
def test_an_option_of_a_newer_version_that_is_set_and_a_new_part_make_another_recipe(stage3, added):
    now = recipe_of(stage3, argument_defaults)
    old = without(now, added)
    assert len(old.definition) < len(now.definition)
    assert any(key.startswith(added) for key in old.differences(now))
    assert recorded(now).differences(old)


def test_lists_count_as_a_whole(stage3):
    now = recipe_of(stage3, argument_defaults)
    assert "generator.optimizer.betas" in now.defaults
    assert without(now, "generator.optimizer.betas.1").differences(now)


def test_an_option_that_no_longer_defines_the_run_does_not_count(stage3):
    now = recipe_of(stage3, argument_defaults)
    older = Recipe({**now.definition, "train.log_step": 7, "metrics.0": "stoi"})
    assert not older.differences(now) and not now.differences(older)


def test_the_schema_knows_the_defaults_that_the_code_has(stage3):
    of_code = default_options(stage3, argument_defaults)
    assert default_options(stage3, schema_defaults(build_schema())) == of_code


def test_choices_are_without_defaults_and_folders(stage3):
    chosen = choices(stage3, argument_defaults)
    assert chosen["data.train.args.manifest"] == "${exp.resources}/prepared/daps/48000/train.csv"
    assert chosen["data.train.args.augmentations.7.name"] == "codec" and chosen["losses.generator.lmos.weight"] == 0.5
    assert not {"train.tf32", "train.steps", "train.log_step", "generator.optimizer.lr"} & chosen.keys()


# ------------------------------------------------------------------------------------------------- contents of files


def same(before: list[str], after: list[str]) -> bool:
    old, new = (Recipe({"wavlm": values[0]}, {"wavlm": values}) for values in (before, after))
    assert old.differences(new).keys() == of_older(old).differences(new).keys(), (
        "records of older versions count as well"
    )
    return not old.differences(new)


@pytest.mark.parametrize("name", [".DS_Store", ".cache/x", "README.md", "._config.json", "model.safetensors.part"])
def test_what_stands_beside_weights_does_not_count(tmp_path, name):
    folder = tmp_path / "wavlm"
    folder.mkdir()
    for part in ("config.json", "preprocessor_config.json", "model.safetensors"):
        (folder / part).write_text("{}")
    before = fingerprints(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert same(before, fingerprints(folder))
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    assert not same(before, fingerprints(folder))


def test_hidden_files_beside_others_do_not_count(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"1")
    before = fingerprints(tmp_path)
    (tmp_path / ".DS_Store").touch()
    assert same(before, fingerprints(tmp_path))
    (tmp_path / "b.bin").touch()
    assert not same(before, fingerprints(tmp_path))


def test_of_a_checkpoint_only_the_tensors_count(tmp_path):
    def written(weight: float, **config) -> list[str]:
        save_checkpoint(
            tmp_path / "a.ckpt",
            network="hifigan_gen",
            config={"data": {"train": {"name": "x"}}, **config},
            step=1,
            generator={"w": torch.full((5,), weight)},
            discriminators={},
        )
        return fingerprints(tmp_path / "a.ckpt")

    before, relogged, other = written(1.0), written(1.0, train={"log_step": 6}), written(2.0)
    one, two = (Recipe({"generator.init_from": f[0]}, {"generator.init_from": f}) for f in (before, relogged))
    assert before[0] != relogged[0] and not recorded(one).differences(two)
    three = Recipe({"generator.init_from": other[0]}, {"generator.init_from": other})
    assert describe(one.differences(three)) == "generator.init_from: other contents"
