"""The workflow as typed by users: plans, targets, refusals. Nothing is trained here; `make demo` does that."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from finallyse.config import load_pipeline
from finallyse.schema import read_schema
from support import NETWORKS, ROOT

SCHEMA = read_schema(ROOT / "config" / "schema.json")
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


def experiment_and_data(results: str) -> list[str]:
    """Targets of the demo that take seconds: what defines a network, and a corpus from its archive to its manifests."""
    written = [f"{results}/configs/hifigan{suffix}" for suffix in (".recipe.json", ".yaml")]
    return [*written, f"{results}/resources/prepared/vctk/16000/train.csv"]


def test_another_folder_has_results_of_its_own(root, tmp_path):
    targets = experiment_and_data("results/demo")
    place = ["--snakefile", str(root / "Snakefile"), "--configfile", str(root / "config" / "demo.yaml")]
    run = snakemake(tmp_path, "--cores", "1", *place, "--", *targets)
    assert run.returncode == 0, run.stdout + run.stderr
    assert all((tmp_path / target).is_file() for target in targets)
    # what defines the network is the same as in the project's folder, but for where the weights that it starts from are
    in_project = load_pipeline([root / "config/config.yaml", root / "config/demo.yaml"], {}, SCHEMA)
    experiment = in_project["experiments"]["hifigan"]
    written = yaml.safe_load((tmp_path / targets[1]).read_text())
    for network in ("generator", "discriminators"):
        assert Path(written[network].pop("init_from")).samefile(root / experiment[network].pop("init_from"))
    assert written == experiment
    records = (tmp_path / ".snakemake" / "metadata").rglob("*")
    commands = [json.loads(path.read_text())["code"] for path in records if path.is_file()]
    assert any('python "$FINALLYSE_PROJECT"/scripts/prepare.py' in command for command in commands)
    assert not any(str(root) in command for command in commands), "a moved project makes nothing again"
    again = snakemake(tmp_path, "--cores", "1", *place, "--", *targets)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_config_in_another_folder_stands_over_the_projects(root, tmp_path):
    """The small run of the catalog of workflows, with --directory."""
    shutil.copytree(root / ".test", tmp_path / ".test")
    (tmp_path / "config").symlink_to(root / "config")
    run = snakemake(root, "--cores", "2", "-n", "--directory", str(tmp_path / ".test"))
    assert run.returncode == 0, run.stdout + run.stderr
    told = run.stdout + run.stderr
    assert set(re.findall(r"Training ([\w-]+);", told)) == {"hifigan", "denoise_lr_lr1e-4", "denoise_lr_lr1e-3"}
    assert planned(told)["report"] == 1 and not (tmp_path / ".test" / "results").exists()


def test_the_catalog_of_workflows_finds_what_it_reads(root):
    """https://snakemake.github.io/snakemake-workflow-catalog: its keys, and a small configuration."""
    usage = yaml.safe_load((root / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert usage.keys() == {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["mandatory-flags"].keys() == {"desc", "flags"}
    assert usage["software-stack-deployment"].keys() == {"conda", "apptainer", "apptainer+conda", "none"}
    assert (root / "workflow/Snakefile").is_file() and (root / ".test/config/config.yaml").is_file()


def test_as_a_module_of_another_workflow(root, tmp_path):
    written = experiment_and_data("enhanced")[:2]
    (tmp_path / "config.yaml").write_text(
        f"speech: {{extends: {root}/config/demo.yaml, results: enhanced, only: [hifigan], "
        "common: {generator: {ema_decay: 5e-1}}}\nmine: 3\n"
    )
    (tmp_path / "Snakefile").write_text(
        "configfile: 'config.yaml'\n"
        "rule mine:\n"
        f"    input: {written}\n"
        f"module finallyse:\n    snakefile: '{root}/workflow/Snakefile'\n    config: config['speech']\n"
        "use rule * from finallyse as finallyse_*\n"
        "onstart:\n    finallyse.onstart()\n"
    )
    run = snakemake(tmp_path, "--cores", "1")
    assert run.returncode == 0, run.stdout + run.stderr
    recipe = json.loads((tmp_path / written[0]).read_text())
    assert recipe["generator.ema_decay"] == 0.5
    plan = snakemake(tmp_path, "--cores", "1", "-n", "finallyse_all", "finallyse_hifigan")
    assert plan.returncode == 0, plan.stderr
    jobs = planned(plan.stdout + plan.stderr)
    assert jobs["finallyse_train_network"] == jobs["finallyse_report"] == jobs["finallyse_hifigan"] == 1
    assert jobs["finallyse_prepare_corpus"] == 1 and "finallyse_write_recipe" not in jobs


def test_a_sweeps_name_trains_and_measures_its_networks_and_only_what_they_need(root, tmp_path):
    (tmp_path / "sweep.yaml").write_text(
        f"results: {tmp_path}/r\nresources: {tmp_path}/s\nonly: [late]\n"
        "sweep: {late: {base: finally_stage2, grid: {generator.optimizer.lr: [1e-4, 2e-4], exp.seed: [1, 2]}}}\n"
    )
    run = snakemake(root, "--cores", "2", "-n", "--configfile", str(tmp_path / "sweep.yaml"), "--", "late")
    assert run.returncode == 0, run.stdout + run.stderr
    told = run.stdout + run.stderr
    members = {f"late_lr{lr}_seed{seed}" for lr in ("1e-4", "2e-4") for seed in (1, 2)}
    assert set(re.findall(r"Training ([\w-]+);", told)) == members | {"finally_stage1"}
    assert set(re.findall(r"Measuring ([\w-]+)", told)) == members
    prepared = re.findall(r"Preparing (\S+ at \d+) Hz", told)
    assert len(prepared) == len(set(prepared)) == 5, "shared by all"
    (tmp_path / "sweep.yaml").write_text("sweep: {report: {base: hifigan, grid: {exp.seed: [1]}}}\n")
    run = snakemake(root, "--cores", "2", "-n", "--configfile", str(tmp_path / "sweep.yaml"))
    assert "error: config: sweep.report: is also the name of a rule; choose another" in run.stderr


@pytest.mark.parametrize("name", ["data", "all", "train_network", "report"])
def test_a_network_with_the_name_of_a_rule_is_refused(root, tmp_path, name):
    (tmp_path / "mine.yaml").write_text(f"networks: {{{name}: {{experiment: config/experiments/hifigan.yaml}}}}\n")
    run = snakemake(root, "--cores", "2", "-n", "--configfile", str(tmp_path / "mine.yaml"))
    assert run.returncode != 0 and "Traceback" not in run.stderr
    assert f"error: config: networks.{name}: is also the name of a rule" in run.stderr


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


STUB = """import os, pathlib, signal, sys
made = pathlib.Path("attempts")
attempt = len(made.read_text()) if made.exists() else 0
made.write_text("x" * (attempt + 1))
print("attempt", attempt + 1, flush=True)
what = pathlib.Path("what").read_text().split()[attempt]
if what == "mistake":
    print("error: wrong shape", flush=True)
    sys.exit(2)
if what == "slow":
    import fcntl, time
    folder = pathlib.Path("r/state/hifigan")
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("a")
    fcntl.lockf(lock, fcntl.LOCK_EX)
    for step in range(1, 13):
        (folder / "history.csv").write_text("step,seconds\\n" + "".join(f"{n},0.5\\n" for n in range(1, step + 1)))
        time.sleep(0.15)
    what = "0"
if what == "signal":
    os.kill(os.getpid(), signal.SIGKILL)
if what != "0":
    sys.exit(int(what))
pathlib.Path("r/hifigan.ckpt").write_text("trained")
"""


@pytest.fixture
def stubbed(root, tmp_path):
    """A project whose trainings are a stub that ends as the file `what` says, on data that are there already."""
    for name in ("Snakefile", "workflow", "config", "src", "resources", "envs", "profiles"):
        (tmp_path / name).symlink_to(root / name)
    (tmp_path / "scripts").mkdir()
    for script in (root / "scripts").glob("*.py"):
        (tmp_path / "scripts" / script.name).symlink_to(script)
    (tmp_path / "scripts" / "train.py").unlink()
    (tmp_path / "scripts" / "train.py").write_text(STUB)
    for split in ("train", "validation"):
        manifest = tmp_path / "s" / "prepared" / "vctk" / "16000" / f"{split}.csv"
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text("path\n")

    def run(what: str, *arguments: str) -> tuple[subprocess.CompletedProcess, int, str]:
        (tmp_path / "attempts").unlink(missing_ok=True)
        (tmp_path / "what").write_text(what)
        command = ["hifigan", "--cores", "1", "--configfile", "config/demo.yaml", *arguments]
        place = ["results=r", "resources=s", "preflight=false"]
        done = snakemake(tmp_path, *command, *([] if "--config" in arguments else ["--config"]), *place)
        made = tmp_path / "attempts"
        return done, len(made.read_text()) if made.exists() else 0, done.stdout + done.stderr

    return run


def test_mistakes_are_not_retried_signals_and_stops_are_and_their_logs_are_kept(stubbed, tmp_path):
    done, attempts, told = stubbed("mistake")
    assert done.returncode == 1 and attempts == 1, told
    assert "\nerror: wrong shape" in told and "Trying to restart" not in told
    done, attempts, told = stubbed("75 signal 0")
    assert done.returncode == 0 and attempts == 3, told
    logs = tmp_path / "r" / "logs" / "train_network"
    kept = sorted((logs / "hifigan").glob("*.log"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.read_text().splitlines()[0] for path in kept] == ["attempt 1", "attempt 1", "attempt 2", "attempt 3"]
    assert (logs / "hifigan.log").read_text() == "attempt 3\n"
    done, attempts, told = stubbed("0")
    assert done.returncode == 0 and attempts == 0, "finished"


def test_only_what_defines_a_network_trains_it_again_in_the_workflow(stubbed, tmp_path):
    def overlay(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return "mine.yaml"

    assert stubbed("0")[1] == 1
    records = [path for path in (tmp_path / ".snakemake" / "metadata").rglob("*") if path.is_file()]
    commands = {json.loads(path.read_text())["rule"]: json.loads(path.read_text())["code"] for path in records}
    digest = hashlib.sha256(commands["train_network"].encode()).hexdigest()
    assert digest.startswith("b70a13b976a2c739"), "the text of the command: a change of it trains every network again"
    for harmless in (
        "{train: {log_step: 6}}",
        "{exp: {wandb: {mode: offline}}, metrics: []}",
        "{data: {num_workers: 1}}",
    ):
        done, attempts, told = stubbed("0", overlay(f"common: {harmless}"))
        assert done.returncode == 0 and attempts == 0, told
    for other in ("{train: {steps: 77}}", "{generator: {ema_decay: 0.5}}"):
        done, attempts, told = stubbed("0", overlay(f"common: {other}"))
        assert done.returncode == 0 and attempts == 1, told


def test_snakemake_tells_how_far_the_trainings_are_unless_it_is_to_be_quiet(stubbed):
    often = "progress_minutes=0.005"
    done, _, told = stubbed("slow", "--config", often)
    lines = re.findall(r"^hifigan: step (\d+) of 30, 0.5 s/step, \d+ s left$", told, re.MULTILINE)
    assert done.returncode == 0 and len(lines) >= 2, told
    assert sorted(map(int, lines)) == list(map(int, lines)) and len(set(lines)) == len(lines)
    done, attempts, told = stubbed("slow", "-R", "train_network", "--quiet", "progress", "--config", often)
    assert done.returncode == 0 and attempts == 1 and "hifigan: step" not in told


def test_after_a_kill_of_snakemake_unlocking_is_enough(stubbed, tmp_path):
    assert stubbed("0")[1] == 1
    record = tmp_path / ".snakemake" / "incomplete" / base64.urlsafe_b64encode(b"r/hifigan.ckpt").decode()
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("{}")
    done, attempts, told = stubbed("0")
    assert done.returncode == 0 and attempts == 1, told


def test_a_finished_checkpoint_is_kept_before_snakemake_deletes_it(stubbed, root, tmp_path):
    (tmp_path / "r").mkdir()
    shutil.copy(root / "resources" / "demo" / "hifigan.ckpt", tmp_path / "r" / "hifigan.ckpt")
    done, attempts, told = stubbed("mistake", "-R", "train_network")
    assert done.returncode == 1 and attempts == 1 and not (tmp_path / "r" / "hifigan.ckpt").exists(), told
    kept = list((tmp_path / "r" / "state" / "hifigan" / "finished").glob("*.ckpt"))
    assert [path.read_bytes() for path in kept] == [(root / "resources" / "demo" / "hifigan.ckpt").read_bytes()]
