"""The benchmarks start and find their helpers. The measurements themselves take minutes: `make bench`."""

import subprocess
import sys

import pytest

from support import ROOT

# those of speed; the others need corpora or the published networks
SPEED = sorted({path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"peers", "quality"})


@pytest.mark.parametrize("name", SPEED)
def test_help(root, name, tmp_path):
    command = [sys.executable, str(root / "benchmarks" / f"{name}.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "--output" in done.stdout, done.stderr
