"""Detection of the machine's hardware, and process settings for it; importing this module does not import PyTorch."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from finallyse.errors import UserError

if TYPE_CHECKING:
    import torch


def choose_device(name: str, option: str = "--device") -> torch.device:
    """The device called "cpu" or "cuda"; for "auto" a GPU if available.

    Args:
        name: the device.
        option: how the user chooses it, for the message.

    Raises:
        UserError: for "cuda" if PyTorch sees no CUDA device.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    if name.startswith("cuda") and not available:
        raise UserError(f"{option}={name}: PyTorch sees no CUDA device; use {option}=auto or {option}=cpu")
    return torch.device(name)


def supports_bf16() -> bool:
    """Whether oneDNN has kernels for bf16 on this CPU; without AVX-512, for instance, not for all layers."""
    import torch

    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def processor() -> str:
    """The CPU's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def keep_freed_memory() -> None:
    """Have glibc keep the large blocks that a step frees: the next one would ask the kernel for zeroed pages again."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # another C library
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4
    if not mallopt(mmap_threshold, 1 << 30):
        mallopt(mmap_max, 0)  # this glibc does not accept so high a threshold
    mallopt(trim_threshold, (1 << 31) - 1)
