"""Resume state: what a run is, and files that survive kills, damage and full disks."""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from finallyse.errors import UserError
from finallyse.options import Experiment, from_dict
from finallyse.recipe import Recipe, definition, describe
from finallyse.training.state import (
    StateFolder,
    random_state,
    seed_everything,
    set_random_state,
    write_whole,
)


def definition_of(experiment: dict) -> dict:
    return definition(from_dict(Experiment, experiment))


def experiment(manifest: Path, **train) -> dict:
    """Some options of an experiment."""
    return {
        "exp": {"seed": 1, "device": "auto", "results": "results", "wandb": {"mode": "disabled"}},
        "generator": {"name": "hifigan_gen", "args": {"rates": [8, 8]}, "init_from": None},
        "data": {"train": {"name": "vctk", "args": {"manifest": str(manifest)}}, "batch_size": 4, "num_workers": 4},
        "train": {"steps": 10, "log_step": 5, "clip": {"mode": "none"}, "precision": "fp32", **train},
        "metrics": ["stoi"],
    }


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "train.csv"
    path.write_text("path,samples\na.wav,100\n")
    return path


def test_definition_ignores_what_does_not_change_the_result(manifest, tmp_path):
    base = experiment(manifest)
    other = copy.deepcopy(base)
    other["exp"] |= {"device": "cpu", "results": "elsewhere", "wandb": {"mode": "offline"}}
    other["data"]["num_workers"] = 0
    other["train"] |= {"steps": 99, "log_step": 1, "best": "stoi", "balance_step": 7}
    other["metrics"] = []
    moved = tmp_path / "moved" / "other.csv"
    moved.parent.mkdir()
    moved.write_bytes(manifest.read_bytes())
    other["data"]["train"]["args"]["manifest"] = str(moved)
    assert definition_of(base) == definition_of(other)


@pytest.mark.parametrize(
    "change",
    [
        lambda e, m: e["exp"].update(seed=2),
        lambda e, m: e["train"].update(precision="bf16"),
        lambda e, m: e["train"]["clip"].update(mode="norm"),
        lambda e, m: e["generator"]["args"].update(rates=[8, 4]),
        lambda e, m: m.write_text("path,samples\na.wav,100\nb.wav,100\n"),
    ],
)
def test_definition_changes_with_the_recipe_and_with_the_content_of_files(manifest, change):
    before = definition_of(experiment(manifest))
    changed = experiment(manifest)
    change(changed, manifest)
    after = definition_of(changed)
    assert Recipe(before).key != Recipe(after).key
    assert Recipe(before).differences(Recipe(after))


def test_definition_follows_the_checkpoint_that_a_stage_starts_from(manifest, tmp_path):
    start = tmp_path / "stage1.ckpt"
    keys = set()
    for content in (b"one", b"two"):
        start.write_bytes(content)
        changed = experiment(manifest)
        changed["generator"]["init_from"] = str(start)
        keys.add(Recipe(definition_of(changed)).key)
    assert len(keys) == 2


def test_differences_name_old_and_new():
    old, new = Recipe({"a": 1, "b": 2}), Recipe({"a": 1, "b": 3, "c": 4})
    assert describe(old.differences(new)) == "b: 2 -> 3; c: (not set) -> 4"


def states(folder: Path, defined: dict | None = None, **kwargs) -> StateFolder:
    folder.mkdir(exist_ok=True)
    return StateFolder(folder, Recipe(defined or {"lr": 0.1}), **kwargs)


def content(step: int) -> dict:
    return {"weights": torch.full((1000,), float(step))}


