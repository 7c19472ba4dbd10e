"""The processes of a training run."""

from __future__ import annotations

from accelerate import PartialState

from lsm_probe.distributed import init_distributed
from lsm_probe.training.config import Machine


def join_processes(machine: Machine) -> PartialState:
    """Which process this is, of how many, on which device; the first call makes them a group."""
    return init_distributed(cpu=machine.device == "cpu")
