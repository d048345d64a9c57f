"""The cluster profiles: their plans, their limits, the requests to Kubernetes, copies to S3."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

SNAKEMAKE = str(Path(sys.executable).parent / "snakemake")


def needs(plugin: str) -> pytest.MarkDecorator:
    """Skip the test if a plugin of requirements-dev.txt is not installed."""
    there = importlib.util.find_spec(plugin.replace("-", "_"))
    return pytest.mark.skipif(not there, reason=f"{plugin} is not installed (requirements-dev.txt)")


def plan(root: Path, place: Path, *arguments: str, program: Sequence[str] = (SNAKEMAKE,)) -> str:
    """What a dry run prints; results and resources are in `place`."""
    run = subprocess.run(
        [*program, "-n", "--nolock", "--config", f"results={place}/r", f"resources={place}/s", *arguments],
        cwd=root,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


# A dry run shows a rule's message instead of its resources, so this one is asked for them.
SHOW_RESOURCES_CODE = """
import json, sys
from snakemake.cli import main
from snakemake.jobs import Job
Job.log_info = lambda self, **_: print("JOB", json.dumps([self.rule.name, dict(self.resources.items())], default=str))
main(sys.argv[1:])
"""
SHOW_RESOURCES = (sys.executable, "-c", SHOW_RESOURCES_CODE)


def resources_of(text: str) -> dict[str, dict]:
    """Rule -> resources of one of its jobs, from what a dry run by SHOW_RESOURCES prints."""
    return dict(json.loads(line.removeprefix("JOB ")) for line in text.splitlines() if line.startswith("JOB "))


def read_profile(root: Path, name: str) -> dict:
    return yaml.safe_load((root / "workflow" / "profiles" / name / "config.yaml").read_text())


def check_slurm(jobs: dict[str, dict]) -> None:
    train = jobs["train_network"]
    assert (train["slurm_partition"], train["gpu"], train["nodes"]) == ("gpu", 1, 1)
    assert (train["runtime"], train["stop_after"]) == (1440, 1425)
    assert jobs["enhance_validation"]["slurm_partition"] == "gpu"
    for rule in ("unpack", "prepare_corpus", "prepare_corpus_with_test", "compute_metrics", "report"):
        assert jobs[rule]["slurm_partition"] == "cpu" and "gpu" not in jobs[rule], rule
    for rule, needed in jobs.items():
        if rule != "all":
            assert int(needed["mem_mb"]) > 0 and int(needed["runtime"]) > 0, rule


def test_slurm_gives_every_rule_what_it_needs(root, tmp_path):
    jobs = resources_of(plan(root, tmp_path, "--profile", "workflow/profiles/slurm", program=SHOW_RESOURCES))
    check_slurm(jobs)
    for name in ("slurm", "kubernetes"):
        profile = read_profile(root, name)
        assert {*profile["groups"], *profile["set-resources"]} <= jobs.keys(), f"{name} names rules that do not exist"


def test_the_other_spelling_does_the_same_and_small_work_is_no_job_of_the_cluster(root, tmp_path):
    chosen = ["--workflow-profile", "workflow/profiles/slurm", "--configfile", "config/demo.yaml"]
    text = plan(root, tmp_path, *chosen, program=SHOW_RESOURCES)
    check_slurm(resources_of(text))
    assert set(re.findall(r"Group job (\w+)", text)) == {"corpus"}
    local = {
        re.match(r"\w+", rule)[0]
        for path in (root / "workflow" / "rules").glob("*.smk")
        for rule in re.split(r"^rule ", path.read_text(), flags=re.MULTILINE)[1:]
        if "\n    localrule: True\n" in rule
    }
    assert {"download", "download_collection", "write_experiment", "write_recipe"} <= local


def test_a_workstation_knows_nothing_of_it(root, tmp_path):
    target = f"{tmp_path}/r/metrics/finally_stage3.csv"
    jobs = resources_of(plan(root, tmp_path, "--cores", "8", "--", target, program=SHOW_RESOURCES))
    assert jobs["train_network"]["stop_after"] == "null"
    assert not any("slurm_partition" in needed for needed in jobs.values())


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_trainings_stop_by_themselves_before_their_walltime(root, name):
    training = read_profile(root, name)["set-resources"]["train_network"]
    assert training["stop_after"] < training["runtime"]


# ---------------------------------------------------------------------------------------------------------------------
# Kubernetes


@pytest.fixture
def kubernetes_jobs(root):
    """workflow/profiles/kubernetes/jobs.py as a module."""
    path = root / "workflow" / "profiles" / "kubernetes" / "jobs.py"
    spec = importlib.util.spec_from_file_location("kubernetes_jobs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kubernetes_dry_run(root, tmp_path):
    chosen = ["--profile", "workflow/profiles/kubernetes", "--", f"{tmp_path}/r/finally_stage3.ckpt"]
    jobs = resources_of(plan(root, tmp_path, *chosen, program=SHOW_RESOURCES))
    assert (jobs["train_network"]["gpu"], jobs["train_network"]["stop_after"]) == (1, 1425)


def test_a_job_for_kubernetes_has_its_gpus_memory_and_time(kubernetes_jobs):
    properties = {
        "rule": "train_network",
        "wildcards": {"network": "finally_stage1"},
        "threads": 8,
        "resources": {"mem_mb": 32000, "runtime": 1440, "gpu": 2},
    }
    job = kubernetes_jobs.manifest("/project/.snakemake/tmp/job.sh", properties)
    assert job["metadata"]["generateName"] == "train-network-finally-stage1-"
    assert job["spec"]["activeDeadlineSeconds"] == 86_400 and job["spec"]["backoffLimit"] == 0
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["tini", "-g", "--", "sh", "/project/.snakemake/tmp/job.sh"]
    assert container["resources"] == {
        "requests": {"cpu": "8", "memory": "32000M", "nvidia.com/gpu": "2"},
        "limits": {"memory": "32000M", "nvidia.com/gpu": "2"},
    }
    group = {"type": "group", "groupid": "corpus", "threads": 3, "resources": {"mem_mb": 6000, "runtime": 60}}
    container = kubernetes_jobs.manifest("x", group)["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"memory": "6000M"}


def test_driver_and_jobs_share_image_volume_and_folder(root):
    folder = root / "workflow" / "profiles" / "kubernetes"
    job = yaml.safe_load((folder / "job.yaml").read_text())
    driver = list(yaml.safe_load_all((folder / "driver.yaml").read_text()))[-1]
    pods = [document["spec"]["template"]["spec"] for document in (job, driver)]
    for key in ("image", "workingDir"):
        assert pods[0]["containers"][0][key] == pods[1]["containers"][0][key], key
    assert pods[0]["volumes"][0] == pods[1]["volumes"][0]
    assert pods[0]["containers"][0]["volumeMounts"][0] == pods[1]["containers"][0]["volumeMounts"][0]


class Cluster(http.server.BaseHTTPRequestHandler):
    """As much of Kubernetes' API as jobs.py speaks to: a Job's command is run here, at once, without tini."""

    jobs: dict[str, tuple[dict, subprocess.Popen]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = f"{body['metadata']['generateName']}{len(self.jobs)}"
        command = body["spec"]["template"]["spec"]["containers"][0]["command"]
        assert command[:3] == ["tini", "-g", "--"]
        self.jobs[name] = body, subprocess.Popen(command[3:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.answer(201, {"metadata": {"name": name}})

    def do_DELETE(self) -> None:
        assert self.path.endswith("/jobs?labelSelector=app%3Dfinallyse&propagationPolicy=Foreground")
        self.jobs.clear()
        self.answer(200, {})

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[1]
        if name.startswith("jobs?labelSelector=app%3Dfinallyse"):
            self.answer(200, {"items": list(self.jobs)})
        elif name not in self.jobs:
            self.answer(404, {})
        else:
            ended = self.jobs[name][1].poll()
            self.answer(200, {"status": {} if ended is None else {"failed": 1} if ended else {"succeeded": 1}})

    def answer(self, status: int, body: dict) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_) -> None:
        """Nothing: the tests' output is no place for requests."""


