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
from support.browser import Browser
from support.corpora import make_corpora

NOTEBOOK = "notebooks/augmentations.ipynb"


def run(root: Path, home: Path, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/run_notebook.py", NOTEBOOK, *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, env={**os.environ, "HOME": str(home)})


@pytest.fixture(scope="module")
def page(root, tmp_path_factory, speech) -> Path:
    """The notebook executed on small prepared corpora."""
    tmp_path = tmp_path_factory.mktemp("notebook")
    corpora = make_corpora(tmp_path / "corpora", speech[:20])
    names = {"speech": "libritts-r", "noise": "dns5-noise", "rooms": "dns5-rooms", "microphones": "micirp"}
    values = [f"{name}={corpora[corpus] / '16000' / 'train.csv'}" for name, corpus in names.items()]
    (tmp_path / "home").mkdir()
    done = run(root, tmp_path / "home", "--output", tmp_path / "page.html", "--set", *values)
    assert done.returncode == 0, done.stderr
    assert not [path for path in (tmp_path / "home").rglob("*") if "jupyter" in str(path) or "ipython" in str(path)]
    return tmp_path / "page.html"


def test_the_page_shows_and_describes_every_sound(page):
    text = page.read_text()
    assert text.count("<audio") >= 12 and text.count("data:image/png") >= 12 and "Traceback" not in text
    assert not re.search(r"""(src|href)=["'](https?:)?//""", text)  # nothing is loaded from elsewhere
    assert "<title>Augmentations</title>" in text
    assert text.count("<audio") == len(re.findall(r'<audio aria-label="\w[^"]*"', text))
    described = re.findall(r'<svg role="img" aria-label="Spectrogram, (.*?): 0 to 8 kHz over [\d.]+ s"', text)
    assert text.count("<svg") == len(described) and {"clean", "noise", "room", "item 2"} <= set(described)
    assert text.count("<details><summary>Code</summary><pre>") == text.count("<pre>"), "code is folded"


CODE = "[...document.querySelectorAll('details pre')].filter((p) => p.checkVisibility()).length"
DRAWN = """
[...document.querySelectorAll("svg")].map((svg) => {
  const [text, box] = [svg.querySelector("text"), svg.getBoundingClientRect()];
  return [getComputedStyle(text).fill, box.right, box.width > 300, svg.querySelectorAll("image").length];
})
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 820, 1200])
def test_the_page_fits_every_width(page, tmp_path_factory, width, dark):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(page, width, 900, dark=dark, phone=width == 390)
        assert browser.run("[document.documentElement.scrollWidth, window.innerWidth]") == [width, width]
        assert browser.run(CODE) == 0
        colour = browser.run("getComputedStyle(document.body).color")
        assert colour == ("rgb(230, 233, 238)" if dark else "rgb(27, 33, 41)")
        drawn = browser.run(DRAWN)
        assert len(drawn) > 24
        for fill, right, legible, images in drawn:  # text in the page's colour; the spectrogram and its scale
            assert fill == colour and right <= width and legible and images == 2
        assert browser.console == [] and browser.requests == [page.resolve().as_uri()]


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
