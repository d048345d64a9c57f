"""`finallyse status`: from the files of a training, without PyTorch."""

from __future__ import annotations

import base64
import fcntl
import json
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from finallyse import status
from finallyse.config import read_config
from finallyse.errors import UserError
from finallyse.options import Experiment, from_dict
from finallyse.recipe import recipe_of
from finallyse.schema import argument_defaults, read_schema

FINALLYSE = str(Path(sys.executable).parent / "finallyse")
DEMO = ["config/demo.yaml", "common={train: {steps: 40}}"]


@pytest.fixture
def project(root, tmp_path, monkeypatch):
    """A folder with the project's configuration and nothing else, as the current one."""
    (tmp_path / "config").symlink_to(root / "config")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    return tmp_path


def write_state(folder: Path, steps: int, seconds: float, saved: int) -> None:
    folder.mkdir(parents=True)
    rows = [f"{step},{0.5:.9g},{seconds:.9g}\n" for step in range(1, steps + 1)]
    (folder / "history.csv").write_text("step,generator,seconds\n" + "".join(rows))
    (folder / f"step-{saved:08d}.json").write_text("{}")
    (folder / "lock").touch()


def network(name: str, *arguments: str) -> status.Network:
    config = read_config(arguments or DEMO)
    return next(n for n in status.collect(config).networks if n.name == name)


def begin_job(project: Path, output: str, cluster_id: str | None = None) -> None:
    """What Snakemake writes while it runs and has a job for `output`."""
    (project / ".snakemake" / "locks").mkdir(parents=True, exist_ok=True)
    (project / ".snakemake" / "locks" / "0.output.lock").write_text(output)
    encoded = base64.urlsafe_b64encode(output.encode()).decode()
    record = project / ".snakemake" / "incomplete" / encoded
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"external_jobid": cluster_id}))


def test_an_untouched_project_waits_for_its_data(project):
    stage2 = network("finally_stage2")
    assert (stage2.state, stage2.detail) == ("waiting", "needs finally_stage1 and data")
    assert (stage2.step, stage2.steps) == (0, 40)


def test_the_paper_counts_its_own_steps_and_folders(project):
    assert network("hifigan", "results=elsewhere").steps == 80_000


def test_a_stopped_training_is_told_by_its_saved_step(project):
    write_state(project / "results/demo/state/hifigan", steps=25, seconds=2.0, saved=20)
    for manifest in ("train", "validation"):
        path = project / f"results/demo/resources/prepared/vctk/16000/{manifest}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("path\na.wav\nb.wav\n")
    stopped = network("hifigan")
    assert (stopped.state, stopped.step) == ("stopped", 20)
    assert stopped.eta_s == pytest.approx(40.0)
    clips = {data.name: data.clips for data in status.collect(read_config(DEMO)).data}
    assert clips["vctk 16000 train"] == 2 and clips["daps 48000 train"] is None


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_training_runs_while_its_process_holds_the_lock(project):
    folder = project / "results/demo/state/hifigan"
    write_state(folder, steps=25, seconds=2.0, saved=20)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / "lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        running = network("hifigan")
        assert (running.state, running.step) == ("training", 25)
        assert running.eta_s == pytest.approx(30.0) and running.detail.startswith("last step ")
        # asking must not take the lock: a training that starts at this moment would be refused
        before = holder.poll()
        network("hifigan")
        assert before is None and holder.poll() is None
    finally:
        holder.kill()
        holder.wait()
    with (folder / "lock").open("a") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert network("hifigan").state != "training"


def test_jobs_of_snakemake_are_listed_also_when_their_names_are_long(project):
    begin_job(project, "results/demo/hifigan.ckpt")
    begin_job(project, "results/demo/enhanced/hifigan")
    found = status.collect(read_config(DEMO))
    assert {job.output for job in found.jobs} == {"results/demo/hifigan.ckpt", "results/demo/enhanced/hifigan"}
    assert found.locked and network("hifigan").state == "starting"
    record = next((project / ".snakemake/incomplete").iterdir())
    record.rename(record.with_name("kept"))
    long = base64.urlsafe_b64encode(b"results/demo/a-name-that-is-cut").decode()
    (project / ".snakemake/incomplete" / f"@{long[:10]}").mkdir()
    (project / ".snakemake/incomplete" / f"@{long[:10]}" / long[10:]).write_text("{}")
    assert "results/demo/a-name-that-is-cut" in {job.output for job in status.snakemake_jobs(Path(".snakemake"))}


@pytest.mark.parametrize(
    ("cluster_id", "line", "state", "detail"),
    [
        ("17", "17|PENDING|Priority|rule_train_network_wildcards_hifigan|{here}", "queued", "job 17, Priority"),
        (None, "18|RUNNING|None|rule_train_network_wildcards_hifigan|{here}", "training", "job 18"),
        (None, "18|RUNNING|None|rule_train_network_wildcards_hifigan|/another/project", "starting", ""),
    ],
)
def test_slurm_is_asked_where_there_is_one(project, cluster_id, line, state, detail):
    begin_job(project, "results/demo/hifigan.ckpt", cluster_id)
    squeue = project / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(f"#!/bin/sh\necho '{line.format(here=project)}'\n")
    squeue.chmod(0o755)
    found = network("hifigan")
    assert (found.state, found.detail) == (state, detail)