def serve(handler: type) -> http.server.ThreadingHTTPServer:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


SMALL = """
rule all:
    default_target: True
    input: "trained.txt"
    localrule: True

rule train_network:
    output: "trained.txt"
    resources: gpu=1, mem_mb=100, runtime=5, stop_after="null"
    retries: 3 if workflow.is_main_process else 0
    shell: "echo {resources.stop_after} >> attempts.txt; [ $(wc -l < attempts.txt) -ge 2 ] || exit 75; touch {output}"
"""


def test_kubernetes_runs_jobs_and_starts_those_again_that_stopped(root, tmp_path):
    server = serve(type("OneCluster", (Cluster,), {"jobs": {}}))
    (tmp_path / "Snakefile").write_text(SMALL)
    profile = read_profile(root, "kubernetes") | {"latency-wait": 5, "seconds-between-status-checks": 1}
    del profile["groups"]
    profile["set-resources"] = {"train_network": profile["set-resources"]["train_network"]}
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "config.yaml").write_text(yaml.safe_dump(profile))
    (tmp_path / "workflow").symlink_to(root / "workflow")
    run = subprocess.run(
        [SNAKEMAKE, "--profile", "profile"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "KUBERNETES_API": f"http://127.0.0.1:{server.server_port}",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    server.shutdown()
    assert run.returncode == 0, run.stdout + run.stderr
    jobs = server.RequestHandlerClass.jobs
    assert len(jobs) == 2, "each attempt is a Job of its own"
    assert (tmp_path / "attempts.txt").read_text().split() == ["1425", "1425"]
    assert next(iter(jobs.values()))[0]["spec"]["activeDeadlineSeconds"] == 1440 * 60


def test_a_new_driver_clears_what_the_one_before_left(kubernetes_jobs, monkeypatch):
    server = serve(type("LeftCluster", (Cluster,), {"jobs": {"train-network-1": None}}))
    monkeypatch.setenv("KUBERNETES_API", f"http://127.0.0.1:{server.server_port}")
    kubernetes_jobs.clear()
    server.shutdown()
    assert not server.RequestHandlerClass.jobs


def test_a_job_that_is_gone_has_failed_and_a_silent_cluster_says_nothing(kubernetes_jobs, monkeypatch, capsys):
    server = serve(type("EmptyCluster", (Cluster,), {"jobs": {}}))
    monkeypatch.setenv("KUBERNETES_API", f"http://127.0.0.1:{server.server_port}")
    kubernetes_jobs.status("gone")
    server.shutdown()
    server.server_close()
    kubernetes_jobs.status("gone")
    assert capsys.readouterr().out.split() == ["failed", "running"]


class Overloaded(http.server.BaseHTTPRequestHandler):
    """An API server that answers, and something in its place: (status, body) of each request, the last for all others.

    Two Jobs are left, and gone once it has said so.
    """

    answers: list[tuple[int, bytes]]

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        code, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body)

    do_DELETE = do_POST = do_GET

    def log_message(self, *_) -> None:
        """Nothing: the tests' output is no place for requests."""


BUSY, LEFT, GONE = (503, b'{"kind": "Status", "message": "busy"}'), (200, b'{"items": [1, 2]}'), (200, b'{"items": []}')
PAGE = (200, b"<html>Sign in</html>")


def test_an_overloaded_cluster_is_not_taken_for_an_empty_one(kubernetes_jobs, monkeypatch, capsys):
    monkeypatch.setattr(kubernetes_jobs, "PAUSE_S", 0.01)
    answers = [BUSY, (200, b"{}"), BUSY, LEFT, PAGE, (200, b"{}"), BUSY, LEFT, GONE]
    server = serve(type("BusyCluster", (Overloaded,), {"answers": answers}))
    monkeypatch.setenv("KUBERNETES_API", f"http://127.0.0.1:{server.server_port}")
    kubernetes_jobs.clear()
    assert capsys.readouterr().out.count("waiting for 2 jobs") == 2 and answers == [GONE]
    answers[:] = [BUSY]
    monkeypatch.setattr(kubernetes_jobs, "ATTEMPTS", 3)
    with pytest.raises(SystemExit, match="error: Kubernetes has not answered 3 times; Jobs of the driver before may"):
        kubernetes_jobs.clear()
    server.shutdown()


@pytest.mark.parametrize("answer", [None, BUSY, PAGE, (403, b'{"message": "forbidden"}'), (200, b"[]"), (201, b"{}")])
def test_a_cluster_that_does_not_answer_is_one_line(answer, kubernetes_jobs, monkeypatch, capsys, tmp_path):
    server = serve(type("SilentCluster", (Overloaded,), {"answers": [answer]}))
    monkeypatch.setenv("KUBERNETES_API", f"http://127.0.0.1:{server.server_port}")
    if answer is None:
        server.shutdown()
        server.server_close()
    script = tmp_path / "job.sh"
    properties = {"rule": "x", "threads": 1, "resources": {"runtime": 1, "mem_mb": 1}}
    script.write_text(f"# properties = {json.dumps(properties)}\n")
    with pytest.raises(SystemExit, match=r"^error: [^\n]*$"):
        kubernetes_jobs.submit(str(script))
    kubernetes_jobs.status("x")
    assert capsys.readouterr().out == "running\n"
    if answer != (201, b"{}"):
        with pytest.raises(SystemExit, match=r"^error: not deleted: x: [^\n]*$"):
            kubernetes_jobs.cancel("x")
    server.shutdown()


# ---------------------------------------------------------------------------------------------------------------------
# S3 and containers


class EmptyBucket(http.server.BaseHTTPRequestHandler):
    """An empty S3."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_) -> None:
        """Nothing."""


@needs("snakemake-storage-plugin-s3")
def test_copies_to_s3_are_planned(root, tmp_path):
    server = serve(EmptyBucket)
    (tmp_path / "results" / "metrics").mkdir(parents=True)
    for product in ("hifigan.ckpt", "metrics/hifigan.csv", "report.html"):
        (tmp_path / "results" / product).touch()
    run = subprocess.run(
        [SNAKEMAKE, "-n", "--snakefile", str(root / "workflow" / "publish.smk"), "--cores", "1"]
        + ["--storage-s3-endpoint-url", f"http://127.0.0.1:{server.server_port}", "--storage-s3-retries", "0"]
        + ["--config", "to=s3://bucket/finallyse"],
        cwd=tmp_path,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "eu-west-1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    server.shutdown()
    assert run.returncode == 0, run.stdout + run.stderr
    planned = set(re.findall(r"s3://bucket/finallyse/(\S+?)(?:,| |$)", run.stdout + run.stderr, re.MULTILINE))
    assert {"hifigan.ckpt", "metrics/hifigan.csv", "report.html"} <= planned


APPTAINER = """#!/bin/sh
[ "$1" = --version ] && { echo "apptainer version 1.3.4"; exit; }
echo "$@" >> "$APPTAINER_CALLS"
while [ "$1" != -c ]; do shift; done
exec bash -c "$2"
"""


def test_jobs_run_in_the_image_of_the_config(root, tmp_path):
    for name, text in {"apptainer": APPTAINER, "image.sif": ""}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    run = subprocess.run(
        [SNAKEMAKE, "--cores", "1", "--nolock", "--sdm", "apptainer", "--apptainer-args=--nv", "--config"]
        + [f"container={tmp_path}/image.sif", f"results={tmp_path}/r", "--", f"{tmp_path}/r/configs/hifigan.yaml"],
        cwd=root,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "APPTAINER_CALLS": f"{tmp_path}/calls"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    calls = (tmp_path / "calls").read_text()
    assert f"{tmp_path}/image.sif" in calls and "--nv" in calls and "scripts/write_experiment.py" in calls


def test_the_container_has_the_pins_of_requirements(root):
    container = (root / "Containerfile").read_text()
    environment = (root / "envs" / "finallyse.yaml").read_text()
    python = re.search(r"- python=([\d.]+)$", environment, re.MULTILINE)[1]
    assert set(re.findall(r"^FROM docker\.io/library/python:([\d.]+)-", container, re.MULTILINE)) == {python}
    # every package comes from requirements.txt, and none has another version here
    installs = re.findall(r"pip install ([^&\n]*)", container)
    assert [line.split()[-1] for line in installs if "-r" in line] == ["/tmp/requirements.txt"]
    assert "COPY requirements.txt /tmp/requirements.txt" in container
    assert not re.search(r"[\w-]+==\d", container)
    makefile = (root / "Makefile").read_text()
    first = re.search(r"\^torch==' requirements", makefile) and re.search(r"\^torch==' /tmp/requirements", container)
    assert first, "torch is installed first in both"
