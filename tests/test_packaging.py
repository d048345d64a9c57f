"""What `pip install` gets: the wheel, its metadata, and what is said where an optional package is missing."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import finallyse
from finallyse.errors import one_line_errors


@pytest.fixture(scope="module")
def project(root) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from a copy: setuptools leaves its work in the folder of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    listed = subprocess.run(
        ["git", "-C", root, "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        if name.split("/")[0] in ("src", "pyproject.toml", "README.md", "LICENSE") and (root / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((root / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder, source]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_the_wheel_has_every_file_of_the_package(root, wheel):
    inside = {name for name in wheel.namelist() if name.startswith("finallyse/")}
    package = root / "src/finallyse"
    there = {f"finallyse/{path.relative_to(package)}" for path in package.rglob("*") if path.is_file()}
    assert inside == {name for name in there if "__pycache__" not in name}


def test_the_metadata_is_complete(wheel):
    name = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    metadata = message_from_string(wheel.read(name).decode())
    assert metadata["Version"] == finallyse.__version__ and metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] and metadata.get_all("Project-URL")
    pythons = re.findall(r"Python :: (3\.\d+)$", "\n".join(metadata.get_all("Classifier")), re.MULTILINE)
    assert pythons == ["3.11", "3.12", "3.13"] and metadata["Requires-Python"] in ("<3.14,>=3.11", ">=3.11,<3.14")
    assert set(metadata.get_all("Provides-Extra")) >= {"train", "workflow", "metrics", "onnx", "serve", "bench", "all"}
    assert metadata["Description-Content-Type"] == "text/markdown" and "finallyse enhance" in metadata.get_payload()


def test_enhancing_needs_no_more_than_it_says(project):
    """Ranges rather than pins, and nothing of the workflow."""
    base = [Requirement(text) for text in project["dependencies"]]
    assert not any(str(specifier).startswith("==") for one in base for specifier in one.specifier)
    assert {"torch", "soundfile"} <= {one.name for one in base}
    assert not {"snakemake", "wandb", "ipykernel", "transformers", "pesq"} & {one.name for one in base}


def test_the_ranges_admit_the_pinned_versions(root, project):
    """What was tested is what the ranges are said to hold for; the pinned environment lacks nothing."""
    pins = {}
    for name in ("requirements.txt", "requirements-guards.txt", "requirements-bench.txt"):
        for line in (root / name).read_text().splitlines():
            if line and line[0] not in "#-":
                package, version = line.split("==")
                pins[canonicalize_name(package)] = version
    extras = project["optional-dependencies"].values()
    ranges = [Requirement(text) for texts in [project["dependencies"], *extras] for text in texts]
    for one in ranges:
        if one.name not in ("finallyse", "sounddevice"):
            assert one.specifier.contains(pins[canonicalize_name(one.name)]), one
    assert {canonicalize_name(one.name) for one in ranges} >= pins.keys() - {"ctranslate2", "webrtcvad-wheels"}


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import pandas", "pandas is not installed, which this needs: pip install 'finallyse[metrics]'"),
        ("import hydra.core", "hydra-core is not installed, which this needs: pip install 'finallyse[train]'"),
        ("import soxr", "soxr is not installed, which this needs: pip install soxr"),
    ],
)
def test_a_package_that_is_not_installed_is_one_line(code, line, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, code.split()[1], None)
    for name in [name for name in sys.modules if name.startswith("hydra")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as stop, one_line_errors():
        exec(code)
    assert stop.value.code == 2 and capsys.readouterr().err == f"error: {line}\n"


def test_a_module_that_nothing_needs_is_a_mistake_of_ours(monkeypatch):
    with pytest.raises(ModuleNotFoundError), one_line_errors():
        import finallyse.does_not_exist  # noqa: F401
    monkeypatch.setattr("importlib.metadata.requires", lambda name: None)
    with pytest.raises(ModuleNotFoundError), one_line_errors():
        raise ModuleNotFoundError("No module named 'pandas'", name="pandas")


def test_version_and_module(root):
    for words in (["--version"], ["models", "--help"]):
        done = subprocess.run([sys.executable, "-m", "finallyse", *words], cwd=root, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout
    assert finallyse.__version__ in (root / "CITATION.cff").read_text()


COMPLETE = """
source <(finallyse completion bash)
COMP_WORDS=({words}); COMP_CWORD={last}
_shtab_finallyse finallyse "{word}" "{before}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["finallyse", "enh"], ["enhance"]),
        (["finallyse", "enhance", "--kee"], ["--keep-tags", "--keep-times"]),
        (["finallyse", "new", "los"], ["loss"]),
    ],
)
def test_bash_completes_commands_and_options(words, completed, root):
    script = COMPLETE.format(words=" ".join(words), last=len(words) - 1, word=words[-1], before=words[-2])
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    done = subprocess.run(["bash", "-c", script], env={"PATH": path}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed
