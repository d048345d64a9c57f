"""The benchmarks start and find their helpers. The measurements themselves take minutes: `make bench`."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "name", ["audio", "browser", "data", "enhance", "evaluate", "export", "losses", "models", "train"]
)
def test_help(root, name, tmp_path):
    command = [sys.executable, str(root / "benchmarks" / f"{name}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--output" in done.stdout, done.stderr
