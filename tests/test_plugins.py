"""Parts of one's own: written by `finallyse new`, trained with, measured with, and told where they are wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import finallyse
from finallyse import plugins
from finallyse.cli import main
from finallyse.config import load_experiment, load_pipeline
from finallyse.errors import UserError
from finallyse.losses import losses_registry
from finallyse.models.checkpoint import load_checkpoint
from finallyse.new import PARTS, write
from finallyse.recipe import recipe_of
from finallyse.registry import REGISTRIES
from finallyse.schema import build_schema, read_schema
from finallyse.training.engine import argument_defaults, train
from support.training import experiment, history, prepare_resources, write_yaml


@pytest.fixture(scope="module")
def resources(tmp_path_factory):
    torch.set_num_threads(1)
    return prepare_resources(tmp_path_factory.mktemp("resources"))


def test_what_new_writes_passes_its_own_tests_and_the_linter(tmp_path, root, capsys):
    for kind in PARTS:
        with pytest.raises(SystemExit) as ended:
            main(["new", kind, f"my_{kind}", "--into", str(tmp_path)])
        assert not ended.value.code
    assert f"{tmp_path}/my_loss.py written: name it under `plugins`" in capsys.readouterr().out
    for command in (["pytest", "-q", "-p", "no:cacheprovider"], ["ruff", "check", f"--config={root}/pyproject.toml"]):
        run = subprocess.run(
            [sys.executable, "-m", *command, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stdout + run.stderr
    with pytest.raises(UserError, match=r"my_loss\.py: exists; choose another name, or give --force"):
        write("loss", "my_loss", tmp_path)
    refused = dict.fromkeys(("My", "1a", "a-b", "../a"), "the name must be of lower-case letters")
    refused |= {"class": "is a word of Python's own", "lmos": "the package has a loss of that name"}
    for name, message in refused.items():
        with pytest.raises(UserError, match=message):
            write("loss", name, tmp_path)
    with pytest.raises(UserError, match="the package has a trainer of that name"):
        write("trainer", "hifigan_trainer", tmp_path)


def with_own_parts(resources, folder, **changes) -> dict:
    """An experiment of a network, trainer, loss, augmentation and metric of plugins, one file each."""
    for kind in ("network", "trainer", "loss", "metric", "augmentation"):
        write(kind, f"own_{kind}", folder, force=True)
    settings = experiment("hifipp_denoise", resources, folder, **changes)
    settings |= {
        "plugins": [
            str(folder / f"own_{kind}.py") for kind in ("network", "trainer", "loss", "metric", "augmentation")
        ],
        "trainer": "own_trainer",
        "generator": settings["generator"] | {"name": "own_network", "args": {"channels": 8}},
        "discriminators": settings["discriminators"] | {"parts": {}},
        "losses": {"generator": {"own_loss": {"weight": 1.0, "args": {"power": 2.0}}}, "discriminator": {}},
        "metrics": ["own_metric"],
    }
    settings["data"]["train"] = {
        "name": "augmented_libritts-r",
        "args": {
            "manifest": f"{resources}/prepared/libritts-r/16000/train.csv",
            "segment": 4096,
            "context": 8192,
            "augmentations": [{"name": "own_augmentation", "probability": 1.0}],
        },
    }
    return settings


def test_own_parts_train_measure_and_enhance(resources, tmp_path):
    settings = with_own_parts(resources, tmp_path, train__steps=3)
    path = write_yaml(settings, tmp_path / "own.yaml")
    made = load_experiment([f"exp.config_path={path}", f"exp.results={tmp_path}/r", "exp.run_name=own"])
    assert made.plugins == [str(tmp_path / f"own_{kind}.py") for kind in ("network", "trainer", "loss", "augmentation")]
    assert made.metric_plugins == [str(tmp_path / "own_metric.py")]
    assert train(made) == 0
    assert all(row["own_loss"] > 0 for row in history(tmp_path / "r", "own"))
    assert "own_metric" in (tmp_path / "r" / "state" / "own" / "validation.csv").read_text()
    checkpoint = load_checkpoint(tmp_path / "r" / "own.ckpt")
    assert checkpoint.config["plugins"] == made.plugins
    assert finallyse.load(tmp_path / "r" / "own.ckpt", device="cpu").enhance([0.1] * 1000, 16000).shape == (1000,)


def test_a_checkpoint_of_a_plugin_says_which_one_it_needs(resources, tmp_path):
    settings = with_own_parts(resources, tmp_path, train__steps=1)
    path = write_yaml(settings, tmp_path / "own.yaml")
    train(load_experiment([f"exp.config_path={path}", f"exp.results={tmp_path}/r", "exp.run_name=own"]))
    script = "import sys, finallyse; finallyse.load(sys.argv[1], plugins=sys.argv[2:]).enhance([0.1] * 9, 16000)"
    run = [sys.executable, "-c", script, str(tmp_path / "r" / "own.ckpt")]
    environment = {**os.environ, plugins.INHERITED: ""}
    alone = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert alone.stderr.splitlines()[-1].endswith(
        "own_augmentation.py: give that file with --plugin (finallyse.load: plugins=[...])"
    )
    with_file = subprocess.run(
        [*run, str(tmp_path / "own_network.py")], capture_output=True, text=True, env=environment
    )
    assert with_file.returncode == 0, with_file.stderr


def test_the_contents_of_a_part_define_the_training_those_of_a_metric_do_not(resources, tmp_path):
    path = write_yaml(with_own_parts(resources, tmp_path), tmp_path / "own.yaml")

    def recipe():
        return recipe_of(load_experiment([f"exp.config_path={path}"]), argument_defaults)

    first = recipe()
    (tmp_path / "own_metric.py").open("a").write("# remeasured\n")
    assert not first.differences(recipe())
    (tmp_path / "own_loss.py").open("a").write("# another loss\n")
    assert list(first.differences(recipe())) == ["plugins.2"]
    without = experiment("hifipp_denoise", resources, tmp_path)
    plain = load_experiment([f"exp.config_path={write_yaml(without, tmp_path / 'plain.yaml')}"])
    assert plain.plugins == [] and plain.metric_plugins == []


def test_the_pipeline_gives_each_network_what_it_needs(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    for kind in ("loss", "metric"):
        write(kind, f"own_{kind}", tmp_path)
    overlay = tmp_path / "my.yaml"
    overlay.write_text(
        f"plugins: [{tmp_path}/own_loss.py, {tmp_path}/own_metric.py]\n"
        "metrics: [own_metric]\n"
        "networks:\n"
        "  hifigan: {override: {losses: {generator: {own_loss: {weight: 2, args: {power: 3}}}}}}\n"
    )
    config = load_pipeline(["config/config.yaml", str(overlay)], {}, read_schema("config/schema.json"))
    assert config["experiments"]["hifigan"]["plugins"] == [f"{tmp_path}/own_loss.py"]
    assert config["experiments"]["hifigan"]["losses"]["generator"]["own_loss"] == {"weight": 2, "args": {"power": 3}}
    assert config["experiments"]["hifipp_denoise"]["plugins"] == []
    overlay.write_text(overlay.read_text().replace("power: 3", "powr: 3"))
    with pytest.raises(UserError, match=r"own_loss\.args\.powr: unknown key; did you mean 'power'\?"):
        load_pipeline(["config/config.yaml", str(overlay)], {}, read_schema("config/schema.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (\n", r"bad\.py, line 1: SyntaxError: '\(' was never closed"),
        ("import torch\n\nraise ValueError('no\\nway')\n", r"bad\.py, line 3: ValueError: no way"),
        ("raise SystemExit('no way')\n", r"bad\.py, line 1: SystemExit: no way"),
        ("import no_such_module\n", r"bad\.py, line 1: ModuleNotFoundError: No module named 'no_such_module'"),
    ],
)
def test_a_plugin_that_fails_is_one_line_with_its_place(text, message, tmp_path):
    (tmp_path / "bad.py").write_text(text)
    for _ in range(2):  # it is not half loaded
        with pytest.raises(UserError, match=message):
            plugins.load([str(tmp_path / "bad.py")])
    with pytest.raises(UserError, match=r"no_such\.py: no such file; paths are relative to the folder"):
        plugins.load(["no_such.py"])
    with pytest.raises(UserError, match=r"'no_such' is neither a \.py file nor an entry point in finallyse\.plugins"):
        plugins.load(["no_such"])


@pytest.mark.parametrize(
    ("kind", "old", "new", "message"),
    [
        ("loss", 'label = "own"', "pass", r"loss 'own': class Own needs the attribute label \(str\)"),
        ("loss", "sees_level = True", "pass", r"needs the attribute sees_level \(bool\)"),
        ("loss", "wav: Tensor, wav_hat", "x: Tensor, wav_hat", r"needs wav, wav_hat, but forward\(\) takes x, wav_hat"),
        ("loss", "def forward", "def backward", r"must implement forward\(\)"),
        ("network", 'input_kind = "wav"', "pass", r"Own\.input_kind: must be one of"),
        ("network", "alignment = 1", "pass", r"Own\.alignment: is needed"),
        ("dataset", "(ManifestDataset)", "", r"must derive from finallyse\.datasets\.base\.ItemDataset"),
        ("dataset", "def item", "def items", r"must implement item\(\)"),
        ("augmentation", "def draw", "def drawn", r"must implement draw\(\)"),
        ("augmentation", 'name = "own"', "pass", r"needs the attribute name \(str\)"),
        ("metric", "def score", "def scores", r"must implement score\(\)"),
        ("metric", 'columns = {"own": "own"}', "pass", r"needs the attribute columns \(Mapping\)"),
        ("loss", '.register("own")', '.register("lmos")', r"loss 'lmos' is registered twice"),
    ],
)
def test_what_a_class_lacks_is_told_when_it_is_registered(kind, old, new, message, tmp_path):
    part, _ = write(kind, "own", tmp_path)
    text = part.read_text()
    assert old in text
    part.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=message):
        plugins.load([str(part)])
    assert "own" not in REGISTRIES[kind]


def test_processes_that_this_one_starts_know_the_plugins(tmp_path):
    write("loss", "own", tmp_path)
    plugins.load([str(tmp_path / "own.py")])
    assert "own" in losses_registry and "own" in str(build_schema())
    from finallyse.processes import process_pool

    with process_pool(1) as pool:
        assert pool.submit(plugins.loaded).result() == (str(tmp_path / "own.py"),)


def test_the_check_of_a_start_knows_the_plugins_of_the_workflow(root, tmp_path):
    write("loss", "own_loss", tmp_path)
    overlay = tmp_path / "my.yaml"
    overlay.write_text(
        f"plugins: [{tmp_path}/own_loss.py]\n"
        "networks:\n  hifigan: {override: {losses: {generator: {own_loss: {weight: 2}}}}}\n"
    )
    files = ["config/config.yaml", "config/demo.yaml", overlay]
    config = load_pipeline([root / file for file in files], {}, read_schema(root / "config/schema.json"))
    command = [sys.executable, "-m", "finallyse.preflight", "hifigan"]
    run = subprocess.run(command, cwd=root, input=json.dumps(config), capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr
