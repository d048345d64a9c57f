"""What this machine has, found out without importing PyTorch."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path


def processor() -> str:
    """The CPU's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def visible_gpus() -> int:
    """Number of GPUs that a process started here can see (NVIDIA by its driver's tool, AMD by its kernel driver)."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return 0
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
        if listed.returncode == 0:
            gpus = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
            return min(gpus, len(hidden.split(","))) if hidden else gpus
    nodes = Path("/sys/class/kfd/kfd/topology/nodes")
    return sum("simd_count 0\n" not in (node / "properties").read_text() for node in nodes.glob("*") if node.is_dir())
