"""The workflow as typed by users: plans, targets, refusals. Nothing is trained here; `make demo` does that."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support import NETWORKS

SNAKEMAKE = str(Path(sys.executable).parent / "snakemake")


def snakemake(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SNAKEMAKE, "--nolock", *arguments],
        cwd=root,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def planned(output: str) -> dict[str, int]:
    """Rule name -> number of jobs, from the table of a dry run."""
    return {name: int(count) for name, count in re.findall(r"^(\w[\w.]*)\s+(\d+)$", output, re.MULTILINE)}


def test_the_bare_command_plans_the_paper_and_only_what_it_needs(root, tmp_path):
    place = ["--config", f"results={tmp_path}/results", f"resources={tmp_path}/resources"]
    run = snakemake(root, "--cores", "8", f"{tmp_path}/results/finally_stage3.ckpt", "-n", *place)
    assert run.returncode == 0, run.stderr
    jobs = planned(run.stdout + run.stderr)
    assert jobs["train_network"] == 4
    trained = set(re.findall(r"Training (\w+);", run.stdout + run.stderr))
    assert trained == {"finally_stage1", "finally_stage2", "finally_stage3_pretrain", "finally_stage3"}
    assert not re.search(r"VCTK|hifigan|hifipp", run.stdout + run.stderr), "the vocoder and HiFi++ are not needed"
    assert not any(name.startswith("pack") for name in jobs), "the paper's corpora are downloaded, not packed"
    assert not (tmp_path / "results").exists() and not (tmp_path / "resources").exists(), "a dry run writes nothing"


@pytest.mark.parametrize("config", [[], ["--configfile", "config/demo.yaml"]], ids=["paper", "demo"])
def test_all_trains_every_network_and_reports(root, tmp_path, config):
    run = snakemake(root, "--cores", "2", "-n", *config, "--config", f"results={tmp_path}/r", f"resources={tmp_path}/s")
    assert run.returncode == 0, run.stderr
    jobs = planned(run.stdout + run.stderr)
    assert jobs["train_network"] == 9 and jobs["report"] == 1
    assert set(re.findall(r"Training (\w+);", run.stdout + run.stderr)) == set(NETWORKS)


def test_every_networks_name_is_a_target(root, tmp_path):
    place = ["--config", f"results={tmp_path}/r", f"resources={tmp_path}/s"]
    run = snakemake(root, "--cores", "2", "-n", *sorted(set(NETWORKS)), "--configfile", "config/demo.yaml", *place)
    assert run.returncode == 0, run.stderr
    jobs = planned(run.stdout + run.stderr)
    assert all(jobs[name] == 1 for name in set(NETWORKS))


def test_learn_is_everything_and_the_check(root, tmp_path):
    """The command of `make learn`, with your own folder, up to the dry run."""
    shutil.copytree(root / "resources" / "demo" / "speech", tmp_path / "my speech")
    made = subprocess.run(
        ["make", "-n", "learn", f"SPEECH={tmp_path}/my speech", f"RESULTS={tmp_path}/r"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    command = shlex.split(next(line for line in made.stdout.splitlines() if line.startswith(".venv/bin/snakemake")))
    assert "learn" in command and f"The report: {tmp_path}/r/report.html" in made.stdout
    run = snakemake(root, "-n", *command[1:])
    assert run.returncode == 0, run.stderr
    told = run.stdout + run.stderr
    jobs = planned(told)
    assert jobs["learn"] == jobs["show_improvement"] == jobs["report"] == 1
    assert jobs["train_network"] == jobs["compute_metrics"] == 7
    assert f"Collecting speech from {tmp_path}/my speech" in told and f"Writing {tmp_path}/r/improvement.md" in told
    assert "Checking what is asked of each network" in told
    assert re.search(r"^learn \(Everything, and then", snakemake(root, "--list-target-rules").stdout, re.MULTILINE)


def test_learn_without_anything_asked_for_stops_before_any_training(root, tmp_path):
    place = ["--configfile", "config/demo.yaml", "--config", f"results={tmp_path}/r"]
    run = snakemake(root, "--cores", "2", *place, "--", "learn")
    assert run.returncode != 0
    assert "error: target learn checks what is asked of the networks, and nothing is" in run.stderr
    assert "Traceback" not in run.stderr and not (tmp_path / "r").exists()


def test_data_fetches_and_prepares_and_nothing_else(root, tmp_path):
    place = ["--config", f"results={tmp_path}/r", f"resources={tmp_path}/s"]
    run = snakemake(root, "--cores", "2", "-n", "data", *place)
    assert run.returncode == 0, run.stderr
    jobs = planned(run.stdout + run.stderr)
    assert jobs["download"] > 10 and jobs["prepare_corpus"] >= 9
    assert not jobs.keys() & {"train_network", "enhance_validation", "compute_metrics", "report"}


def test_a_machine_without_a_gpu_is_told_before_any_download(root, tmp_path):
    place = ["--config", f"results={tmp_path}/r", f"resources={tmp_path}/s"]
    run = snakemake(root, "--cores", "2", f"{tmp_path}/r/finally_stage1.ckpt", *place)
    assert run.returncode != 0
    assert "error: no GPU is visible" in run.stderr
    assert "allow_cpu=true" in run.stderr and "config/demo.yaml" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "s").exists() or not any((tmp_path / "s").rglob("*.*")), "nothing was downloaded"


def test_a_wrong_config_is_one_line(root):
    run = snakemake(root, "--cores", "2", "-n", "--config", "demo_spech=x")
    assert run.returncode != 0
    assert "error: --config: demo_spech: unknown key; did you mean 'demo_speech'?" in run.stderr
    assert "Traceback" not in run.stderr


def test_another_folder_is_refused(root, tmp_path):
    run = snakemake(root, "--cores", "2", "-n", "--directory", str(tmp_path))
    assert run.returncode != 0
    assert f"full checked path: {tmp_path}/config/config.yaml" in run.stdout + run.stderr


def test_lint_and_format(root):
    lint = snakemake(root, "--lint")
    assert lint.returncode == 0, lint.stdout + lint.stderr
    snakefmt = Path(sys.executable).parent / "snakefmt"
    checked = subprocess.run(
        [snakefmt, "--check", "Snakefile", "workflow"], cwd=root, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


def test_environments_have_the_pins_of_requirements(root):
    pins = [line for line in (root / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    listed = (root / "envs" / "finallyse.yaml").read_text()
    assert re.findall(r"^      - (\S+)$", listed, re.MULTILINE) == pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)


def test_the_documented_commands_are_what_snakemake_understands(root):
    """`--configfile` and `--config` take all words that follow: a target after them needs `--` before it."""
    from snakemake.cli import get_argument_parser, parse_config

    documents = [root / "README.md", root / "Snakefile", *(root / "docs").glob("*.md"), *(root / "config").glob("*.*")]
    commands = [
        command.translate(str.maketrans("", "", "[]")).replace("...", "")
        for document in documents
        for command in re.findall(r"snakemake (-[^#\n`]*)", document.read_text())
        if "--config" in command
    ]
    assert len(commands) >= 9
    for command in commands:
        typed, _ = get_argument_parser().parse_known_args(shlex.split(command))
        assert all(path.suffix == ".yaml" for path in typed.configfile or []), command
        parse_config(typed.config)


def test_training_without_a_gpu_can_be_insisted_on(root, tmp_path):
    place = ["--config", f"results={tmp_path}/r", f"resources={tmp_path}/s", "allow_cpu=true"]
    run = snakemake(root, "--cores", "2", "-n", f"{tmp_path}/r/hifigan.ckpt", *place)
    assert run.returncode == 0, run.stderr
    assert planned(run.stdout + run.stderr)["train_network"] == 1


def test_the_layout_of_results_is_that_of_the_rules(root):
    """Each row of results/README.md names a rule of the workflow; git ignores all but that page."""
    rules = {
        name
        for path in (root / "workflow/rules").glob("*.smk")
        for name in re.findall(r"^rule (\w+):", path.read_text(), re.M)
    }
    rows = re.findall(r"^\| (`.*?) \| .* \| (.*) \|$", (root / "results/README.md").read_text(), re.MULTILINE)
    assert len(rows) == 11
    for _, rule in rows:
        assert rule == "all" or rule.strip("`") in rules, rule
    ignored = subprocess.run(
        ["git", "check-ignore", "results/x.ckpt", "results/demo/report.html", "results/README.md"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ignored.stdout.split() == ["results/x.ckpt", "results/demo/report.html"]