def test_keeps_the_last_two_and_resumes_the_newest(tmp_path):
    folder = states(tmp_path / "run")
    for step in (10, 20, 30):
        folder.save(step, content(step))
    assert sorted(p.name for p in folder.folder.iterdir()) == [
        f"step-{step:08d}.{end}" for step in (20, 30) for end in ("json", "pt")
    ]
    state = folder.read(folder.newest(100))
    assert state["step"] == 30 and state["weights"][0] == 30
    assert folder.newest(25).stem == "step-00000020"  # a shorter run starts from what is not beyond its end
    assert folder.newest(5) is None


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "record"])
def test_a_damaged_newest_state_falls_back_with_a_warning(tmp_path, caplog, damage):
    folder = states(tmp_path / "run")
    for step in (10, 20):
        path = folder.save(step, content(step))
    data = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "missing":
        path.unlink()
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.with_suffix(".json").write_text('{"step": 2')
    assert folder.newest(100).stem == "step-00000010"
    assert "step-00000020" in caplog.text and "damaged" in caplog.text
    folder.save(20, content(20))  # the step made again replaces the damaged one
    assert folder.newest(100).stem == "step-00000020"


def test_a_state_without_its_record_does_not_count(tmp_path):
    folder = states(tmp_path / "run")
    folder.save(10, content(10))
    folder.save(20, content(20)).with_suffix(".json").unlink()
    assert folder.newest(100).stem == "step-00000010"


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_kill_at_any_moment_of_saving_leaves_a_whole_state(tmp_path, monkeypatch):
    moments = 0
    while True:
        folder = states(tmp_path / str(moments))
        for step in (10, 20):
            folder.save(step, content(step))
        left = [moments]

        def counted(original, left=left):
            def call(*arguments, **options):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1
                return original(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for where, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "open"), (torch, "save")):
                patch.setattr(where, name, counted(getattr(where, name)))
            try:
                folder.save(30, content(30))
            except Killed:
                pass
            else:
                break
        state = folder.read(folder.newest(100))
        assert state["step"] in (20, 30) and torch.equal(state["weights"], content(state["step"])["weights"])
        folder.save(30, content(30))  # and the next save tidies up
        assert [p.stem for p in sorted(folder.folder.glob("*.pt"))] == ["step-00000020", "step-00000030"]
        moments += 1
    assert moments > 8


