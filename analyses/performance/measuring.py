"""Measure peak memory in a fresh process and describe the machine, for all benchmarks of the probes."""

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
    """Peak memory in MiB that this command prints with `--memory-of WAY` in a fresh process."""
    command = [sys.executable, *sys.argv, "--memory-of", *way]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return round(float(printed.split()[-1]), 1)


def peak_mib(way: Callable[[], Any], device: str) -> float:
    """Peak memory in MiB of `way` above that held before; GPU memory on a GPU."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
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
