"""Temporarily runs a half-precision model in float32, as the reference for half precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from lsm_probe.errors import InputError
from lsm_probe.memory import MEMORY_ERRORS, is_out_of_memory
from lsm_probe.models.devices import is_offloaded
from lsm_probe.models.quantisation import check_dense

_HALF = (torch.float16, torch.bfloat16)


def check_can_verify(model: nn.Module, name: str) -> None:
    """Refuse a precision check if float32 would change nothing or is not possible.

    Args:
        model: the model.
        name: begins the error.

    Raises:
        InputError: its weights are float32 already, quantised, or not in memory.
    """
    check_dense(model, name, "--verify-precision needs weights that can be read as float32: leave it out")
    if is_offloaded(model):
        raise InputError(f"{name} does not fit on the GPUs, so that --verify-precision cannot be used: leave it out")
    if not any(parameter.dtype in _HALF for parameter in model.parameters()):
        raise InputError(f"{name} computes in float32 already: leave out --verify-precision")


@contextmanager
def in_float32(model: nn.Module, name: str) -> Iterator[None]:
    """Runs a model in float32 inside the block, with the same weights; afterwards they are bitwise as before.

    Tensors are cast one at a time and in place, so that no second model is in memory: half-precision weights take
    twice their memory inside the block. Modules, parameters and hooks stay the same objects.

    Args:
        model: a model with weights in float16 or bfloat16.
        name: begins the error.

    Raises:
        InputError: float32 weights do not fit into memory.
    """
    halves = [(each, each.dtype) for each in chain(model.parameters(), model.buffers()) if each.dtype in _HALF]
    try:
        try:
            for tensor, _ in halves:
                tensor.data = tensor.data.float()
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"{name} does not fit into memory in float32, which --verify-precision needs: leave it out"
            ) from error
        yield
    finally:
        for tensor, dtype in halves:
            tensor.data = tensor.data.to(dtype)
