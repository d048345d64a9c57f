"""Configurations that are none: each is one line with the place and the remedy, before anything is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from finallyse.cli import main
from finallyse.config import load_experiment, load_pipeline, read_config, read_file
from finallyse.errors import UserError
from finallyse.options import Experiment, from_dict
from finallyse.recipe import choices
from finallyse.schema import argument_defaults, build_schema

HIFIGAN = "config/experiments/hifigan.yaml"


@pytest.fixture(scope="module")
def schema() -> dict:
    return build_schema()


@pytest.fixture(autouse=True)
def in_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


def hifigan(schema: dict, overrides: dict | None = None, **options: object) -> dict:
    """The pipeline's config with hifigan alone, which is quick to complete."""
    return load_pipeline([], {"networks": {"hifigan": {"experiment": HIFIGAN}}} | options | (overrides or {}), schema)


# --- files ------------------------------------------------------------------------------------------------------------

BOMB = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '1'] * 10)}]" for i in range(9))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("results: a\nseed: 1\nresults: b\n", ", line 3, column 1: results: given before, in line 1"),
        ("common:\n  exp: {seed: 1, seed: 2}\n", ", line 2, column 18: seed: given before, in line 2"),
        ("common:\n\texp: 1\n", ", line 2, column 1: found character '\\t' that cannot start any token; YAML is ind"),
        (b"results: a\nseed: \xe4\n", ", line 2, column 7: byte 0xe4 is not UTF-8; save the file as UTF-8"),
        ("results: \x07", ", line 1, column 10: the character U+0007 is not allowed in YAML"),
        ("seed: 1\nresults: [a", ", line 2, column 12: expected ',' or ']', but got '<stream end>'"),
        ("common: &a\n  exp: *a\n", ", line 1, column 9: refers to itself"),
        ("common: &a [*a]", ", line 1, column 9: refers to itself"),
        ("results: *b", ", line 1, column 10: found undefined alias 'b'"),
        (BOMB, ": more than 100000 values; this is no config file"),
        ("[" * 1000, ": nested too deeply for a config"),
        ("#" * 5_000_000, ": larger than 4 MB; this is no config file"),
        ("results: !!python/object:os.system x", ", line 1, column 10: could not determine a constructor for the tag"),
        ("? [a]\n: b", ", line 1, column 3: found unhashable key"),
        ("seed: " + "9" * 5000, ": not readable as YAML: Exceeds the limit"),
    ],
    ids=range(15),
)
def test_yaml_that_is_none_is_told_with_its_place(tmp_path, text, message):
    path = tmp_path / "my.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_file(path)
    assert message in str(error.value) and str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["[", "a: b: c", "!!python/name:os.system", "\x07", "9" * 5000])
def test_a_value_of_the_command_line_that_is_no_yaml_is_told(value):
    with pytest.raises(UserError, match=r"^resources=") as error:
        read_config([f"resources={value}"])
    assert "\n" not in str(error.value)


# --- names and folders ------------------------------------------------------------------------------------------------

FOR_A_SHELL = ["x$(touch y)", "x`touch y`", "x'y", 'x"y', "x{y}", "x\ny", "-x", "x\\\\y"]


@pytest.mark.parametrize("folder", [*FOR_A_SHELL, "../x", "x/../../y", "x/..", "..", "", "/"])
@pytest.mark.parametrize("option", ["results", "resources"])
def test_a_folder_that_commands_would_misread_is_refused(option, folder, schema):
    with pytest.raises(
        UserError, match=rf"{option}: .* is not fit for a folder: .*; give the absolute path, or a link"
    ):
        hifigan(schema, **{option: folder})


@pytest.mark.parametrize("folder", ["/data/my results", "a/b-c_d.e", "/data/run (1)", "Ergebnisse/März", "a..b", "./x"])
def test_ordinary_folders_go_on_working(folder, schema):
    config = hifigan(schema, results=folder, resources=folder)
    exp = config["experiments"]["hifigan"]["exp"]
    assert (config["results"], exp["results"], exp["resources"]) == (folder, folder, folder)