def test_another_recipe_is_moved_aside_said_why_and_returns(tmp_path, caplog):
    old = states(tmp_path / "run", {"train.clip.mode": "none", "lr": 0.1})
    for step in (10, 20):
        old.save(step, content(step))
    (old.folder / "history.csv").write_text("step\n")
    (old.folder / "samples").mkdir()
    (old.folder / "samples" / "a.wav").touch()
    before = tree(old.folder)
    new = states(tmp_path / "run", {"train.clip.mode": "norm", "lr": 0.1})
    assert new.newest(100) is None and tree(old.folder) == before, "a start that fails must leave everything there"
    assert "train.clip.mode: none -> norm" in caplog.text and "lr" not in caplog.text
    new.take_over()
    assert (new.folder / "superseded" / old.recipe.key / "history.csv").is_file()
    assert not list(new.folder.glob("step-*")) and new.newest(100) is None
    for step in (5, 6, 7):
        new.save(step, content(step))
    (new.folder / "history.csv").write_text("step\n5\n")
    third = states(tmp_path / "run", {"lr": 0.2})
    assert third.newest(100) is None
    third.take_over()
    third.save(1, content(1))
    assert old.read(old.newest(100))["step"] == 20
    old.take_over()
    assert {path for path in tree(old.folder) if not path.startswith("superseded")} == before
    assert new.read(new.newest(100))["step"] == 7 and third.read(third.newest(100))["step"] == 1


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_kill_at_any_moment_of_moving_loses_nothing(tmp_path, monkeypatch):
    recipes = {"old": {"lr": 0.1}, "new": {"lr": 0.2}}
    moments = 0
    while moments < 100:
        folder = tmp_path / str(moments)
        for name, defined in recipes.items():
            run = states(folder, defined)
            run.take_over()
            run.save(10, content(10))
            run.save(20, content(20))
            (folder / "history.csv").write_text(name)
        old = states(folder, recipes["old"])
        left = [moments]

        def counted(path, *arguments, original=Path.replace, left=left):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return original(path, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", counted)
            try:
                old.take_over()
            except Killed:
                killed = True
            else:
                killed = False
        for name in ("new", "old", "new"):
            run = states(folder, recipes[name])
            assert run.newest(100).stem == "step-00000020", (moments, name)
            run.take_over()
            assert (folder / "history.csv").read_text() == name, (moments, name)
            assert {p.stem for p in folder.glob("step-*.pt")} == {"step-00000010", "step-00000020"}
        moments += 1
        if not killed:
            break
    assert moments > 8 and not killed


def test_the_one_recipe_that_older_versions_moved_aside_returns(tmp_path):
    old = states(tmp_path / "run", {"lr": 0.1})
    old.save(10, content(10))
    (old.folder / "superseded").mkdir()
    for path in old.folder.glob("step-*"):
        path.rename(old.folder / "superseded" / path.name)
    (old.folder / "superseded" / "history.csv").touch()
    new = states(tmp_path / "run", {"lr": 0.2})
    new.take_over()
    new.save(1, content(1))
    assert old.newest(100).stem == "step-00000010"
    old.take_over()
    assert old.has(10) and (old.folder / "history.csv").is_file() and not old.has(1)
    assert new.newest(100).stem == "step-00000001"


def test_a_shorter_run_keeps_its_states_and_those_of_the_longer(tmp_path):
    folder = states(tmp_path / "run")
    for step in (20, 30):
        folder.save(step, content(step))
    for step in (1, 2, 3):
        folder.save(step, content(step))
    assert [p.stem[-2:] for p in sorted(folder.folder.glob("*.pt"))] == ["02", "03", "20", "30"]
    assert folder.newest(15).stem == "step-00000003" and folder.newest(100).stem == "step-00000030"
    folder.save(31, content(31))
    assert [p.stem[-2:] for p in sorted(folder.folder.glob("*.pt"))] == ["30", "31"]


def test_damaged_states_do_not_take_the_place_of_good_ones(tmp_path):
    folder = states(tmp_path / "run")
    for step in (10, 20):
        path = folder.save(step, content(step))
        path.write_bytes(path.read_bytes()[:-1] + b"X")
    assert folder.newest(100) is None
    for step in (12, 22, 25):
        folder.save(step, content(step))
        assert folder.newest(100).stem == f"step-{step:08d}"
    assert [p.stem[-2:] for p in sorted(folder.folder.glob("*.pt"))] == ["22", "25"]


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    code = (
        "import sys; from finallyse.recipe import Recipe; from finallyse.training.state import StateFolder; "
        f"s = StateFolder({str(tmp_path)!r}, Recipe({{}})); s.lock(); print('locked', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="another process"):
            states(tmp_path).lock()
    finally:
        first.kill()
        first.communicate()
    states(tmp_path).lock()


def test_a_full_disk_fails_loudly_and_keeps_the_old_state(tmp_path):
    folder = states(tmp_path / "run")
    folder.save(10, content(10))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))  # writes beyond fail as on a full disk
        with pytest.raises(UserError, match=r"step-00000020\.pt: cannot be written \(File too large\)"):
            folder.save(20, content(20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert not list(folder.folder.glob("*.part"))
    assert folder.newest(100).stem == "step-00000010"


def test_write_whole_replaces_nothing_on_failure(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(file):
        file.write(b"half")
        raise OSError(28, os.strerror(28))

    with pytest.raises(UserError, match="No space left"):
        write_whole(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_the_record_is_plain_json(tmp_path):
    folder = states(tmp_path / "run", {"betas": [0.8, 0.99], "x": None})
    record = json.loads(folder.save(1, content(1)).with_suffix(".json").read_text())
    assert record["step"] == 1 and record["definition"] == {"betas": [0.8, 0.99], "x": None}


def test_random_generators_continue(tmp_path):
    seed_everything(3)
    path = tmp_path / "random.pt"
    torch.save(random_state(), path)
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())
    seed_everything(4)
    set_random_state(torch.load(path, weights_only=True))
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())
