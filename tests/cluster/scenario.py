"""Train down to finally_stage2 on the test cluster, with all disturbances of a cluster, and compare the result.

Run by run.sh. The jobs are submitted by workflow/profiles/slurm with other time limits and shorter waits:

    finally_stage1  is cancelled (scancel), then stops by itself before its walltime (stop_after)
    finally_stage2  hits its time limit, then is preempted (scontrol requeue)

Each must continue from a step above zero, and end with the weights of an undisturbed run on this machine, bit for bit.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from finallyse.status import read_history

RESULTS = Path("results/cluster")
LOCAL = RESULTS / "local"
CONFIGS = ["config/demo.yaml", "tests/cluster/config.yaml"]
# The SLURM executor looks after its jobs at growing intervals, up to minutes, which no option shortens.
IMPATIENT = """
from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 2, lambda self, seconds: None)
main()
"""
SNAKEMAKE = [sys.executable, "-c", IMPATIENT]
STARTED = time.monotonic()


def say(text: str) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def write_profile() -> Path:
    """workflow/profiles/slurm as a user would change it: with other time limits and, for the test, short waits."""
    profile = yaml.safe_load(Path("workflow/profiles/slurm/config.yaml").read_text())
    profile["set-resources"]["train_network"] |= {
        "runtime": "1 if wildcards.network == 'finally_stage2' and attempt == 1 else 10",
        "stop_after": "'0.005' if wildcards.network == 'finally_stage1' and attempt == 2 else 'null'",
    }
    profile |= {"slurm-status-command": "squeue", "slurm-init-seconds-before-status-checks": 1, "latency-wait": 5}
    folder = RESULTS / "profile"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(profile))
    return folder


class Workflow:
    """A snakemake process, its log and its end."""

    def __init__(self, name: str, *arguments: str):
        self.name, self.log = name, RESULTS / f"{name}.log"
        self.arguments = ["--configfile", *CONFIGS, *arguments]
        self._file = self.log.open("w")
        self.process = subprocess.Popen(
            [*SNAKEMAKE, *self.arguments], stdout=self._file, stderr=subprocess.STDOUT, start_new_session=True
        )

    def check(self) -> bool:
        """Whether it has ended; exits with its log where it failed."""
        if self.process.poll() is None:
            return False
        if self.process.returncode:
            print(self.log.read_text()[-6000:])
            sys.exit(f"error: the {self.name} run of snakemake ended with status {self.process.returncode}")
        return True

    def end(self) -> None:
        """End it and its jobs as Ctrl-C does, if it still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                subprocess.run(
                    [*SNAKEMAKE, "--unlock", *self.arguments], check=False, stdout=self._file, stderr=self._file
                )


class Watch:
    """Waits for things to happen while remembering from which steps each training continued."""

    def __init__(self, deadline_s: float, *workflows: Workflow):
        self.deadline, self.workflows = STARTED + deadline_s, list(workflows)
        self.continued: dict[str, list[int]] = {"finally_stage1": [], "finally_stage2": []}
        self._seen: set[str] = set()  # the lines, which begin with the time

    def until(self, what: str, happened: Callable[[], bool]) -> None:
        """Wait until `happened()`; exits at the deadline or where a workflow fails."""
        while not happened():
            if time.monotonic() > self.deadline:
                sys.exit(f"error: out of time while waiting for: {what}; see {RESULTS}/*.log")
            for workflow in self.workflows:
                workflow.check()
            self._look()
            time.sleep(0.2)
        self._look()
        say(what)

    def _look(self) -> None:
        # A new attempt overwrites the log of the one before, so its lines are recorded as they appear.
        for network, steps in self.continued.items():
            log = RESULTS / "logs" / "train_network" / f"{network}.log"
            text = log.read_text() if log.is_file() else ""
            found = re.search(r"^(\S+) .*continuing after step (\d+)", text, re.MULTILINE)
            if found and found.group() not in self._seen:
                self._seen.add(found.group())
                steps.append(int(found[2]))
                say(f"{network}: continues after step {found[2]}")


def step_of(network: str) -> int:
    """The last step that a training on the cluster has logged."""
    return read_history(RESULTS / "state" / network / "history.csv")[0]


def job_of(network: str) -> str | None:
    """The id of the cluster's running job of a training."""
    listed = subprocess.run(
        ["squeue", "--noheader", "--states=running", "--format=%i %k"], capture_output=True, text=True, check=True
    )
    return next(
        (line.split()[0] for line in listed.stdout.splitlines() if line.endswith(f"_wildcards_{network}")), None
    )


def trainer_of(network: str) -> int:
    """The id of the process that trains a network on the cluster."""
    wanted = f"exp.config_path={RESULTS}/configs/{network}.yaml".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and wanted in (words := _command(folder)) and b"scripts/train.py" in words:
            return int(folder.name)
    sys.exit(f"error: no process trains {network}")


