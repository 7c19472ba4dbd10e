"""How samples make optimizer steps."""

from __future__ import annotations

import math

from lsm_probe.errors import InputError
from lsm_probe.training.config import Machine, Stage


def accumulation(stage: Stage, machine: Machine, world: int) -> int:
    """Forward passes that each of `world` processes makes for one optimizer step.

    Raises:
        InputError: the stage's batch is not a whole number of such passes.
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
    """Optimizer steps of a stage on so many samples, as transformers' Trainer counts them.

    The last batch of an epoch may be smaller than the others.
    """
    if stage.max_steps is not None:
        return stage.max_steps
    return math.ceil(stage.epochs * math.ceil(samples / stage.batch_size))


def warmup_steps(stage: Stage, steps: int) -> int:
    """Steps of `steps` in which the learning rate rises."""
    return math.ceil(stage.warmup * steps) if stage.warmup < 1 else int(stage.warmup)


def smaller_pass(stage: Stage, machine: Machine, world: int) -> int:
    """The largest pass of at most half the size that divides a step of each of `world` processes."""
    return _largest_divisor(stage.batch_size // world, machine.per_device_batch_size // 2)


def _largest_divisor(number: int, at_most: int) -> int:
    return next(divisor for divisor in range(min(number, at_most), 0, -1) if number % divisor == 0)