@pytest.mark.parametrize("name", [*FOR_A_SHELL, "../x", "a/b", "/x", "a b", ".x", "a..b", "", "${x}", 5])
def test_a_name_that_is_none_of_a_file_is_refused(name, schema):
    with pytest.raises(UserError, match=r"config: networks: .*(is not fit for a name of files|must be string)"):
        hifigan(schema, networks={name: {"experiment": HIFIGAN}})
    if isinstance(name, str) and name != "${x}":
        for arguments in ([f"exp.run_name={json.dumps(name)}"], [f"exp.run_name='{name}'"]):
            with pytest.raises(UserError) as error:
                load_experiment([f"exp.config_path={HIFIGAN}", *arguments], schema)
            assert "\n" not in str(error.value)


def test_names_on_the_command_line(schema):
    with pytest.raises(UserError, match=r"exp.run_name: '../../x' is not fit for a name of files"):
        load_experiment([f"exp.config_path={HIFIGAN}", "exp.run_name=../../x"], schema)
    for name in ("finally_stage3.best", "a-b+c", "läuft"):
        assert load_experiment([f"exp.config_path={HIFIGAN}", f"exp.run_name='{name}'"], schema).exp.run_name == name


@pytest.mark.parametrize("name", [*FOR_A_SHELL, "a/b", "../x"])
def test_a_compared_system_has_a_name_that_commands_can_hold(name, schema, tmp_path):
    with pytest.raises(UserError, match=r"--config: compare: .* is not fit for a name: "):
        hifigan(schema, compare={name: {"folder": str(tmp_path), "network": "hifigan"}})
    assert hifigan(schema, compare={"FINALLY (authors)": {"folder": str(tmp_path), "network": "hifigan"}})


# --- the home folder --------------------------------------------------------------------------------------------------


def test_the_home_folder_is_meant_by_a_tilde(schema, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = hifigan(
        schema,
        results="~/results/",
        resources="~/data",
        corpora={"vctk": {"folder": "~/my speech"}},
        compare={"Other": {"folder": "~/", "network": "hifigan"}},
        common={"generator": {"init_from": "~/a.ckpt"}, "wavlm": "~/wavlm"},
    )
    experiment = config["experiments"]["hifigan"]
    assert (config["results"], config["resources"]) == (f"{tmp_path}/results", f"{tmp_path}/data")
    assert config["corpora"]["vctk"]["folder"] == f"{tmp_path}/my speech"
    assert config["compare"]["Other"]["folder"] == f"{tmp_path}/"
    assert (experiment["generator"]["init_from"], experiment["wavlm"]) == (f"{tmp_path}/a.ckpt", f"{tmp_path}/wavlm")
    assert experiment["data"]["train"]["args"]["manifest"].startswith(f"{tmp_path}/data/prepared/")
    manifest = "data.train.args.manifest='~/my.csv'"
    by_hand = load_experiment([f"exp.config_path={HIFIGAN}", "exp.results='~/results'", manifest], schema)
    assert (by_hand.exp.results, by_hand.data.train.args["manifest"]) == (f"{tmp_path}/results", f"{tmp_path}/my.csv")
    with pytest.raises(
        UserError, match=r"results: '~nobody\.at\.all/x': there is no such user; write the path in full"
    ):
        hifigan(schema, results="~nobody.at.all/x")


def test_where_the_home_folder_is_does_not_define_a_network(schema, monkeypatch):
    def recipe(**options: str) -> str:
        experiment = hifigan(schema, **options)["experiments"]["hifigan"]
        return json.dumps(choices(from_dict(Experiment, experiment), argument_defaults(schema)))

    before = recipe()
    monkeypatch.setenv("HOME", "/elsewhere")
    assert recipe() == recipe(results="~/results", resources="~/resources") == before


# --- the environment --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    ["${oc.env:SECRET}", "a/${oc.env:SECRET,x}", "${oc.create:'${oc.env:SECRET}'}", "${oc.decode:${oc.env:SECRET}}"],
)
def test_the_environment_does_not_get_into_checkpoints(value, schema, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "xyzzy")
    (tmp_path / "my.yaml").write_text(f"extends: {Path.cwd()}/{HIFIGAN}\nwavlm: {json.dumps(value)}\n")
    for attempt in (
        lambda: load_experiment([f"exp.config_path={tmp_path}/my.yaml"], schema),
        lambda: load_experiment([f"exp.config_path={HIFIGAN}", f"wavlm={json.dumps(value)}"], schema),
        lambda: hifigan(schema, common={"wavlm": value}),
        lambda: hifigan(schema, networks={"hifigan": {"experiment": HIFIGAN, "override": {"wavlm": value}}}),
        lambda: hifigan(schema, demo_speech=value, common={"wavlm": "${demo_speech}"}),
        lambda: hifigan(schema, results=value),
    ):
        with pytest.raises(UserError) as error:
            attempt()
        assert "xyzzy" not in str(error.value) and "\n" not in str(error.value)
        assert "SECRET" in str(error.value)
    if value == "${oc.env:SECRET}":
        assert hifigan(schema, demo_speech=value)["demo_speech"] == "xyzzy"  # which no checkpoint records
        with pytest.raises(UserError, match=r'would be stored in the checkpoint; write the value itself, or .* key="'):
            hifigan(schema, common={"wavlm": value})


