"""`finallyse status`: from the files of a training, without PyTorch."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import functools
import json
import os
import pickle
import pty
import select
import signal
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


@functools.cache
def config_of(*arguments: str) -> dict:
    """The pipeline's config, which nothing here changes."""
    return read_config(arguments or DEMO)


def network(name: str, *arguments: str) -> status.Network:
    config = config_of(*arguments)
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
    clips = {data.name: data.clips for data in status.collect(config_of()).data}
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
    found = status.collect(config_of())
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
    experiment = from_dict(Experiment, config_of(*arguments)["experiments"][name])
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


def test_a_training_tells_its_last_validation_its_wait_for_data_and_its_mistake(project):
    state, log = project / "results/demo/state/hifigan", project / "results/demo/logs/train_network/hifigan.log"
    write_state(state, steps=25, seconds=2.0, saved=20)
    (state / "validation.csv").write_text("step,wb_pesq,stoi,items,seconds\n15,1.5,,2,4\n20,1.61803,0.8,2,6\n30,1.")
    log.parent.mkdir(parents=True)
    log.write_text(
        "12:00:00 step 20/40 50.0% | 0.5 it/s | ETA 40 s | generator 1.5 | lr_generator 0.001 | data_wait 0.9\n"
        "12:00:10 step 25/40 62.5% | 0.5 it/s | ETA 30 s | generator 1.4 | lr_generator 0.001 | data_wait 0.25\n"
        "12:00:12 step 30/40 62.5% | 0.5 it/s | ETA 30 s | generator 1.4 | lr_generator 0.001 | data_wait 1.9"
    )
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(state / "lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        running = network("hifigan")
    finally:
        holder.kill()
        holder.wait()
    assert running.validation == "step 20: wb_pesq 1.618, stoi 0.8"
    assert running.data_wait == pytest.approx(0.125) and running.error == ""
    assert (running.validations_left, running.seconds_per_validation) == (2, 5.0)  # after steps 30 and 40
    assert running.eta_s == pytest.approx(15 * 2.0 + 2 * 5.0)
    with log.open("a") as file:
        file.write("\nerror: step 31: not finite: generator\nerror: cut off here")
    stopped = network("hifigan")
    assert stopped.error == "error: step 31: not finite: generator" and stopped.data_wait is None
    log.write_text("Traceback (most recent call last):\n  File x\ntorch.OutOfMemoryError: no memory\n12:00 the end\n")
    assert network("hifigan").error == "torch.OutOfMemoryError: no memory"


def made(name: str, state: str, seconds: float | None, *starts_from: str) -> status.Network:
    """A network with 100 steps left, or none."""
    step = 200 if state == "trained" else 100
    return status.Network(name, state, "", step, 200, seconds, starts_from=starts_from)


def test_what_is_left_is_in_the_order_of_training_with_its_time(project):
    networks = [
        made("last", "waiting", 3.0, "middle"),
        made("middle", "waiting", 2.0, "first"),
        made("first", "trained", 9.0),
        made("alone", "stopped", 4.0),
        made("new", "waiting", None, "alone"),
        made("circle", "waiting", None, "circle"),
        made("now", "training", 1.0),
    ]
    left = status.training_left(networks)
    assert left.order == ["now", "middle", "last", "alone", "new", "circle"]
    assert (left.in_turn_s, left.at_once_s) == (1000.0, 500.0)  # middle, then last
    assert left.unknown == ["new", "circle"]
    assert status.training_left(networks[2:3]).order == []


def test_dependencies_and_paces_are_those_of_the_experiments(project):
    write_state(project / "results/demo/state/hifipp_bwe1", steps=25, seconds=2.0, saved=20)
    found = {network.name: network for network in status.collect(config_of()).networks}
    assert found["finally_stage2"].starts_from == ("finally_stage1",) and found["hifigan"].starts_from == ()
    assert {name for name, network in found.items() if network.pace_of} == {"hifipp_bwe2", "hifipp_bwe4"}
    assert found["hifipp_bwe4"].pace_of == "hifipp_bwe1" and found["hifipp_bwe4"].eta_s == 80.0
    told = "\n".join(str(line) for line in status._notes(status.collect(config_of())))
    assert "Left to train, in order: hifigan, hifipp_bwe1, hifipp_bwe2, " in told
    assert "About 3:20 one after another, 1:20 if none waits but for those that it starts from." in told
    assert "as fast as another: hifipp_bwe2 as hifipp_bwe1, hifipp_bwe4 as hifipp_bwe1." in told
    assert "have not made a step yet: hifigan, hifipp_denoise, finally_stage1, " in told


def test_running_trainings_are_told_of_when_there_is_news(project):
    folder = project / "results/demo/state/hifigan"
    write_state(folder, steps=25, seconds=2.0, saved=20)
    running = status.Running("results/demo", {"hifigan": 1000, "hifipp_bwe1": 30})
    assert running.lines() == []
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / "lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        assert running.lines() == ["hifigan: step 25 of 1,000, 2 s/step, 32:30 left"]
        assert running.lines() == []
        with (folder / "history.csv").open("a") as file:
            file.writelines(f"{step},0.5,2.0\n" for step in range(26, 36))
        assert running.lines() == ["hifigan: step 35 of 1,000, 2 s/step, 32:10 left"]
    finally:
        holder.kill()
        holder.wait()


def test_files_that_vanish_while_they_are_read_are_looked_at_again(project, monkeypatch):
    whole, looks = status.collect, []

    def collect(config):
        looks.append(config)
        if len(looks) < 3:
            raise FileNotFoundError("step-00000010.json")
        return whole(config)

    monkeypatch.setattr(status, "collect", collect)
    assert len(status.look(config_of()).networks) == 9 and len(looks) == 3
    monkeypatch.setattr(status, "collect", lambda config: Path("nowhere").stat())
    with pytest.raises(FileNotFoundError):
        status.look({})


def test_watching_is_in_place_on_a_terminal_until_ctrl_c_and_once_elsewhere(project):
    write_state(project / "results/demo/state/hifigan", steps=25, seconds=2.0, saved=20)
    command = [FINALLYSE, "status", "--watch", "0.2", *DEMO]
    plain = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert plain.returncode == 0, plain.stderr
    assert plain.stdout.count("Networks") == 1 and "\x1b" not in plain.stdout and "20/40" in plain.stdout
    ours, theirs = pty.openpty()
    watching = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        while shown.count(b"Networks") < 3:
            assert select.select([ours], [], [], 30)[0], shown.decode()
            shown += os.read(ours, 1 << 16)
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 0
        with contextlib.suppress(OSError):  # the end of a terminal
            while rest := os.read(ours, 1 << 16):
                shown += rest
    finally:
        watching.kill()
        os.close(ours)
    text = shown.decode()
    assert "Traceback" not in text and "every 0.2 s; Ctrl-C ends this" in text
    assert "\x1b[1A" in text and text.rstrip().endswith("\x1b[?25h"), "in place, and the cursor is back"


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


def test_a_damaged_validation_is_left_out(project):
    folder = project / "results/demo/state/hifigan"
    write_state(folder, steps=25, seconds=2.0, saved=20)
    (folder / "validation.csv").write_text("step,wb_pesq,si_sdr,seconds\n10,1.93,-2.5,4\n20,1.9\0,-3.5,x\n")
    run = subprocess.run(
        [FINALLYSE, "status", "--watch", *DEMO], capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "si_sdr -3.5" in " ".join(run.stdout.split()) and "wb_pesq" not in run.stdout
