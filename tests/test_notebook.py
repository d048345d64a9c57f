"""The notebook of the augmentations: executed to a self-contained page, and stored without outputs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from finallyse.augmentations import augmentations_registry
from support.corpora import make_corpora

NOTEBOOK = "notebooks/augmentations.ipynb"


def run(root: Path, home: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/run_notebook.py", NOTEBOOK, *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "HOME": str(home)})


def test_executed_on_prepared_corpora(root, tmp_path, speech):
    corpora = make_corpora(tmp_path / "corpora", speech[:20])
    names = {"speech": "libritts-r", "noise": "dns5-noise", "rooms": "dns5-rooms", "microphones": "micirp"}
    values = [f"{name}={corpora[corpus] / '16000' / 'train.csv'}" for name, corpus in names.items()]
    (tmp_path / "home").mkdir()
    done = run(root, tmp_path / "home", "--output", tmp_path / "page.html", "--set", *values)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text()
    assert page.count("<audio") >= 12 and page.count("data:image/png") >= 12 and "Traceback" not in page
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)  # nothing is loaded from elsewhere
    assert not [path for path in (tmp_path / "home").rglob("*") if "jupyter" in str(path) or "ipython" in str(path)]


def test_a_failing_cell_is_one_line(root, tmp_path):
    done = run(root, tmp_path, "--output", tmp_path / "page.html", "--set", "speech=nowhere.csv")
    assert done.returncode == 2 and not (tmp_path / "page.html").exists()
    assert done.stderr.splitlines()[-1].startswith(f"error: {NOTEBOOK}: a cell failed: UserError: nowhere.csv: no such")


@pytest.mark.parametrize("name", augmentations_registry)
def test_every_augmentation_is_in_it(root, name):
    assert f'"{name}"' in (root / NOTEBOOK).read_text().replace('\\"', '"')


def test_kept_without_outputs(root):
    notebook = nbformat.read(root / NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and not any(cell.outputs or cell.execution_count for cell in code)