# --- anything ---------------------------------------------------------------------------------------------------------

OF_KEYS = """
    exp exp.seed exp.run_name exp.results exp.threads exp.config_path trainer wavlm metrics x.y . exp. exp@x hydra.run
    generator generator.name generator.args generator.args.upsample_rates generator.optimizer.betas
    discriminators.parts discriminators.parts.mpd discriminators.parts.mpd.args
    losses losses.generator losses.generator.gen_loss losses.generator.gen_loss.weight losses.generator.lmos.args.hop
    data.train data.train.args data.train.args.manifest data.batch_size train.steps train.clip.norm train.best
"""
OF_VALUES = r"""
    null ~ {} [] [1] {a:1} {a:{b:{c:1}}} nan inf 1e999 -1 0 1.0 true ??? ä x=y ../x ~/x ~x/y 2020-01-01 * } ' " \\ a,b
    range(1,3) choice(a,b) glob(*) int(x) ${ ${x} ${exp} ${exp.results} ${oc.create:[1]} ${oc.decode:'{'} ${oc.select:x}
    ${now:%Y} ${hydra:runtime.cwd}
"""
KEYS = ["", *OF_KEYS.split()]
VALUES = ["", "'a b'", "\0", "\n", "\x1b[31m", "\ud800", "9" * 5000, *OF_VALUES.split()]
OVERRIDES = st.builds(
    "{}{}={}".format, st.sampled_from(["", "", "+", "++", "~"]), st.sampled_from(KEYS), st.sampled_from(VALUES)
)
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_subnormal=False)
    | st.text(max_size=8)
    | st.sampled_from(VALUES)
)
TREES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS) | PLAIN, inner, max_size=2)
)
PIPELINE_KEYS = ["results", "seed", "networks", "common", "corpora", "compare", "rooms", "metrics", "extends"]


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(overrides=st.lists(OVERRIDES, min_size=1, max_size=2))
@example(overrides=["data.train.args=${oc.select:x}"])
@example(overrides=["losses.discriminator=???"])
@example(overrides=["losses="])
@example(overrides=["generator.name=a,b"])
@example(overrides=["exp.seed=range(1,3)"])
@example(overrides=["+="])
@example(overrides=["+discriminators.parts.msd.args=???"])
@example(overrides=["exp.device=" + "9" * 5000])
def test_any_override_works_or_is_one_line(overrides, schema):
    try:
        load_experiment([f"exp.config_path={HIFIGAN}", *overrides], schema)
    except UserError as error:
        assert "\n" not in str(error)


@settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(options=st.dictionaries(st.sampled_from(PIPELINE_KEYS), TREES, min_size=1, max_size=2))
@example(options={"networks": {"hifigan": {"experiment": HIFIGAN, "reaches": "${exp.seed}"}}})
@example(options={"networks": "${seed}"})
@example(options={"common": "${seed}", "compare": "${seed}"})
def test_any_pipeline_works_or_is_one_line(options, schema):
    try:
        hifigan(schema, options)
    except UserError as error:
        assert "\n" not in str(error)


def test_the_command_line_says_it_in_one_line(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["config", HIFIGAN, "exp.run_name=../../x"])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith(f"error: {HIFIGAN} with the command line: exp.run_name: ")
    assert said.count("\n") == 1
