"""Sweeps: their networks' names, experiments and table in the report; `only`."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pandas
import pytest
import yaml
from omegaconf import OmegaConf
from scipy.stats import t, ttest_rel

from finallyse import provenance
from finallyse.config import _resolve, _resolve_plain, load_pipeline, merge, network_experiment
from finallyse.errors import UserError
from finallyse.options import Experiment, defaults
from finallyse.report.collect import collect
from finallyse.report.html import Options, render
from finallyse.report.swept import read_swept
from finallyse.schema import read_schema
from finallyse.sweep import Sweep, read_sweep

LR, SEED = "generator.optimizer.lr", "exp.seed"
BASE = "config/config.yaml"


@pytest.fixture(scope="module")
def schema(root: Path) -> dict:
    return read_schema(root / "config" / "schema.json")


@pytest.fixture(autouse=True)
def in_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def of_grid(grid: dict, name: str = "s") -> Sweep:
    return read_sweep(name, {"base": "hifigan", "grid": grid})


def load(schema: dict, folder: Path, text: str) -> dict:
    (folder / "my.yaml").write_text(text)
    return load_pipeline([BASE, folder / "my.yaml"], {}, schema)


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (1e-4, "1e-4"),
        (0.00015, "1p5e-4"),
        (0.5, "0p5"),
        (0.01, "0p01"),
        (0.998, "0p998"),
        (-1.5, "-1p5"),
        (2.0, "2"),
        (100_000, "100000"),
        (1e22, "1e22"),
        (True, "true"),
        (None, "null"),
        ("bf16", "bf16"),
        ([0.8, 0.99], "0p8-0p99"),
        ([8, 16, 32], "8-16-32"),
    ],
)
def test_values_in_names(value, word):
    assert list(of_grid({"train.x": [value]}).networks) == [f"s_x{word}"]


@pytest.mark.parametrize(
    "value", ["a/b.yaml", "${exp.results}/x.ckpt", "x" * 200, {"lr": 1}, [[1, 2], [3]], "a b;c", ""]
)
def test_other_values_are_digests(value):
    (name,) = of_grid({"train.x": [value]}).networks
    assert name.removeprefix("s_x").isalnum() and len(name) == 3 + 8


def test_names_stay_when_a_grid_grows_or_is_reordered():
    small = of_grid({SEED: [1, 2], LR: [1e-4]})
    large = of_grid({LR: [5e-5, 1e-4, 2e-4], SEED: [3, 2, 1]})
    assert list(small.networks) == ["s_lr1e-4_seed1", "s_lr1e-4_seed2"]
    assert small.networks.items() <= large.networks.items() and len(large.networks) == 9
    both = of_grid({LR: [1e-4], "discriminators.optimizer.lr": [1e-3], SEED: [1]})
    assert list(both.networks) == ["s_discriminators-optimizer-lr1e-3_generator-optimizer-lr1e-4_seed1"]


def test_a_networks_experiment_is_the_bases_but_for_its_values(schema, tmp_path):
    config = load(
        schema,
        tmp_path,
        "networks: {hifipp_denoise: {gpus: 2, mem_gb: 7, improves: [stoi], override: {train: {steps: 9}}}}\n"
        "sweep:\n"
        "  denoise_lr: {base: hifipp_denoise, grid: {generator.optimizer.lr: [1e-4, 2e-4], exp.seed: [1, 2, 3]}}\n",
    )
    members = [name for name in config["networks"] if name.startswith("denoise_lr_")]
    assert members == [f"denoise_lr_lr{lr}_seed{seed}" for lr in ("1e-4", "2e-4") for seed in (1, 2, 3)]
    assert config["targets"] == list(config["networks"]) and len(members) == 6
    assert {**config["networks"][members[0]], "improves": ["stoi"]}.items() >= {
        "gpus": 2, "mem_gb": 7, "improves": ["stoi"], "experiment": "config/experiments/hifipp_denoise.yaml"
    }.items()  # fmt: skip
    assert config["networks"][members[0]]["improves"] == [], "goals are the base's own"
    experiment = config["experiments"]["denoise_lr_lr2e-4_seed3"]
    expected = merge(
        config["experiments"]["hifipp_denoise"],
        {"exp": {"run_name": "denoise_lr_lr2e-4_seed3", "seed": 3}, "generator": {"optimizer": {"lr": 2e-4}}},
        {"data": {"train": {"args": {"seed": 3}}}},  # which the experiment takes from exp.seed
    )
    assert experiment == expected and experiment["train"]["steps"] == 9


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("{x: {base: hifigann, grid: {exp.seed: [1]}}}", r"x\.base: no network 'hifigann'; did you mean 'hifigan'"),
        ("{x: {grid: {exp.seed: [1]}}}", r"sweep\.x\.base is required"),
        ("{x: {base: hifigan, grid: {exp.sed: [1]}}}", r"sweep\.x\.grid: exp\.sed: unknown key; did you mean 'seed'"),
        (
            "{x: {base: hifigan, grid: {generator.args.resblok: [1]}}}",
            r"networks\.x_resblok1 \(.*hifigan\.yaml\): generator\.args\.resblok: unknown key; did you mean 'resblock'",
        ),
        ("{x: {base: hifigan, grid: {exp.seed: [a]}}}", r"sweep\.x\.grid: exp\.seed: must be integer, got 'a'"),
        ("{x: {base: hifigan, grid: {exp.seed: 3}}}", r"my\.yaml: sweep\.x\.grid\.exp\.seed: must be array or null"),
        ("{x: {base: hifigan, grid: {exp.seed: []}}}", r"sweep\.x\.grid\.exp\.seed: is empty"),
        ("{x: {base: hifigan, grid: {exp.seed: null}}}", r"sweep\.x\.grid: is empty"),
        ("{x: {base: hifigan, grid: {exp.seed: [1, 1]}}}", r"sweep\.x\.grid\.exp\.seed: 1 is listed twice"),
        ("{x: {base: hifigan, grid: {3: [1]}}}", r"sweep\.x\.grid\.3: must be an option of the experiment"),
        ("{x: {base: hifigan, grid: {exp.results: [a]}}}", r"sweep\.x\.grid: exp\.results: is set by the workflow"),
        (
            "{x: {base: hifigan, grid: {generator.optimizer: [{lr: 1e-3}], generator.optimizer.lr: [1e-4]}}}",
            r"sweep\.x\.grid: generator\.optimizer contains generator\.optimizer\.lr",
        ),
        ("{x y: {base: hifigan, grid: {exp.seed: [1]}}}", r"sweep\.x y: the name may hold only letters"),
        ("{3: {base: hifigan, grid: {exp.seed: [1]}}}", r"sweep\.3: the name may hold only letters"),
        ("{hifigan: {base: hifigan, grid: {exp.seed: [1]}}}", r"sweep\.hifigan: is also the name of a network"),
        (
            "{a: {base: hifigan, grid: {exp.seed: [1]}}, a_seed1: {base: hifigan, grid: {exp.seed: [1]}}}",
            r"sweep\.a: its network a_seed1 has the name of a sweep",
        ),
        (
            "{b: {base: hifigan, grid: {exp.seed: [1]}}, a: {base: b_seed1, grid: {exp.seed: [1]}}}",
            r"sweep\.a\.base: no network 'b_seed1'",
        ),
        (
            f"{{x: {{base: hifigan, grid: {{exp.seed: {list(range(100))}, train.steps: {list(range(1, 100))}}}}}}}",
            r"sweep\.x\.grid: has 9,900 combinations, each a training; at most 3,000",
        ),
        (f"{{{'x' * 150}: {{base: hifigan, grid: {{exp.seed: [1]}}}}}}", r"is a name of more than 120 characters"),
    ],
)  # fmt: skip
def test_a_wrong_sweep_is_one_line(sweep, message, schema, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        load(schema, tmp_path, f"sweep: {sweep}")
    assert "\n" not in str(error.value)


def test_an_overlay_removes_a_sweep_and_an_option(schema, tmp_path):
    (tmp_path / "base.yaml").write_text(
        "sweep:\n"
        "  a: {base: hifigan, grid: {exp.seed: [1, 2]}}\n"
        "  b: {base: hifigan, grid: {exp.seed: [1], train.tf32: [true]}}\n"
    )
    config = load(schema, tmp_path, "{extends: base.yaml, sweep: {a: null, b: {grid: {exp.seed: null}}}}")
    assert config["targets"][9:] == ["b_tf32true"]


def test_only_keeps_what_is_named_and_what_it_starts_from(schema, tmp_path):
    config = load(schema, tmp_path, "only: [finally_stage2, hifigan]")
    assert config["targets"] == ["hifigan", "finally_stage2"]
    assert list(config["experiments"]) == list(config["networks"]) == ["hifigan", "finally_stage1", "finally_stage2"]
    sweep = "sweep: {s: {base: finally_stage3_pretrain, grid: {exp.seed: [1, 2]}}}\n"
    config = load(schema, tmp_path, f"{sweep}only: [s_seed2]\n")
    assert config["targets"] == ["s_seed2"]
    assert list(config["experiments"]) == ["finally_stage1", "finally_stage2", "s_seed2"], "the base is not needed"
    assert load(schema, tmp_path, f"{sweep}only: [s]\n")["targets"] == ["s_seed1", "s_seed2"]
    with pytest.raises(UserError, match=r"config: only: no network or sweep 'hifigann'; did you mean 'hifigan'"):
        load(schema, tmp_path, "only: [hifigann]")


def test_a_sweep_is_shown_with_its_sources(schema, tmp_path, capsys):
    load(schema, tmp_path, "sweep: {s: {base: hifipp_denoise, grid: {generator.optimizer.lr: [1e-3], exp.seed: [7]}}}")
    provenance.show("s_lr1e-3_seed7", [], [str(tmp_path / "my.yaml")])
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["generator"]["optimizer"]["lr"] == 0.001
    assert shown.count("# sweep.s.grid") == 2 and "# name of the network" in shown


def test_plain_interpolations_are_resolved_as_omegaconf_does(schema):
    config = load_pipeline([BASE, "config/demo.yaml"], {}, schema)
    for name in config["networks"]:
        full = merge(defaults(Experiment), network_experiment(config, name, schema)[0])
        assert _resolve_plain(full, full) == OmegaConf.to_container(OmegaConf.create(full), resolve=True)


@pytest.mark.parametrize(
    "values",
    [
        {"a": "${b}", "b": 1.5, "c": "${d.e}/x${d.e}", "d": {"e": "y"}, "f": ["${d}"]},
        {"a": "${b}-${c}", "b": 3, "c": True},
        {"a": "${.b}", "b": "\\${c}", "c": "$5"},
        {"a": "${oc.decode:'3'}"},
    ],
)
def test_other_interpolations_are_those_of_omegaconf(values):
    assert _resolve(values, "x") == OmegaConf.to_container(OmegaConf.create(values), resolve=True)


@pytest.mark.parametrize("values", [{"a": "${b}", "b": "${a}"}, {"a": "${b}"}, {"a": "${b.c}", "b": "???"}])
def test_interpolations_that_lead_nowhere_are_one_line(values):
    with pytest.raises(UserError, match=r"^x: ") as error:
        _resolve(values, "x")
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# The report

SETTINGS = {"1e-4": 0.0, "2e-4": 0.3}
SWEPT = {LR: [1e-4, 2e-4], SEED: [1, 2, 3]}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """WB-PESQ of twelve utterances: the second learning rate gains 0.3; one network has no results."""
    rng = np.random.default_rng(0)
    given = 2 + rng.standard_normal(12)
    (tmp_path / "metrics").mkdir()
    for lr, gain in SETTINGS.items():
        for seed in (1, 2, 3):
            if (lr, seed) == ("2e-4", 2):
                continue
            output = given + gain + 0.05 * seed + 0.02 * rng.standard_normal(12)
            table = pandas.DataFrame(
                {"utterance": [f"u{i}" for i in range(12)], "wb_pesq": output, "noisy_wb_pesq": given}
            )
            table.to_csv(tmp_path / "metrics" / f"s_lr{lr}_seed{seed}.csv", index=False)
            row = {"metric": "wb_pesq", "mean": output.mean(), "ci95": 0.1, "n": 12, "unscored": 0, "reasons": ""}
            row |= {"missing": "", "unit": "", "better": "higher", "paper": "", "noisy_mean": 2.0, "noisy_ci95": 0.1}
            absent = row | {
                "metric": "stoi",
                "mean": "",
                "ci95": "",
                "n": 0,
                "missing": "not installed",
                "noisy_mean": "",
            }
            pandas.DataFrame([row, absent]).to_csv(
                tmp_path / "metrics" / f"s_lr{lr}_seed{seed}.summary.csv", index=False
            )
    return tmp_path


def test_settings_have_means_and_deviations_over_seeds_and_paired_intervals(results):
    swept = read_swept(results, of_grid(SWEPT))
    first, second = swept.settings
    tables = [pandas.read_csv(results / "metrics" / f"s_lr1e-4_seed{seed}.csv") for seed in (1, 2, 3)]
    means = [table["wb_pesq"].mean() for table in tables]
    cell = first.cells["wb_pesq"]
    assert (cell.mean, cell.deviation) == pytest.approx((statistics.mean(means), statistics.stdev(means)))
    assert first.values == ("0.0001",) and second.values == ("0.0002",) and cell.difference is None
    assert second.measured == ["s_lr2e-4_seed1", "s_lr2e-4_seed3"] and swept.absent == ["s_lr2e-4_seed2"]

    def over_seeds(lr: str, seeds: tuple[int, ...]) -> np.ndarray:
        return np.mean(
            [pandas.read_csv(results / "metrics" / f"s_lr{lr}_seed{s}.csv")["wb_pesq"] for s in seeds], axis=0
        )

    ours, theirs = over_seeds("2e-4", (1, 3)), over_seeds("1e-4", (1, 2, 3))
    difference = second.cells["wb_pesq"].difference
    assert difference.pairs == 12 and difference.interval.mean == pytest.approx((ours - theirs).mean())
    interval = ttest_rel(ours, theirs).confidence_interval()
    assert (difference.interval.low, difference.interval.high) == pytest.approx((interval.low, interval.high))
    changes = ours - tables[0]["noisy_wb_pesq"]
    half = t.ppf(0.975, 11) * changes.std(ddof=1) / math.sqrt(12)
    change = second.cells["wb_pesq"].change.interval
    assert (change.mean, change.high - change.mean) == pytest.approx((changes.mean(), half))


def test_the_page_tells_the_number_of_seeds_and_what_is_missing(results):
    page = render(collect(results, [], sweeps=[of_grid(SWEPT)]), Options(3, 8, None))
    for told in ("2 of 3", "against the first row", "standard deviation (±) over the seeds", "not installed"):
        assert told in page, told
    assert "s: 1 of 6 networks without results" in page and "s_lr2e-4_seed2" in page
    assert f"<code>{LR}</code>" in page and f"<code>{SEED}</code>" not in page
    assert 'class="change better"' in page and ">1 sweep ·" in page.replace('class="sub"', "")


def test_without_seeds_no_deviation_is_claimed(results):
    for seed in ("1e-4", "2e-4"):
        for suffix in (".csv", ".summary.csv"):
            (results / "metrics" / f"s_lr{seed}_seed1{suffix}").rename(results / "metrics" / f"s_lr{seed}{suffix}")
    sweep = of_grid({LR: [1e-4, 2e-4]})
    assert [math.isnan(setting.cells["wb_pesq"].deviation) for setting in read_swept(results, sweep).settings] == [
        True
    ] * 2
    page = render(collect(results, [], sweeps=[sweep]), Options(3, 8, None))
    assert "over the seeds" not in page and '<th scope="col" class="n">Seeds</th>' not in page


def test_no_results_at_all_are_an_error_and_the_script_reads_the_grid(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no results of s yet"):
        collect(tmp_path, [], sweeps=[of_grid(SWEPT)])
    monkeypatch.syspath_prepend("scripts")
    from report import parse_sweep

    assert parse_sweep("s", "hifigan", json.dumps(SWEPT)) == of_grid(SWEPT)
    with pytest.raises(UserError, match="--sweep s: the grid must be option -> values as JSON"):
        parse_sweep("s", "hifigan", "[1")