def test_a_slurm_that_does_not_answer_is_not_waited_for(project, monkeypatch):
    begin_job(project, "results/demo/hifigan.ckpt", "17")
    (project / "bin").mkdir()
    (project / "bin" / "squeue").write_text("#!/bin/sh\nexec sleep 30\n")
    (project / "bin" / "squeue").chmod(0o755)
    monkeypatch.setattr(status, "SQUEUE_S", 0.2)
    began = time.monotonic()
    assert network("hifigan").state == "starting"
    assert time.monotonic() - began < 5


def test_a_trained_network_says_what_was_made_with_it(project):
    (project / "results/demo/enhanced/hifigan/enhanced").mkdir(parents=True)
    for name in ("a", "b"):
        (project / f"results/demo/enhanced/hifigan/enhanced/{name}.wav").touch()
    (project / "results/demo/hifigan.ckpt").touch()
    trained = network("hifigan")
    assert (trained.state, trained.detail, trained.step) == ("trained", "2 files enhanced", 40)


def recipe_of_config(name: str, *arguments: str) -> tuple[dict, int]:
    """The recipe of a network as a training would record it, and its steps."""
    experiment = from_dict(Experiment, read_config(arguments or DEMO)["experiments"][name])
    defaults = argument_defaults(read_schema("config/schema.json"))
    return recipe_of(experiment, defaults).record(), experiment.train.steps


def write_record(folder: Path, step: int, recipe: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"step-{step:08d}.json").write_text(json.dumps({"format": 1, "step": step, **recipe}))


def test_it_says_why_something_would_be_trained_again(project):
    recipe, steps = recipe_of_config("hifigan")
    folder = project / "results/demo/state/hifigan"
    finished = folder / "finished" / "x.ckpt"
    finished.parent.mkdir(parents=True)
    finished.touch()
    finished.with_suffix(".json").write_text(json.dumps({"step": steps, "recipe": recipe}))
    checkpoint = project / "results/demo/hifigan.ckpt"
    with zipfile.ZipFile(checkpoint, "w") as archive:
        content = {"format": "finallyse checkpoint", "step": steps, "recipe": recipe}
        archive.writestr("a/data.pkl", pickle.dumps(content))
    assert network("hifigan").state == "trained"
    assert network("hifigan", *DEMO[:1], "common={train: {steps: 40, log_step: 7}}").state == "trained"
    changed = network("hifigan", *DEMO[:1], "common={generator: {ema_decay: 0.5}, train: {steps: 40}}")
    assert changed.state == "changed" and changed.step == 0
    assert changed.detail.startswith("would be trained from the start, since generator.ema_decay: 0.99 -> 0.5")
    finished.unlink()
    longer = network("hifigan", *DEMO[:1], "common={train: {steps: 50}}")
    assert longer.detail == "would be trained from the start, since it was trained for 40 steps instead of 50"
    write_record(folder, 40, recipe)
    longer = network("hifigan", *DEMO[:1], "common={train: {steps: 50}}")
    assert longer.detail == "continues after step 40, since it was trained for 40 steps instead of 50"


def test_states_of_another_recipe_are_not_counted_and_named(project):
    recipe, _ = recipe_of_config("hifigan")
    folder = project / "results/demo/state/hifigan"
    write_record(folder, 20, recipe)
    write_record(folder / "superseded" / ("0" * 16), 30, {**recipe, "definition": {"exp.seed": 3}})
    for manifest in ("train", "validation"):
        path = project / f"results/demo/resources/prepared/vctk/16000/{manifest}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("path\na.wav\n")
    stopped = network("hifigan", *DEMO[:1], "common={train: {steps: 40}, generator: {ema_decay: 0.5}}")
    assert (stopped.state, stopped.step) == ("ready", 0)
    assert "not after step" in stopped.detail


def test_only_the_end_of_a_long_history_is_read_and_half_lines_do_not_count(tmp_path):
    path = tmp_path / "history.csv"
    rows = [f"{step},{step / 3:.9g},{1.0 if step <= 99_000 else 0.25}\n" for step in range(1, 100_001)]
    path.write_text("step,generator,seconds\n" + "".join(rows) + "100001,0.")
    assert status.read_history(path) == (100_000, pytest.approx(0.25))
    path.write_text("")
    assert status.read_history(path) == (0, None)
    assert status.read_history(tmp_path / "none.csv") == (0, None)
    path.write_bytes(
        b"step,loss,seconds\n1,0.5,0.25\n2,\xff,0.25\n3,0.5,1.2.3\n\xc2\xb2,1,1\n" + b"9" * 5000 + b",1,1\n"
    )
    assert status.read_history(path) == (3, pytest.approx(0.25))
    path.write_bytes(b"st\xff,loss,seconds\n1,0.5,0.25\n")
    assert status.read_history(path) == (0, None)


def test_mistakes_are_one_line(project, tmp_path_factory, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such config file"):
        read_config(["nowhere.yaml"])
    with pytest.raises(UserError, match="resultz: unknown key; did you mean 'results'"):
        read_config(["resultz=x"])
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    with pytest.raises(UserError, match="in the project's folder"):
        read_config([])


def test_the_command_prints_tables_soon_and_without_pytorch(project):
    write_state(project / "results/demo/state/hifigan", steps=25, seconds=2.0, saved=20)
    run = subprocess.run([FINALLYSE, "status", "--config", *DEMO], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "Networks" in run.stdout and "finally_stage3_pretrain" in run.stdout and "20/40" in run.stdout
    code = (
        "import sys, resource\n"
        "from finallyse import status\n"
        "status.show(['config/demo.yaml'])\n"
        "heavy = {'torch', 'pandas', 'snakemake', 'transformers', 'scipy'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_utime)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout.splitlines()[-1]) < 2, "seconds of CPU time"
