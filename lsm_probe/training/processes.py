"""The processes of a run: one, or those that `torchrun` or `accelerate launch` started."""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState

from lsm_probe.training.config import Machine

# While one process encodes or hashes what is large, the others wait; the libraries' 10 or 30 minutes are not enough.
_PATIENCE = timedelta(hours=3)


def join_processes(machine: Machine) -> PartialState:
    """Which process this is, of how many, on which device; the first call makes them a group."""
    cpu = machine.device == "cpu" or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=_PATIENCE)
