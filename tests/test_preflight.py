"""`finallyse check`: what would stop a training is found without data, weights or a GPU, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finallyse.config import load_pipeline
from finallyse.errors import UserError
from finallyse.models.checkpoint import save_checkpoint
from finallyse.options import Experiment, from_dict
from finallyse.preflight import networks_of, report
from finallyse.schema import build_schema
from finallyse.training.rehearsal import Saved, rehearse
from support import NETWORKS

TINY = ["config/config.yaml", "tests/data/small.yaml"]


@pytest.fixture(scope="module")
def schema():
    return build_schema()


@pytest.fixture
def check(root, tmp_path, schema, monkeypatch, capsys):
    """Check networks of a config: exit status, lines and errors."""
    monkeypatch.chdir(root)

    def run(*names: str, files=TINY, again=True, **override):
        overrides = {"results": f"{tmp_path}/r", "resources": f"{tmp_path}/s", "allow_cpu": True}
        if override:
            overrides["networks"] = {name: {"override": override} for name in names}
        config = load_pipeline(files, overrides, schema)
        status = report(config, networks_of(config, names), tmp_path / "passed", again)
        printed = capsys.readouterr()
        return status, printed.out.splitlines(), printed.err.splitlines()

    return run


def test_the_networks_of_the_recipes_pass(check, tmp_path):
    status, lines, errors = check("hifigan", "hifipp_denoise", "finally_stage3")
    assert (status, errors) == (0, [])
    passed = {line.split(":")[0] for line in lines if "a step can be made" in line}
    assert passed == {name for name in NETWORKS if not name.startswith("hifipp_bwe")}
    assert not any(path.is_file() for folder in "rs" for path in Path(tmp_path, folder).rglob("*")), (
        "nothing is written"
    )


def test_full_size_networks_pass_with_what_they_need(check):
    """With WavLM-large and the recipe's batch, on the meta device; operations agree with docs/cluster.md."""
    status, lines, errors = check("finally_stage2", files=["config/config.yaml"])
    assert (status, errors) == (0, [])
    first, second = (line for line in lines if "a step can be made" in line)
    assert first.startswith("finally_stage1: ") and "100000 steps" in first and "32 items at once" in first
    assert second.startswith("finally_stage2: ") and "TFLOP, about" in second


def test_what_passed_is_not_checked_again_until_something_changes(check):
    assert any("a step can be made" in line for line in check("hifigan", again=False)[1])
    assert not any("a step can be made" in line for line in check("hifigan", again=False)[1])
    changed = check("hifigan", again=False, data={"batch_size": 3})
    assert any("a step can be made" in line for line in changed[1])


@pytest.mark.parametrize(
    ("network", "override", "message"),
    [
        ("hifigan", {"data": {"train": {"args": {"segment": 8000}}}}, "segment=8000 must be a multiple of hop=256"),
        ("hifigan", {"data": {"train": {"args": {"n_mels": 40}}}}, "log-mel spectrogram [B, 80, F]"),
        ("hifigan", {"train": {"best": "stoi"}, "metrics": ["si_sdr"]}, "train.best=stoi: not among the numbers"),
        (
            "hifigan",
            {"generator": {"args": {"upsample_rates": [8, 8, 2]}}},
            "the networks and losses cannot be built: ValueError",
        ),
        ("hifigan", {"generator": {"init_from": "/no/such.ckpt"}}, "generator.init_from: /no/such.ckpt: no such file"),
        (
            "hifigan",
            {"data": {"validation": {"args": {"manifest": "/no/such.csv"}}}},
            "data.validation.args.manifest: /no/such.csv: no such file or folder",
        ),
        ("hifipp_denoise", {"data": {"train": {"args": {"sample_rate": 48000}}}}, "48000 Hz"),
        (
            "finally_stage2",
            {"generator": {"args": {"hifi_upsample_initial_channel": 32}}},
            "set generator.args to the values in that checkpoint",
        ),
        (
            "finally_stage1",
            {"generator": {"args": {"ssl_dim": 33}}},
            None,
        ),  # WavLM is not there: any width may be right
        ("finally_stage3", {"discriminators": {"init_from": "${exp.results}/finally_stage1.ckpt"}}, "no discriminator"),
    ],
)
def test_mistakes_are_told_before_anything_is_fetched(check, network, override, message):
    status, _, errors = check(network, **override)
    if message is None:
        assert (status, errors) == (0, [])
        return
    assert status == 2
    assert errors[-1].startswith(f"error: networks.{network}: ") and message in errors[-1]