def _command(folder: Path) -> list[bytes]:
    try:
        return (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return []


def slurm(*command: str) -> None:
    """Run a command of SLURM's."""
    subprocess.run(command, check=True)


def ends_of(folder: Path) -> dict[str, str]:
    """Job id -> state in which SLURM saw it end, from the cluster's own record."""
    text = (folder / "log" / "jobs.txt").read_text()
    return dict(re.findall(r"^JobId=(\d+) .*?JobState=(\w+)", text, re.MULTILINE))


def compare(network: str) -> None:
    """Exit unless the checkpoints of the cluster and of this machine have the same weights, bit for bit."""
    import torch

    from finallyse.models.checkpoint import load_checkpoint

    ours, theirs = (load_checkpoint(folder / f"{network}.ckpt") for folder in (RESULTS, LOCAL))
    parts = {"generator": (ours.generator, theirs.generator)}
    parts |= {name: (weights, theirs.discriminators[name]) for name, weights in ours.discriminators.items()}
    if ours.step != theirs.step or ours.discriminators.keys() != theirs.discriminators.keys():
        sys.exit(f"error: {network}: {ours.step} steps on the cluster, {theirs.step} here")
    count = 0
    for name, (a, b) in parts.items():
        different = [key for key in a.keys() | b.keys() if not (key in a and key in b and torch.equal(a[key], b[key]))]
        if different:
            sys.exit(f"error: {network}: {name}: {len(different)} tensors differ, e.g. {sorted(different)[0]}")
        count += sum(tensor.numel() for tensor in a.values())
    say(f"{network}: {count:,} numbers of {', '.join(parts)} equal bit for bit")


def main(cluster: Path, deadline_s: float) -> None:
    """The whole scenario; `cluster` is the folder of slurm.sh."""
    target = f"{RESULTS}/finally_stage2.ckpt"
    on_cluster = Workflow("slurm", "--profile", str(write_profile()), "--config", f"results={RESULTS}", "--", target)
    watch = Watch(deadline_s, on_cluster)
    workflows = [on_cluster]
    try:
        watch.until("finally_stage1 has made 3 steps", lambda: step_of("finally_stage1") >= 3)
        cancelled = job_of("finally_stage1")
        slurm("scancel", cancelled)
        say(f"scancel {cancelled}")
        # The data are there now: the undisturbed run can use them, on this machine's other core.
        here = ["--cores", "1", "--nolock", "--config", f"results={LOCAL}", f"resources={RESULTS}/resources", "--"]
        undisturbed = Workflow("local", *here, f"{LOCAL}/finally_stage2.ckpt")
        watch.workflows.append(undisturbed)
        workflows.append(undisturbed)

        watch.until("finally_stage1 has continued", lambda: len(watch.continued["finally_stage1"]) >= 1)
        print(
            subprocess.run(
                ["finallyse", "status", *CONFIGS, f"results={RESULTS}"], check=True, text=True, stdout=-1
            ).stdout
        )
        watch.until(
            "finally_stage1 has stopped by itself and continued", lambda: len(watch.continued["finally_stage1"]) >= 2
        )

        watch.until("finally_stage2 has made 3 steps", lambda: step_of("finally_stage2") >= 3)
        limited = job_of("finally_stage2")
        # However fast this machine is: a training that stands still cannot end before its time limit. SLURM wakes it
        # (SIGCONT) and tells it to end (SIGTERM) when the time is up.
        os.kill(trainer_of("finally_stage2"), signal.SIGSTOP)
        say(f"job {limited} stands still until its time limit")
        watch.until(
            "finally_stage2 has hit its time limit and continued", lambda: len(watch.continued["finally_stage2"]) >= 1
        )

        before = step_of("finally_stage2")
        watch.until("finally_stage2 has made 3 more steps", lambda: step_of("finally_stage2") >= before + 3)
        requeued = job_of("finally_stage2")
        slurm("scontrol", "requeue", requeued)
        say(f"scontrol requeue {requeued}")

        def pending() -> bool:
            listed = ["squeue", "--noheader", "--jobs", requeued, "--states=pending"]
            return bool(subprocess.run(listed, capture_output=True, text=True, check=False).stdout.strip())

        watch.until(f"job {requeued} is back in the queue", pending)
        slurm("scontrol", "update", f"JobId={requeued}", "StartTime=now")  # SLURM itself would wait two minutes
        watch.until("finally_stage2 was preempted and continued", lambda: len(watch.continued["finally_stage2"]) >= 2)
        watch.until("the run on the cluster has ended", on_cluster.check)
        watch.until("the undisturbed run has ended", undisturbed.check)
    finally:
        for workflow in workflows:
            workflow.end()

    ends = ends_of(cluster)
    say(f"SLURM's record: {cancelled} {ends[cancelled]}, {limited} {ends[limited]}, {requeued} {ends[requeued]}")
    if (ends[cancelled], ends[limited]) != ("CANCELLED", "TIMEOUT"):
        sys.exit("error: the jobs did not end as they were meant to")
    if any(min(steps) < 1 for steps in watch.continued.values()):
        sys.exit(f"error: a training began anew: {watch.continued}")
    for network in ("finally_stage1", "finally_stage2"):
        compare(network)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cluster", type=Path, help="folder that slurm.sh was started with")
    parser.add_argument("--deadline", type=float, default=840, help="seconds after which to give up")
    arguments = parser.parse_args()
    # A shell ignores SIGINT for what it runs in the background, and so would the snakemake that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: told to end"))  # and so to end what was started
    main(arguments.cluster, arguments.deadline)
