"""The ranks of a run that `torchrun` or `accelerate launch` started, and what they exchange.

An error in one rank ends all of them with the same error. The rank that fails counts its failure in the store of the
process group; the others read that count before each item of their share, and every rank then meets the others in a
gather. All goes through gloo, between CPUs: a rank whose GPU has run out of memory can still report it.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from lsm_probe.errors import InputError, NotMeasurable, Terminated, WorkFailed

# One rank may encode or hash large files while the others wait; the defaults of 10 or 30 minutes are too short.
_TIMEOUT = timedelta(hours=3)
_EXIT_TIMEOUT = timedelta(minutes=1)
_REDUCE_ELEMENTS = 2**24  # 64 MB of float32
_RAISED_ON_ALL_RANKS = "_raised_on_all_ranks"  # attribute of an exception

Item = TypeVar("Item")
Value = TypeVar("Value")


def is_distributed() -> bool:
    """Whether this run has more than one rank."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_rank() -> bool:
    """Whether this is rank 0, which writes files and prints."""
    return not is_distributed() or os.environ["RANK"] == "0"


def rank_suffix() -> str:
    """A suffix for file names that must differ between ranks, such as `.1`; empty in a single process."""
    return f".{os.environ['RANK']}" if is_distributed() else ""


def init_distributed(*, cpu: bool = False) -> PartialState:
    """Initializes the process group at the first call; returns rank, world size and device.

    Args:
        cpu: use the CPU even if there are accelerators.
    """
    state = PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=_TIMEOUT)
    if is_distributed():
        atexit.unregister(_destroy_groups)
        atexit.register(_destroy_groups)
    return state


