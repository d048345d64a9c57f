"""Finished trainings: whose recipe a checkpoint is, and what is kept of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from finallyse import finished
from finallyse.models.checkpoint import load_checkpoint, save_checkpoint
from finallyse.recipe import Recipe

ONE, OTHER = Recipe({"generator.name": "hifigan_gen", "exp.seed": 1}), Recipe({"exp.seed": 2})


def write(path: Path, recipe: Recipe | None = ONE, step: int = 10, weight: float = 0.0, **config) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = {"w": torch.full((1000,), weight)}
    settings = {"network": "hifigan_gen", "config": config, "step": step, "discriminators": {}}
    save_checkpoint(path, generator=generator, recipe=recipe and recipe.record(), **settings)
    return path


def weight(path: Path) -> float:
    return float(load_checkpoint(path).generator["w"][0])


def test_a_checkpoint_that_is_replaced_returns_with_its_recipe(tmp_path):
    folder, path = tmp_path / "state", write(tmp_path / "a.ckpt", weight=1.0)
    content = path.read_bytes()
    finished.keep(path, folder)
    finished.keep(path, folder)
    assert len(list((folder / "finished").glob("*.ckpt"))) == 1
    path.unlink()  # as Snakemake does
    write(path, OTHER, weight=2.0)
    found = finished.find(path, folder, ONE, 10)
    assert found is not None and found != path
    assert finished.find(path, folder, ONE, 20) is None and finished.find(path, folder, OTHER, 10) == path
    finished.restore(found, path, folder)
    assert path.read_bytes() == content
    finished.restore(finished.find(path, folder, OTHER, 10), path, folder)
    assert weight(path) == 2.0, "what was replaced by it was kept in turn"


def test_the_best_validation_returns_with_it(tmp_path):
    folder, path, best = tmp_path / "state", tmp_path / "a.ckpt", tmp_path / "a.best.ckpt"
    write(path), write(best, step=7, weight=7.0)
    finished.keep(path, folder)
    finished.keep_other(best, folder, ONE)
    assert not list((folder / "finished").glob("*.best.ckpt")), "it is still that of the run"
    finished.keep_other(best, folder, OTHER)
    write(path, OTHER), write(best, OTHER, step=3, weight=3.0)
    finished.restore(finished.find(path, folder, ONE, 10), path, folder)
    assert weight(best) == 7.0


def test_a_damaged_checkpoint_is_not_taken_for_a_finished_one(tmp_path, caplog):
    path = write(tmp_path / "a.ckpt", weight=1.0)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\0\0\x80\x3f" * 8, b"\0\0\x80\x40" * 8, 1))
    assert finished.find(path, tmp_path, ONE, 10) is None and "damaged" in caplog.text
    for content in (whole[:-100], b"", b"no archive"):
        path.write_bytes(content)
        assert finished.find(path, tmp_path, ONE, 10) is None
        finished.keep(path, tmp_path)
    assert not (tmp_path / "finished").exists()


def test_where_there_are_no_links_a_copy_is_kept(tmp_path, monkeypatch):
    def no_links(*paths):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    path = write(tmp_path / "a.ckpt", weight=1.0)
    finished.keep(path, tmp_path)
    path.unlink()
    assert weight(finished.find(path, tmp_path, ONE, 10)) == 1.0


def test_checkpoints_of_older_versions_are_known_by_their_experiment(tmp_path):
    manifest = tmp_path / "train.csv"
    manifest.write_text("path\n")
    os.utime(manifest, (1, 1))
    config = {"generator": {"name": "hifigan_gen"}, "data": {"train": {"name": "vctk", "args": {"m": str(manifest)}}}}
    path = write(tmp_path / "a.ckpt", None, **config)
    found = finished.read(path)
    assert found.step == 10 and found.recipe.definition["data.train.args.m"].startswith("sha256:")
    finished.keep(path, tmp_path)
    os.utime(manifest)  # newer than the checkpoint: what it was trained on is no longer known
    os.utime(path, (2, 2))
    assert list(finished.read(path).recipe.differences(found.recipe)) == ["data.train.args.m"]
    assert finished.find(path, tmp_path, found.recipe, 10).parent.name == "finished", "known from when it was kept"


def test_checkpoints_are_read_without_pytorch_and_without_running_anything(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"format": finished.FORMAT, "step": 1, "config": Evil()}, tmp_path / "evil.ckpt")
    assert finished.read(tmp_path / "evil.ckpt") is None and not (tmp_path / "made").exists()
    write(tmp_path / "a.ckpt")
    code = f"""if True:
        import sys
        from finallyse import finished
        assert finished.read({str(tmp_path / "a.ckpt")!r}).step == 10
        assert 'torch' not in sys.modules"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["resources/demo/hifigan.ckpt", "src/finallyse/pretrained/small.ckpt"])
def test_checkpoints_in_the_repository_are_recognised(root, name):
    assert finished.read(root / name).recipe.definition["trainer"]
