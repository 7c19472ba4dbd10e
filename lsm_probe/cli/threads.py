"""How many OpenMP threads a command uses, and how they wait for each other; set before torch is imported."""

from __future__ import annotations

import math
import os
from pathlib import Path

_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""A container's limit on CPU time: microseconds in each period, and the period."""


def set_thread_defaults() -> None:
    """Let waiting threads sleep, and use no more threads than a container's CPU limit.

    OpenMP's threads wait for each other by spinning, which costs much where another process wants the core:
    `analyses/performance/threads.py` measures it. torch starts a thread for each core of the machine, also in a
    container that may use two of 64. Where the usual variables are set (`OMP_WAIT_POLICY`, `OMP_NUM_THREADS`,
    `MKL_NUM_THREADS`), they decide.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    limit = container_cpus()
    if limit is not None and limit < _cores() and "MKL_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", str(limit))


def container_cpus(path: Path = _LIMIT) -> int | None:
    """CPUs that this process may use by the limit of its container (cgroup v2), rounded up; None without a limit.

    Example:
        >>> container_cpus(Path("nowhere"))
    """
    try:
        quota, period = path.read_text(encoding="ascii").split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):  # no cgroup v2, or `max`: no limit
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
