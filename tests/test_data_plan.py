from __future__ import annotations

import os
import subprocess
import sys

import pytest
from rich.console import Console

from finallyse.corpora import plan
from finallyse.corpora.checksums import ChecksumLock
from finallyse.corpora.collection import download_collection
from finallyse.corpora.locations import Locations
from finallyse.corpora.plan import costs, show_plan
from finallyse.corpora.sources import read_sources


@pytest.fixture
def in_root(root, monkeypatch):
    monkeypatch.chdir(root)


def config(tmp_path, corpora=()) -> dict:
    experiment = {"data": {"train": {"args": {"manifest": f"{tmp_path}/prepared/daps/48000/train.csv"}}}}
    return {"resources": str(tmp_path), "corpora": dict(corpora), "experiments": {"net": experiment}}


def cost_of(name: str, configured: dict):
    return next(cost for cost in costs(configured) if cost.source.name == name)


def test_known_estimated_and_unknown_sizes(in_root, tmp_path):
    assert (cost_of("daps", config(tmp_path)).known, cost_of("daps", config(tmp_path)).left) == (
        16055782487,
        16055782487,
    )
    assert cost_of("dns5-noise", config(tmp_path)).about > 10**10
    assert cost_of("micirp", config(tmp_path)).unknown == 66
    assert cost_of("daps", config(tmp_path)).needed_by == ["net"] and not cost_of("vctk", config(tmp_path)).needed_by


def test_what_is_here_counts(in_root, tmp_path):
    folder = tmp_path / "downloads" / "daps"
    folder.mkdir(parents=True)
    (folder / "daps.tar.gz.part").write_bytes(b"x" * 1000)
    cost = cost_of("daps", config(tmp_path))
    assert (cost.here, cost.files_here, cost.left) == (1000, 0, 16055782487 - 1000)
    (folder / "daps.tar.gz.part").rename(folder / "daps.tar.gz")
    cost = cost_of("daps", config(tmp_path))
    assert (cost.here, cost.files_here, cost.left) == (1000, 1, 0)


def test_what_is_prepared_need_not_be_fetched_again(in_root, tmp_path):
    manifest = tmp_path / "prepared" / "daps" / "48000" / "train.csv"
    manifest.parent.mkdir(parents=True)
    manifest.write_text("path\n")
    cost = cost_of("daps", config(tmp_path))
    assert cost.prepared and cost.left == 0 and cost.here == 0


def test_mirrors_and_own_folders(in_root, tmp_path):
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "daps.tar.gz").write_bytes(b"x" * 77)
    mirrored = config(tmp_path, {"daps": {"base_url": f"file://{tmp_path}/mirror", "verify": "lock", "folder": None}})
    assert cost_of("daps", mirrored).known == 77
    changed = config(tmp_path, {"daps": {"base_url": "https://example.org", "verify": "lock", "folder": None}})
    assert cost_of("daps", changed).unknown == 1, "what a mirror has instead is not the published size"
    own = config(tmp_path, {"daps": {"folder": str(tmp_path), "base_url": None}})
    assert cost_of("daps", own).files == 0 and str(tmp_path) in cost_of("daps", own).origin


def test_files_missing_at_the_source_are_not_waited_for(in_root, tmp_path):
    locations = Locations(read_sources(), {"micirp": {"base_url": f"file://{tmp_path}/mics"}}, str(tmp_path))
    (tmp_path / "mics").mkdir()
    for file in locations.sources["micirp"].files:
        if not file.optional:
            (tmp_path / "mics" / file.name).write_bytes(b"x")
    table = tmp_path / "downloads" / "micirp" / "collection.csv"
    download_collection(locations, "micirp", table, ChecksumLock(tmp_path / "checksums.lock"))
    cost = cost_of("micirp", config(tmp_path))
    assert cost.files == cost.files_here == 64 and cost.left == cost.unknown == 0


def test_the_table_adds_up(in_root, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "read_config", lambda _: config(tmp_path))
    console = Console(width=160, record=True, file=(tmp_path / "out").open("w"))
    show_plan([], console)
    text = console.export_text()
    assert "The networks of this config need 16.1 GB; 16.1 GB are still to be fetched. Free in" in text
    assert "datashare.ed.ac.uk" in text and "? (66 files)" in text


def test_the_command_is_quick_and_needs_no_torch(root):
    script = "import sys; sys.argv = ['finallyse', 'data', '--plan']; from finallyse.cli import main\n" + (
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    before = os.times()
    run = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "wavlm-large" in run.stdout and "still to be fetched" in run.stdout
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    assert used < 2, "seconds of CPU"