def test_a_best_that_will_not_be_made(check):
    best = "${exp.results}/finally_stage1.best.ckpt"
    status, _, errors = check("finally_stage2", generator={"init_from": best})
    assert status == 0, errors
    with pytest.raises(
        UserError, match=r"finally_stage9: no network or sweep of this config; did you mean 'finally_stage"
    ):
        check("finally_stage9")


def test_a_checkpoint_of_ones_own_must_fit(check, tmp_path):
    from finallyse.models import models_registry

    torch.manual_seed(0)
    weights = models_registry["hifigan_gen"](upsample_initial_channel=32).state_dict()
    config = {"generator": {"name": "hifigan_gen"}}
    save_checkpoint(tmp_path / "own.ckpt", network="own", config=config, step=1, generator=weights, discriminators={})
    status, _, errors = check("hifigan", generator={"init_from": f"{tmp_path}/own.ckpt"})
    assert status == 2 and f"{tmp_path}/own.ckpt: " in errors[0] and "has shape" in errors[0]


def test_a_part_that_computes_with_values_is_tried_with_values(check, monkeypatch):
    from finallyse.losses.mel import L1MelLoss

    forward = L1MelLoss.forward
    monkeypatch.setattr(
        L1MelLoss, "forward", lambda self, **inputs: forward(self, **inputs) * inputs["wav"].max().item()
    )
    monkeypatch.setattr("finallyse.training.rehearsal.SMALL", 0)  # without values at first, as for large networks
    status, lines, errors = check("hifigan")
    assert (status, errors) == (0, [])
    assert any("a part computes with values" in line for line in lines)
    monkeypatch.setattr(L1MelLoss, "forward", lambda self, **inputs: inputs["wav_hat"] @ inputs["wav"].max().item())
    status, _, errors = check("hifigan")
    assert status == 2 and "a training step fails: TypeError: " in errors[0] and "test_preflight.py, line" in errors[0]


def test_saved_bytes_are_followed():
    weight = torch.ones(1000, 1000, requires_grad=True)
    with Saved([weight]) as saved:
        x = torch.ones(1000, 1000, requires_grad=True)
        y = (x * weight).sin()
        assert saved.live == 2 * 4e6  # x and the sine's input, not the parameter
        z = (y * y).sum()
        assert saved.live == saved.peak == 3 * 4e6  # y once
        del y
        z.backward()
    assert saved.live == 0 and saved.peak == 3 * 4e6


def test_microbatches_that_do_not_divide_the_batch(root, schema, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    overrides = {"results": f"{tmp_path}/r", "resources": f"{tmp_path}/s"}
    options = load_pipeline(TINY, overrides, schema)["experiments"]["hifipp_denoise"]
    options["data"] |= {"batch_size": 8, "sub_batch_size": 3}
    whole = rehearse(from_dict(Experiment, options), dict)
    assert whole.microbatch == 3
    options["data"]["sub_batch_size"] = None
    more = rehearse(from_dict(Experiment, options), dict)
    assert more.microbatch == 8 and more.memory > whole.memory
    assert abs(more.flop / whole.flop - 1) < 0.3  # with several microbatches the discriminators' pass is repeated
    with pytest.raises(UserError, match="cannot be shared by 9 GPUs"):
        rehearse(from_dict(Experiment, options), dict, processes=9)


def test_the_workflow_starts_nothing_that_would_fail(root, tmp_path):
    overlay = tmp_path / "wrong.yaml"
    overlay.write_text(
        f"results: {tmp_path}/r\nresources: {tmp_path}/s\nnetworks:\n"
        "  hifigan: {override: {data: {train: {args: {segment: 8000}}}}}\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", "--nolock", "--cores", "1"]
        + ["--configfile", "config/demo.yaml", str(overlay), "--", "hifigan"],
        cwd=root,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 1
    lines = run.stderr.splitlines()
    assert any(
        "error: networks.hifigan: " in line and "segment=8000 must be a multiple of hop=256" in line for line in lines
    )
    assert "nothing was started" in run.stderr and "Traceback" not in run.stderr
    assert not any(Path(tmp_path, folder, "downloads").exists() for folder in "rs") and "Packing" not in run.stderr
