"""The configuration: mistakes stop at once, with the file, the key and the nearest valid name."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import textwrap
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from finallyse import checks, provenance
from finallyse import schema as schemas
from finallyse.cli import main
from finallyse.config import load_experiment, load_pipeline, read_config, read_layers, read_yaml
from finallyse.errors import UserError
from finallyse.models import models_registry
from finallyse.options import Experiment, from_dict
from support import NETWORKS


@pytest.fixture(scope="module")
def schema() -> dict:
    return schemas.build_schema()


@pytest.fixture(autouse=True)
def in_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_the_schema_file_is_what_the_code_says(schema):
    assert json.loads(Path("config/schema.json").read_text()) == json.loads(json.dumps(schema)), "run `make schema`"


def test_the_readme_documents_every_option():
    text = Path("config/README.md").read_text()
    assert schemas.option_tables() in text and schemas.part_tables() in text, "run `make schema`"


def test_every_argument_of_every_part_is_described(schema):
    def described(value: object, at: str = "") -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                if key == "properties" and at.endswith("/args"):
                    missing = [name for name, argument in inner.items() if "description" not in argument]
                    assert not missing, at
                described(inner, f"{at}/{key}")
        elif isinstance(value, list):
            for index, inner in enumerate(value):
                described(inner, f"{at}/{index}")

    described(schema)
    assert checks.descriptions(models_registry["finally_gen"]).keys() >= {"ssl_dim", "waveunet_input", "norm_type"}


@pytest.mark.parametrize(
    "overlays, left_out",
    [
        ([], []),
        (["config/finally_large.yaml"], []),
        (["config/demo.yaml"], []),
        (["config/demo.yaml", "config/learn.yaml"], ["hifipp_bwe1", "hifipp_bwe4"]),
    ],
)
def test_the_shipped_configs_are_complete(overlays, left_out, schema):
    config = load_pipeline(["config/config.yaml", *overlays], {}, schema)
    assert list(config["experiments"]) == [name for name in NETWORKS if name not in left_out]
    for name, experiment in config["experiments"].items():
        assert experiment["exp"]["run_name"] == name
        assert "${" not in json.dumps(experiment), "every interpolation is resolved"
        assert json.dumps(dataclasses.asdict(from_dict(Experiment, experiment))) == json.dumps(experiment)


def test_options_from_dicts_have_defaults_and_leave_out_unknown_keys():
    experiment = from_dict(Experiment, {"train": {"steps": 7, "of_another_version": 1}, "trainer": "hifigan_trainer"})
    assert (experiment.train.steps, experiment.train.clip.mode, experiment.trainer) == (7, "none", "hifigan_trainer")
    assert from_dict(Experiment, experiment) is experiment


def test_folders_move_as_one(schema):
    config = load_pipeline(["config/config.yaml", "config/demo.yaml"], {"results": "results/mine/"}, schema)
    assert config["results"] == "results/mine"
    assert config["resources"] == "results/mine/resources"
    stage2 = config["experiments"]["finally_stage2"]
    assert stage2["generator"]["init_from"] == "results/mine/finally_stage1.ckpt"
    assert stage2["data"]["train"]["args"]["manifest"].startswith("results/mine/resources/prepared/")


def test_stages_start_from_one_another(schema):
    experiments = load_pipeline(["config/config.yaml"], {}, schema)["experiments"]
    start = {name: experiment["generator"]["init_from"] for name, experiment in experiments.items()}
    assert {name: path for name, path in start.items() if path} == {
        "finally_stage2": "results/finally_stage1.ckpt",
        "finally_stage3_pretrain": "results/finally_stage2.ckpt",
        "finally_stage3": "results/finally_stage3_pretrain.ckpt",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resultz: here", r"my\.yaml: resultz: unknown key; did you mean 'results'"),
        ("allow_cpu: maybe", r"my\.yaml: allow_cpu: must be boolean, got 'maybe'"),
        ("seed: -1", r"my\.yaml: seed: -1 is less than the minimum of 0"),
        ("metrics: [wb_pesk]", r"my\.yaml: metrics\.0: unknown value 'wb_pesk'; did you mean 'wb_pesq'"),
        (
            "networks: {hifigan: {experimnt: x}}",
            r"networks\.hifigan\.experimnt: unknown key; did you mean 'experiment'",
        ),
        ("common: {train: {stepz: 3}}", r"common\.train\.stepz: unknown key; did you mean 'steps'"),
        (
            "networks: {hifigan: {override: {generator: {name: hifigan}}}}",
            r"networks\.hifigan\.override\.generator\.name: unknown value 'hifigan'; did you mean 'hifigan_gen'",
        ),
        (
            "networks: {hifigan: {override: {losses: {generator: {mel_loss: {weight: 1}}}}}}",
            r"losses\.generator\.mel_loss: unknown key; did you mean 'l1_mel_loss'",
        ),
        (
            "networks: {hifigan: {override: {data: {train: {name: vctkk}}}}}",
            r"data\.train\.name: unknown value 'vctkk'; did you mean 'vctk'",
        ),
        (
            "networks: {hifigan: {override: {generator: {args: {upsample_initial_chanel: 64}}}}}",
            r"generator\.args\.upsample_initial_chanel: unknown key; did you mean 'upsample_initial_channel'",
        ),
        (
            "networks: {hifipp_denoise: {improves: [wb_pesk]}}",
            r"my\.yaml: networks\.hifipp_denoise\.improves\.0: unknown value 'wb_pesk'; did you mean 'wb_pesq'",
        ),
        (
            "networks: {hifigan: {reaches: {stoy: 1}}}",
            r"my\.yaml: networks\.hifigan\.reaches\.stoy: unknown key; did you mean 'stoi'",
        ),
        ("networks: {hifigan: {reaches: {stoi: high}}}", r"networks\.hifigan\.reaches\.stoi: must be number or null"),
        (
            "{metrics: [stoi], networks: {hifigan: {reaches: {dnsmos_sig: 3}}}}",
            r"networks\.hifigan\.reaches: dnsmos_sig is not measured; add dnsmos to `metrics`",
        ),
        (
            "networks: {hifipp_denoise: {improves: [level]}}",
            r"networks\.hifipp_denoise\.improves: level is checked by itself",
        ),
        ("networks: {hifigan: {improves: [stoi]}}", r"networks\.hifigan\.improves: a vocoder has no input to beat"),
        ("networks: {mine: {}}", r"networks\.mine\.experiment is required"),
        ("networks: {mine: {experiment: nowhere.yaml}}", r"nowhere\.yaml: no such config file"),
        ("results: ${resultz}", r"my\.yaml: Interpolation key 'resultz' not found"),
        ("a: b: c", r"my\.yaml, line 1, column 5: mapping values are not allowed here"),
        ("- a", r"my\.yaml: must hold keys and values"),
    ],
)
def test_a_wrong_pipeline_stops_with_file_key_and_nearest_name(text, message, schema, tmp_path):
    path = write(tmp_path / "my.yaml", text)
    with pytest.raises(UserError, match=message) as error:
        load_pipeline(["config/config.yaml", path], {}, schema)
    assert "\n" not in str(error.value)


def test_a_wrong_value_on_the_command_line_is_told_as_such(schema):
    with pytest.raises(UserError, match=r"--config: demo_spech: unknown key; did you mean 'demo_speech'"):
        load_pipeline(["config/config.yaml"], {"demo_spech": "x"}, schema)


def test_what_is_asked_of_a_network_is_overlaid(schema, tmp_path):
    first = write(
        tmp_path / "a.yaml",
        "networks: {hifipp_denoise: {improves: [stoi, dnsmos_sig]}, hifigan: {reaches: {wb_pesq: 2, stoi: 0.9}}}",
    )
    second = write(tmp_path / "b.yaml", "networks: {hifigan: {reaches: {stoi: null}}}")
    networks = load_pipeline(["config/config.yaml", first, second], {}, schema)["networks"]
    assert networks["hifipp_denoise"]["improves"] == ["stoi", "dnsmos_sig"]
    assert networks["hifigan"]["reaches"] == {"wb_pesq": 2}
    assert (networks["hifipp_bwe1"]["improves"], networks["hifipp_bwe1"]["reaches"]) == ([], {})


def test_values_of_the_command_line_get_their_types(schema):
    """As Snakemake passes them: text, except numbers at the top level."""
    typed = {"allow_cpu": "true", "common": {"train": {"steps": "7", "val_step": "null"}, "metrics": ["stoi"]}}
    typed["common"]["generator"] = {"optimizer": {"lr": "1e-3", "betas": [".5", "0.9"]}, "init_from": "no"}
    config = load_pipeline(["config/config.yaml"], typed | {"results": "results/7"}, schema)
    assert config["allow_cpu"] is True and config["results"] == "results/7"
    train = config["experiments"]["hifigan"]["train"]
    assert train["steps"] == 7 and train["val_step"] is None
    generator = config["experiments"]["hifigan"]["generator"]
    assert generator["optimizer"]["lr"] == 0.001 and generator["optimizer"]["betas"] == [0.5, 0.9]
    assert generator["init_from"] == "no"


def test_null_removes_a_network_and_a_loss(schema, tmp_path):
    path = write(
        tmp_path / "my.yaml",
        "networks: {hifigan: null, finally_stage3: {override: {losses: {generator: {utmos: null}}}}}",
    )
    config = load_pipeline(["config/config.yaml", path], {}, schema)
    assert "hifigan" not in config["experiments"]
    assert sorted(config["experiments"]["finally_stage3"]["losses"]["generator"]) == [
        "feature_loss",
        "gen_loss",
        "lmos",
        "pesq",
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_experiment_loads_by_hand_with_all_arguments_filled_in(name, schema):
    config = load_experiment([f"exp.config_path=config/experiments/{name}.yaml", f"exp.run_name={name}"], schema)
    assert config.exp.run_name == name
    assert config.generator.args.keys() >= {"hifi_upsample_rates"} or config.generator.args.keys() >= {"upsample_rates"}
    assert config.train.steps >= 10_000


def test_overrides_follow_hydras_grammar(schema):
    config = load_experiment(
        [
            "exp.config_path=config/experiments/finally_stage2.yaml",
            "exp.run_name=mine",
            "train.steps=7",
            "generator.args.waveunet_block_widths=[8,16,24,32]",
            "generator.optimizer={lr: 0.001, betas: [0.5, 0.9]}",
            "~losses.generator.lmos",
            "+losses.generator.l1_mel_loss={weight: 3}",
            "exp.resources='/data/with space'",
        ],
        schema,
    )
    assert config.train.steps == 7
    assert config.generator.args["waveunet_block_widths"] == [8, 16, 24, 32]
    assert config.generator.optimizer.lr == 0.001 and config.generator.optimizer.weight_decay == 0.01
    assert set(config.losses.generator) == {"gen_loss", "feature_loss", "l1_mel_loss"}
    assert config.wavlm == "/data/with space/weights/wavlm-large"


def test_another_part_on_the_command_line_brings_its_own_arguments(schema):
    config = load_experiment(
        [
            "exp.config_path=config/experiments/hifipp_denoise.yaml",
            "data.train.name=vctk",
            "data.train.args.input_freq=1000",
            "data.train.args.lowpass=polyphase",
        ],
        schema,
    )
    assert config.data.train.args["input_freq"] == 1000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", r"command line: train\.stepz: unknown key; did you mean 'steps'"),
        ("train.steps=many", r"train\.steps: must be integer, got 'many'"),
        ("train.precision=fp16", r"train\.precision: unknown value 'fp16'; did you mean 'bf16'"),
        ("trainer=hifigan", r"trainer: unknown value 'hifigan'; did you mean 'hifigan_trainer'"),
        ("generator.args.resblok=1", r"generator\.args\.resblok: unknown key; did you mean 'resblock'"),
        ("train.steps=", r"train\.steps: must be integer"),
        ("train.steps", r"command line: .*train\.steps"),
    ],
)
def test_a_wrong_override_stops(override, message, schema):
    with pytest.raises(UserError, match=message) as error:
        load_experiment(["exp.config_path=config/experiments/hifigan.yaml", override], schema)
    assert "\n" not in str(error.value)


def test_the_experiment_file_is_required(schema):
    with pytest.raises(UserError, match=r"exp\.config_path is required"):
        load_experiment(["exp.run_name=x"], schema)
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config file"):
        load_experiment(["exp.config_path=nowhere.yaml"], schema)


@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_the_experiment_file_may_lie_anywhere(quote, schema, tmp_path):
    path = tmp_path / "my runs (ö), a=b" / "$x.yaml"
    path.parent.mkdir()
    write(path, f"extends: {Path('config/experiments/hifigan.yaml').resolve()}")
    config = load_experiment([f"exp.config_path={quote}{path}{quote}", "exp.results='my runs (ö)'"], schema)
    assert config.exp.config_path == str(path) and config.exp.results == "my runs (ö)"


def test_an_experiment_that_lacks_a_needed_argument_says_which(schema, tmp_path):
    experiment = read_yaml("config/experiments/finally_stage1.yaml")
    del experiment["data"]["train"]["args"]["manifest"]
    path = write(tmp_path / "x.yaml", yaml.safe_dump(experiment))
    with pytest.raises(UserError, match=r"argument 'manifest' is required"):
        load_experiment([f"exp.config_path={path}"], schema)


def test_a_loaded_experiment_is_read_only(schema):
    config = load_experiment(["exp.config_path=config/experiments/hifigan.yaml"], schema)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.train.steps = 3


def test_the_large_finally_has_the_size_that_it_states(schema):
    import torch

    from finallyse.models import models_registry

    config = load_pipeline(["config/config.yaml", "config/finally_large.yaml"], {}, schema)
    sizes = []
    for name in ("finally_stage1", "finally_stage2", "finally_stage3_pretrain", "finally_stage3"):
        with torch.device("meta"):
            state = models_registry["finally_gen"](**config["experiments"][name]["generator"]["args"]).state_dict()
        sizes.append(sum(value.numel() for key, value in state.items() if not key.endswith("original0")))
    assert sizes[0] == sizes[1] and sizes[2] == sizes[3] == 146_209_876


# ---------------------------------------------------------------------------------------------------------------------
# Files that extend others


def test_a_file_stands_over_those_that_it_extends(tmp_path):
    (tmp_path / "parts").mkdir()
    write(tmp_path / "parts" / "base.yaml", "{train: {steps: 1, log_step: 1}, metrics: [stoi, level]}")
    write(tmp_path / "parts" / "first.yaml", "{extends: base.yaml, train: {steps: 2, keep: 2}}")
    write(tmp_path / "parts" / "second.yaml", "{extends: [base.yaml], train: {keep: 3}}")
    path = write(tmp_path / "x.yaml", "{extends: [parts/first.yaml, parts/second.yaml], metrics: [stoi]}")
    # base.yaml counts once: through second.yaml it does not override first.yaml
    assert read_yaml(path) == {"train": {"steps": 2, "log_step": 1, "keep": 3}, "metrics": ["stoi"]}


def test_files_are_read_as_omegaconf_reads_them(root, tmp_path):
    numbers = "1e-4 1.5e3 -2E+5 .5 1_000 1.0 0x10 .inf 1e 12:30 '1e-4' yes 1_0e2 1. .5e-3 -.5 ~ 2026-01-01 1.e3 +1e2"
    path = tmp_path / "numbers.yaml"
    write(path, f"a: [{', '.join(numbers.split())}]\nb: &b {{c: 1}}\nd: {{<<: *b, e: 2}}\n")
    for file in [path, *(root / "config").rglob("*.yaml")]:
        read = {key: value for key, value in OmegaConf.to_container(OmegaConf.load(file)).items() if key != "extends"}
        assert read_layers(file)[-1].values == read, file
    with pytest.raises(UserError, match=r"numbers\.yaml, line 2, column 1: train: given before, in line 1"):
        read_yaml(write(path, "train: {steps: 1}\ntrain: {steps: 2}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: nowhere.yaml", r"nowhere\.yaml: no such config file, which .*x\.yaml extends"),
        ("extends: x.yaml", r"x\.yaml: extends itself: .*x\.yaml extends .*x\.yaml"),
        ("extends: other.yaml", r"x\.yaml: extends itself: .*x\.yaml extends .*other\.yaml extends .*x\.yaml"),
        ("extends: {a: b}", r"x\.yaml: extends: must be a path or a list of paths, got \{'a': 'b'\}"),
        ("extends: [3]", r"x\.yaml: extends: must be a path or a list of paths, got \[3\]"),
        ("extends: bad.yaml", r"bad\.yaml: train\.stepz: unknown key; did you mean 'steps'"),
    ],
)
def test_what_cannot_be_extended_is_named(text, message, schema, tmp_path):
    path = write(tmp_path / "x.yaml", text)
    write(tmp_path / "other.yaml", "extends: x.yaml")
    write(tmp_path / "bad.yaml", "train: {stepz: 3}")
    with pytest.raises(UserError, match=message):
        load_experiment([f"exp.config_path={path}"], schema)


@pytest.mark.parametrize(
    ("text", "overrides", "source"),
    [
        ("common: {extends: x.yaml}", {}, r"networks\.hifigan \(.*\)"),
        ("networks: {hifigan: {override: {extends: x.yaml}}}", {}, r"networks\.hifigan \(.*\)"),
        ("{}", {"extends": "x.yaml"}, "--config"),
    ],
)
def test_only_files_extend_files(text, overrides, source, schema, tmp_path):
    path = write(tmp_path / "my.yaml", text)
    with pytest.raises(UserError, match=source + ": extends: belongs at the top of a config file"):
        load_pipeline(["config/config.yaml", path], overrides, schema)


def test_config_files_of_the_pipeline_extend_one_another(schema):
    both = load_pipeline(["config/config.yaml", "config/demo.yaml", "config/learn.yaml"], {}, schema)
    assert load_pipeline(["config/config.yaml", "config/learn.yaml"], {}, schema) == both


# ---------------------------------------------------------------------------------------------------------------------
# finallyse config


def sources(text: str) -> dict[str, str]:
    """`option: value` -> its source; for options of the same name and value, that of the last."""
    rows = [line.split(" # ") for line in text.splitlines() if " # " in line]
    return {option.strip(): source.strip() for option, source in rows}


def test_an_experiment_file_is_shown_in_full_with_its_sources(capsys, schema):
    arguments = ["train.steps=7", "losses.generator.lmos.weight=3"]
    provenance.show("config/experiments/finally_stage2.yaml", arguments, [])
    shown = capsys.readouterr().out
    experiment = load_experiment(["exp.config_path=config/experiments/finally_stage2.yaml", *arguments], schema)
    assert yaml.safe_load(shown) == dataclasses.asdict(experiment)
    assert (
        sources(shown).items()
        >= {
            "config_path: config/experiments/finally_stage2.yaml": "command line",
            "steps: 7": "command line",
            "weight: 3": "command line",
            "trainer: finally_stage2_trainer": "config/experiments/finally_stage2.yaml",
            "updates_per_step: 2": "config/experiments/parts/ms_stft.yaml",
            "name: finally_gen": "config/experiments/parts/finally.yaml",
            "augmentations:": "config/experiments/parts/finally_16khz.yaml",
            "precision: fp32": "default",
        }.items()
    )


def test_a_network_is_shown_as_the_workflow_trains_it(capsys, schema):
    files = ["config/demo.yaml"]
    provenance.show("hifipp_denoise", [], files)
    shown = capsys.readouterr().out
    trained = load_pipeline(["config/config.yaml", *files], {}, schema)["experiments"]["hifipp_denoise"]
    assert yaml.safe_load(shown) == trained
    assert (
        sources(shown).items()
        >= {
            "run_name: hifipp_denoise": "name of the network",
            "results: results/demo": "config/demo.yaml",
            "resources: results/demo/resources": "config/demo.yaml",
            "batch_size: 4": "config/demo.yaml: common",
            "steps: 320": "config/demo.yaml: networks.hifipp_denoise.override",
            "trainer: hifi++_trainer": "config/experiments/parts/hifipp.yaml",
            "best: wb_pesq": "config/experiments/parts/hifi.yaml",
        }.items()
    )
    provenance.show("hifipp_denoise", ["exp.resources=elsewhere"], files)
    assert "elsewhere/prepared/voicebank/16000/train.csv" in capsys.readouterr().out


def test_what_cannot_be_shown_is_named(tmp_path, monkeypatch):
    with pytest.raises(
        UserError, match=r"hifipp_denoised: no such experiment file and no network of .*'hifipp_denoise'"
    ):
        provenance.show("hifipp_denoised", [], [])
    with pytest.raises(UserError, match=r"train\.stepz: unknown key"):
        provenance.show("hifigan", ["train.stepz=3"], [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"config\.yaml: not found in .*; run finallyse in the project's folder"):
        provenance.show("hifigan", [], [])


def test_where_the_workflow_ran_the_config_is_the_projects_under_the_folders_own(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".snakemake").mkdir()
    config = read_config(["demo_speech=null"])
    assert config["targets"] == list(NETWORKS) and config["results"] == "results"
    assert Path(config["networks"]["hifigan"]["experiment"]).samefile(root / "config/experiments/hifigan.yaml")
    (tmp_path / "config").mkdir()
    write(tmp_path / "config" / "config.yaml", "only: [hifigan]")
    assert read_config([])["targets"] == ["hifigan"]
    assert read_config([str(root / "config/demo.yaml")])["experiments"]["hifigan"]["generator"]["init_from"] == str(
        root / "resources/demo/hifigan.ckpt"
    )


def test_the_advice_of_the_readme_holds(schema, tmp_path, capsys):
    text = Path("config/README.md").read_text()
    block = re.search(r"    # (config/experiments/\S+\.yaml)\n((?:    .*\n)+)", text)
    shutil.copytree("config/experiments", tmp_path / "config/experiments")
    path = write(tmp_path / block[1], textwrap.dedent(block[2]))
    mine = load_experiment([f"exp.config_path={path}"], schema)
    assert mine.trainer == "finally_stage1_trainer"
    assert [augmentation["name"] for augmentation in mine.data.train.args["augmentations"]] == ["codec"]

    commands = re.findall(r"^    finallyse (config [^#\n]+)", text, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            main(command.split())
        assert not stop.value.code
        assert "trainer: finally_stage1_trainer" in capsys.readouterr().out


def test_overrides_interpolate_options_of_the_experiment_and_of_the_pipeline(root, schema, tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text(
        "networks: {finally_stage2: {override: {generator: {init_from: '${exp.results}/finally_stage1.ckpt', "
        "optimizer: {lr: '${discriminators.optimizer.lr}'}}}}}\n"
        "common: {exp: {threads: '${prepare_jobs}'}, train: {log_step: '${train.checkpoint_step}'}}\n"
    )
    config = load_pipeline([root / "config/config.yaml", overlay], {"results": "r"}, schema)
    experiment = config["experiments"]["finally_stage2"]
    assert experiment["generator"]["init_from"] == "r/finally_stage1.ckpt"
    assert experiment["generator"]["optimizer"]["lr"] == experiment["discriminators"]["optimizer"]["lr"]
    assert experiment["exp"]["threads"] == config["prepare_jobs"]
    assert experiment["train"]["log_step"] == experiment["train"]["checkpoint_step"]