def local_device() -> torch.device:
    """The GPU with this rank's local number; the CPU if there are no GPUs.

    Raises:
        InputError: this machine has fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if not is_distributed():
        return torch.device("cuda")
    index, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= gpus:
        raise InputError(
            f"process {index} has no GPU: this machine has {gpus}. Start no more processes than GPUs "
            f"(--nproc-per-node {gpus}), or give --device cpu"
        )
    torch.cuda.set_device(index)  # for libraries that use the current GPU
    return torch.device("cuda", index)


def all_gather_or_raise(value: Value) -> list[Value]:
    """Gathers a picklable value from all ranks, in their order. Every rank must call it.

    Raises:
        BaseException: another rank failed: its InputError, WorkFailed, OSError, Terminated or KeyboardInterrupt, or
            WorkFailed with the text of any other error.
    """
    if not is_distributed():
        return [value]
    values, failures = _gloo().gather(value)
    if failures:
        setattr(failures[0], _RAISED_ON_ALL_RANKS, True)
        raise failures[0]
    return values


@contextmanager
def on_all_ranks() -> Iterator[None]:
    """Raises an exception of one rank in all of them, at their next gather or at the end of the block.

    Every rank must enter the block. As a decorator it does the same for a function.
    """
    try:
        yield
    except BaseException as error:
        if is_distributed() and not hasattr(error, _RAISED_ON_ALL_RANKS):
            with suppress(WorkFailed, KeyboardInterrupt):  # of the gather: this rank's own error is what is raised
                _gloo().gather(None, error)
            setattr(error, _RAISED_ON_ALL_RANKS, True)
        raise
    all_gather_or_raise(None)


class RankShare(Generic[Item]):
    """Iterates over this rank's share of the work, every n-th item, and stops early if another rank has failed.

    Args:
        work: all items, the same on every rank.
    """

    def __init__(self, work: Sequence[Item]):
        self._gloo = _gloo() if is_distributed() else None
        self._work = work if self._gloo is None else work[self._gloo.rank :: self._gloo.world_size]
        self._counter = "" if self._gloo is None else next(self._gloo.counters)
        self._done = 0

    def __iter__(self) -> Iterator[Item]:
        for item in self._work:
            if self._gloo is not None and self._gloo.has_failed():
                return
            yield item

    def done(self, number: int) -> int:
        """Adds to what this rank has done; returns what all ranks have done so far."""
        self._done = self._done + number if self._gloo is None else self._gloo.add(self._counter, number)
        return self._done


def all_reduce_sum(tensors: Sequence[Tensor]) -> None:
    """Sums each tensor over the ranks, in place, in its own dtype; the result has the same bits on every rank.

    Every rank must call it directly after [`all_gather_or_raise`]: a failure between the two would not be noticed.

    Args:
        tensors: contiguous tensors on the CPU, of the same shapes on every rank.
    """
    if not is_distributed():
        return
    for tensor in tensors:
        for part in tensor.view(-1).split(_REDUCE_ELEMENTS):
            with _lost_rank_as_work_failed(), _defer_interrupt():
                dist.all_reduce(part, group=_gloo().group)


def print_on_main(line: str) -> None:
    """Prints a line on stderr, once for all ranks.

    The others wait until rank 0 has printed: a launcher that sees one process fail ends the rest. Before the process
    group is initialized each process prints for itself.
    """
    gloo = _gloo() if _gloo_of.cache_info().currsize else None
    if gloo is None or gloo.rank == 0:
        print(line, file=sys.stderr, flush=True)
    if gloo is not None:
        with suppress(RuntimeError):
            dist.monitored_barrier(gloo.group, timeout=_EXIT_TIMEOUT)


class _Gloo:
    """A gloo group of all ranks, with counters in the store that the process group was made through."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        # torch has no public name for this store.
        self._store = dist.PrefixStore("lsm_probe", dist.distributed_c10d._get_default_store())
        # Keys of new counters: the same on every rank, since all make them in the same order.
        self.counters = map(str, count(1))
        self._raised = 0  # failures that have been raised on all ranks

    def add(self, counter: str, number: int) -> int:
        """Adds to a counter; returns its sum over all ranks."""
        with _lost_rank_as_work_failed():
            return int(self._store.add(counter, number))

    def has_failed(self) -> bool:
        """Whether a rank has failed and the others have yet to raise its error."""
        return self.add("failures", 0) > self._raised

    def gather(self, value: Any, failure: BaseException | None = None) -> tuple[list[Any], list[BaseException]]:
        """Gathers the values of all ranks, and the failures of those that failed."""
        outcome = (value, None if failure is None else _picklable(failure, self.rank))
        outcomes: list[Any] = [None] * self.world_size
        with _lost_rank_as_work_failed(), _defer_interrupt():
            if failure is not None:
                self._store.add("failures", 1)
            dist.all_gather_object(outcomes, outcome, group=self.group)
        failures = [failure for _, failure in outcomes if failure is not None]
        self._raised += len(failures)
        return [value for value, _ in outcomes], failures


def _gloo() -> _Gloo:
    init_distributed()
    return _gloo_of(dist.group.WORLD)


@cache
def _gloo_of(world: Any) -> _Gloo:
    return _Gloo()


def _destroy_groups() -> None:
    """Ends the groups before the interpreter: a gloo thread that frees a tensor later aborts the process (SIGABRT)."""
    _gloo_of.cache_clear()  # the threads end with the last reference to the group
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _picklable(failure: BaseException, rank: int) -> BaseException:
    """A failure as the other ranks raise it: one of a few types, since exceptions of libraries may not be picklable."""
    for kind in (NotMeasurable, InputError, WorkFailed, Terminated, KeyboardInterrupt):
        if isinstance(failure, kind):
            return kind(str(failure))
    if isinstance(failure, OSError) and failure.errno is not None:
        return OSError(failure.errno, failure.strerror, failure.filename)
    return WorkFailed(f"process {rank} of this run has failed ({type(failure).__name__}: {failure})")


@contextmanager
def _lost_rank_as_work_failed() -> Iterator[None]:
    """Raises WorkFailed if gloo or the store cannot reach another rank."""
    try:
        yield
    except RuntimeError as error:
        lost = WorkFailed("another process of this run is gone, or does not answer: run it again (--resume goes on)")
        setattr(lost, _RAISED_ON_ALL_RANKS, True)
        raise lost from error


@contextmanager
def _defer_interrupt() -> Iterator[None]:
    """Raises KeyboardInterrupt only at the end of the block: a rank that left a collective would block the others."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt
