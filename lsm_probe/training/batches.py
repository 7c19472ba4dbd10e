"""Division of samples into optimizer steps and forward passes."""

from __future__ import annotations

import math

from lsm_probe.errors import InputError
from lsm_probe.training.config import Machine, Stage


def accumulation(stage: Stage, machine: Machine, world: int) -> int:
    """Forward passes that each of `world` processes makes for one optimizer step.

    Raises:
        InputError: the stage's batch size is not a multiple of the samples in one pass of all processes.
    """
    in_one_pass = machine.per_device_batch_size * world
    if stage.batch_size % in_one_pass == 0:
        return stage.batch_size // in_one_pass
    split = f"{machine.per_device_batch_size} samples on each of {world} processes"
    if stage.batch_size % world:
        remedy = f"batch_size={in_one_pass * math.ceil(stage.batch_size / in_one_pass)}"
    else:
        remedy = f"machine.per_device_batch_size={_largest_divisor(stage.batch_size // world, in_one_pass // world)}"
    raise InputError(f"stage {stage.name}: a batch of {stage.batch_size} cannot be made of {split}; set {remedy}")


def optimizer_steps(stage: Stage, samples: int) -> int:
    """Number of optimizer steps of a stage on this many samples, as transformers' Trainer counts them.

    The last batch of an epoch may be smaller than the others.
    """
    if stage.max_steps is not None:
        return stage.max_steps
    return math.ceil(stage.epochs * math.ceil(samples / stage.batch_size))


def warmup_steps(stage: Stage, steps: int) -> int:
    """Number of warm-up steps among `steps`."""
    return math.ceil(stage.warmup * steps) if stage.warmup < 1 else int(stage.warmup)


def smaller_pass(stage: Stage, machine: Machine, world: int) -> int:
    """The largest pass of at most half the size that still divides a step of each of `world` processes."""
    return _largest_divisor(stage.batch_size // world, machine.per_device_batch_size // 2)


def _largest_divisor(number: int, at_most: int) -> int:
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)
