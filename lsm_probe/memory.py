"""Handle running out of memory: continue with smaller batches, or say in one line what does not fit."""

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
"""The exception types that [`is_out_of_memory`] examines."""
_SAID = (
    "out of memory",  # by CUDA, its driver, HIP, XPU and MPS
    "can't allocate memory",  # by the CPU's allocator
    "ALLOC_FAILED",  # by cuBLAS, cuDNN, cuSOLVER, cuSPARSE and cuFFT
    "HOST_ALLOCATION_FAILED",  # by cuDNN
    "CUBLAS_STATUS_NOT_INITIALIZED",  # cuBLAS allocates its workspace at the first product
    "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",  # no algorithm for these sizes fits into the memory left
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that memory ran out, on a device or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


def release_memory(error: BaseException) -> None:
    """Frees the memory that a failed pass allocated, so that there is room for the next pass.

    Args:
        error: the error that ended the pass; local variables in the frames of its traceback are cleared.
    """
    found: BaseException | None = error
    while found is not None:
        traceback.clear_frames(found.__traceback__)
        found = found.__cause__ or found.__context__
    # cuBLAS and cuDNN allocate outside torch's cache, so the cache must release its unused memory.
    clear_device_cache(garbage_collection=True)


def run_in_halves(
    run: Callable[[Sequence[Item]], list[Result]],
    batch: Sequence[Item],
    alone: Callable[[Item, Exception], Result] | None = None,
) -> list[Result]:
    """Runs a batch; if memory runs out, runs its halves instead.

    Args:
        run: gives a result for each item of a batch.
        batch: the items.
        alone: gives the result of an item that does not fit even alone, or raises; by default the error of `run` is
            raised.
    """
    try:
        return run(batch)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error) or (len(batch) == 1 and alone is None):
            raise
        release_memory(error)
        if len(batch) == 1 and alone is not None:
            return [alone(batch[0], error)]
    # Outside the `except`, in which the error would keep the tensors of the failed pass in memory.
    half = len(batch) // 2
    return [*run_in_halves(run, batch[:half], alone), *run_in_halves(run, batch[half:], alone)]


def run_in_smaller_batches(run: Callable[[int], Result], batch_size: int, item: str) -> Result:
    """Runs the whole work in batches of this size; if memory runs out, starts again with half the size.

    Args:
        run: does the whole work, given the batch size.
        batch_size: the first size to try; it is halved down to 1.
        item: what a batch of one item holds, for the error message.

    Raises:
        InputError: not even one item fits.
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
        name: name of the model.
        device: the device whose memory it must fit into.
        remedy: what the error message suggests; by default other values of `--device` and `--dtype`.

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
