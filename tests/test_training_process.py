"""Training as a process: killed again and again, stopped, on two processes, and from the command line."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from support.training import (
    ROOT,
    assert_same_bits,
    checkpoint,
    experiment,
    history,
    prepare_resources,
    write_yaml,
)

TRAIN = [sys.executable, str(ROOT / "scripts" / "train.py")]


@pytest.fixture(scope="module")
def resources(tmp_path_factory) -> Path:
    return prepare_resources(tmp_path_factory.mktemp("resources"))


def start(*arguments: str, launcher: list[str] = TRAIN, **environment: str) -> subprocess.Popen:
    """A training process in a process group of its own."""
    return subprocess.Popen(
        [*launcher, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def rows_of(path: Path) -> int:
    return len(path.read_text().splitlines()) - 1 if path.is_file() else 0


def test_killed_three_times_and_stopped_once_it_ends_as_one_never_killed(resources, tmp_path):
    """SIGKILL at random moments with a save at every step, and SIGTERM to the whole group; two loader processes."""
    network, steps, seed = "hifipp_bwe1", 16, random.randrange(10**6)
    print(f"moments drawn from seed {seed}")
    moments = random.Random(seed)
    options = {"train__steps": steps, "train__val_step": 4, "train__best": "si_sdr", "train__balance_step": 3}
    whole = write_yaml(experiment(network, resources, tmp_path / "whole", **options), tmp_path / "whole.yaml")
    broken = experiment(network, resources, tmp_path / "broken", train__checkpoint_step=1, **options)
    broken["data"]["num_workers"] = 2
    command = [f"exp.config_path={write_yaml(broken, tmp_path / 'broken.yaml')}"]
    reference = start(f"exp.config_path={whole}")
    table = tmp_path / "broken" / "state" / network / "history.csv"
    for number, stop_signal in enumerate((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)):
        process = start(*command)
        target = 3 * number + moments.randint(1, 3)
        while rows_of(table) < target and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.random() * 0.3)
        os.killpg(process.pid, stop_signal)
        output = process.communicate(timeout=120)[0]
        if stop_signal == signal.SIGTERM:
            assert process.returncode == 75, output
            assert "signal SIGTERM" in output
        else:
            assert process.returncode == -signal.SIGKILL, output
    process = start(*command)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and "continuing after step" in output, output
    output = reference.communicate(timeout=120)[0]
    assert reference.returncode == 0, output
    for kept in (network, f"{network}.best"):
        assert_same_bits(checkpoint(tmp_path / "whole", kept), checkpoint(tmp_path / "broken", kept))
    assert history(tmp_path / "whole", network) == history(tmp_path / "broken", network)


def test_two_processes_train_as_one(resources, tmp_path):
    """gloo on the CPU: the same global batch, the same losses; only the first process writes.

    Sums over two halves of a batch round differently, by as much as the CPU's kernels do, and adversarial training
    multiplies the difference with every step: over the first ten steps it stays below 1e-4.
    """
    network, steps = "hifipp_denoise", 20
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", TRAIN[1]]
    processes = []
    for name, launcher in (("one", TRAIN), ("two", torchrun)):
        options = {"train__steps": steps, "train__checkpoint_step": 10, "train__balance_step": 10}
        options |= {"train__val_step": 5, "train__best": "si_sdr"}
        settings = experiment(network, resources, tmp_path / name, **options)
        path = write_yaml(settings, tmp_path / f"{name}.yaml")
        processes.append(start(f"exp.config_path={path}", launcher=launcher))
    for process in processes:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    one, two = (history(tmp_path / name, network) for name in ("one", "two"))
    assert len(one) == len(two) == steps
    for alone, together in zip(one, two, strict=True):
        for key in alone:
            if not key.startswith("grad_norm"):  # a gradient at the waveform holds fewer digits than a loss
                rel = 1e-3 if key.startswith("grad_wav") or alone["step"] > 10 else 1e-4
                assert alone[key] == pytest.approx(together[key], rel=rel), (alone["step"], key)
    assert [row["step"] for row in two if "grad_wav_gen_loss" in row] == [1, 10, 20]
    steps_of_best = [
        torch.load(tmp_path / n / f"{network}.best.ckpt", weights_only=True)["step"] for n in ("one", "two")
    ]
    assert steps_of_best[0] == steps_of_best[1]


def test_the_command_line(resources, tmp_path):
    settings = experiment("finally_stage1", resources, tmp_path)
    path = write_yaml(settings, tmp_path / "stage1.yaml")
    commands = {
        "help": ["--help"],
        "good": [
            f"exp.config_path={path}",
            "exp.run_name=named",
            "train.steps=2",
            "generator.optimizer.betas=[0.5,0.9]",
        ],
        "typo": [f"exp.config_path={path}", "train.step=2"],
        "nothing": ["exp.config_path=nowhere.yaml"],
        "full": [f"exp.config_path={path}", "exp.results=/dev/full/results"],
    }
    processes = {name: start(*arguments) for name, arguments in commands.items()}
    outputs = {name: process.communicate(timeout=120)[0] for name, process in processes.items()}
    codes = {name: process.returncode for name, process in processes.items()}
    assert codes == {"help": 0, "good": 0, "typo": 2, "nothing": 2, "full": 2}, outputs
    assert "torchrun" in outputs["help"] and "exit status" in outputs["help"].lower()
    assert (tmp_path / "named.ckpt").is_file() and "2/2 100.0%" in outputs["good"]
    saved = torch.load(tmp_path / "named.ckpt", weights_only=True)
    assert saved["config"]["generator"]["optimizer"]["betas"] == [0.5, 0.9] and saved["step"] == 2
    for name, part in (("typo", "train.step"), ("nothing", "nowhere.yaml"), ("full", "/dev/full")):
        lines = outputs[name].strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and part in lines[0], outputs[name]
