"""What the benchmarks of the probes share: peak memory of a way in a fresh process, and what to say of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def in_fresh_process(*way: str) -> float:
    """What this same command prints with `--memory-of WAY`, run by itself: MiB."""
    command = [sys.executable, *sys.argv, "--memory-of", *way]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return round(float(printed.split()[-1]), 1)


def peak_mib(way: Callable[[], Any], device: str) -> float:
    """The most memory that `way` holds above what is there before it: MiB, of the GPU's memory on one."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the highest mark so far
    before = _status("VmRSS")
    way()
    return (_status("VmHWM") - before) / 2**10


def machine(device: str) -> dict[str, Any]:
    """Threads, load, device and versions."""
    return {
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine(),
        "versions": {name: version(name) for name in ("lsm-probe", "torch", "transformers")}
        | {"python": platform.python_version()},
    }


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
