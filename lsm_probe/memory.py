"""What to do where memory runs out: go on with smaller batches, or say in one line what does not fit."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate.utils.memory import clear_device_cache

from lsm_probe.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

MEMORY_ERRORS = (RuntimeError, MemoryError)
"""The types of the errors that [`is_out_of_memory`] tells apart."""
_SAID = (
    "out of memory",  # by CUDA, its driver, HIP, XPU and MPS
    "can't allocate memory",  # by the CPU's allocator
    "ALLOC_FAILED",  # by cuBLAS, cuDNN, cuSOLVER, cuSPARSE and cuFFT
    "HOST_ALLOCATION_FAILED",  # by cuDNN
    "CUBLAS_STATUS_NOT_INITIALIZED",  # its workspace is allocated at the first product
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",  # no algorithm for these sizes in the memory that is left
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


def release_memory(error: BaseException) -> None:
    """Frees what a failed pass has allocated, so that there is room for the next.

    Args:
        error: that the pass ended with; the variables of the functions it came through are cleared.
    """
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__
    # cuBLAS and cuDNN allocate outside of torch's cache, which must give back what it does not use.
    clear_device_cache(garbage_collection=True)


def run_in_halves(
    run: Callable[[Sequence[Item]], list[Result]],
    batch: Sequence[Item],
    alone: Callable[[Item, Exception], Result] | None = None,
) -> list[Result]:
    """Runs a batch, in halves where memory runs out.

    Args:
        run: gives a result for each item of a batch.
        batch: the items.
        alone: gives the result of an item that does not fit even alone, or raises; by default what `run` raised.
    """
    try:
        return run(batch)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error) or (len(batch) == 1 and alone is None):
            raise
        release_memory(error)
        if len(batch) == 1 and alone is not None:
            return [alone(batch[0], error)]
    # Outside of the `except`: the error would keep the tensors of the failed pass.
    half = len(batch) // 2
    return [*run_in_halves(run, batch[:half], alone), *run_in_halves(run, batch[half:], alone)]


def run_in_smaller_batches(run: Callable[[int], Result], batch_size: int, item: str) -> Result:
    """Runs all of something in batches of this size, or from the start in smaller ones where memory runs out.

    Args:
        run: does it, given the size.
        batch_size: the largest, halved down to 1.
        item: what a batch of one holds, for the error.

    Raises:
        InputError: not even one fits.
    """
    while True:
        try:
            return run(batch_size)
        except MEMORY_ERRORS as error:
            if not is_out_of_memory(error):
                raise
            if batch_size == 1:
                raise InputError(f"{item} alone does not fit into memory: shorten it") from error
            release_memory(error)
        batch_size //= 2


@contextmanager
def fitting(name: str, device: torch.device | str, remedy: str | None = None) -> Iterator[None]:
    """Loads a model, or moves it to a device, in the block.

    Args:
        name: of the model.
        device: where it has to fit.
        remedy: what to try if it does not; by default other values of `--device` and `--dtype`.

    Raises:
        InputError: memory runs out.
    """
    try:
        yield
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
        if remedy is None:
            on_cpu = torch.device(device).type == "cpu"
            remedy = "--dtype bfloat16" if on_cpu else "--device spread or --dtype bfloat16"
        raise InputError(f"{name} does not fit into the memory of {device}: try {remedy}") from error
