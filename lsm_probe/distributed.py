"""The processes of a run: one, or those that `torchrun` or `accelerate launch` started.

Each does its share of the work and all go on with what all have found. What ends one of them ends them all: a process
that fails says so at once, the others look before each piece of their share, and nobody is left waiting. They talk
over sockets between CPUs, whatever the models run on: a device whose memory has run out can still say so.
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
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import Tensor

from lsm_probe.errors import InputError, Terminated, WorkFailed

# While one process encodes or hashes what is large, the others wait; the libraries' 10 or 30 minutes are not enough.
_PATIENCE = timedelta(hours=3)
_FAREWELL = timedelta(minutes=1)
_SUM_AT_ONCE = 2**24  # numbers: 64 MB
_TOLD, _FAILURES = "_told_to_all", "failures"

Item = TypeVar("Item")
Found = TypeVar("Found")


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def init_distributed(*, cpu: bool = False) -> PartialState:
    """Which process this is, of how many, on which device; the first call makes them a group.

    Args:
        cpu: stay off the accelerators, if there are any.
    """
    state = PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=_PATIENCE)
    if is_distributed():
        atexit.unregister(_leave)
        atexit.register(_leave)
    return state


def _leave() -> None:
    """Ends the group before the interpreter ends: gloo's thread may not let go of a tensor after that (SIGABRT).

    The threads end with the last reference to the group.
    """
    _group.cache_clear()
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def is_main_rank() -> bool:
    """Whether this process is the one that writes and speaks."""
    return not is_distributed() or os.environ["RANK"] == "0"


def rank_suffix() -> str:
    """Tells this process's files from those of others in one folder; empty for a single process."""
    return f".{os.environ['RANK']}" if is_distributed() else ""


def local_device() -> torch.device:
    """The GPU of this process, one each; the CPU where there are none.

    Raises:
        InputError: this machine has fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if not is_distributed():
        return torch.device("cuda")
    index, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= there:
        raise InputError(
            f"process {index} has no GPU: this machine has {there}. Start no more processes than GPUs "
            f"(--nproc-per-node {there}), or give --device cpu"
        )
    torch.cuda.set_device(index)  # for what libraries put on "the" GPU
    return torch.device("cuda", index)


def all_gather_or_raise(found: Found) -> list[Found]:
    """What each process has found, in their order, in all of them; every process must come here.

    Raises:
        BaseException: what has ended another process: its own InputError, WorkFailed, OSError, Ctrl-C and the like,
            or WorkFailed that names it.
    """
    if not is_distributed():
        return [found]
    gathered, failures = _own_group().gather(found)
    if failures:
        setattr(failures[0], _TOLD, True)
        raise failures[0]
    return gathered


@contextmanager
def on_all_ranks() -> Iterator[None]:
    """An exception in one process inside the block ends all, at their next gather or the end of the block."""
    try:
        yield
    except BaseException as error:
        if is_distributed() and not hasattr(error, _TOLD):
            with suppress(WorkFailed, KeyboardInterrupt):  # its own failure is what counts
                _own_group().gather(None, error)
            setattr(error, _TOLD, True)
        raise
    all_gather_or_raise(None)


class RankShare(Generic[Item]):
    """This process's part of some work, every n-th piece. It ends early where another process has failed.

    Args:
        work: all pieces, the same in every process.
    """

    def __init__(self, work: Sequence[Item]):
        self._group = _own_group() if is_distributed() else None
        self._work = work if self._group is None else work[self._group.rank :: self._group.size]
        self._key = "" if self._group is None else self._group.new_key()
        self._done = 0

    def __iter__(self) -> Iterator[Item]:
        for item in self._work:
            if self._group is not None and self._group.someone_failed():
                return
            yield item

    def done(self, number: int) -> int:
        """Notes what this process has done; returns what all have done by now."""
        self._done = self._done + number if self._group is None else self._group.add(self._key, number)
        return self._done


def all_reduce_sum(tensors: Sequence[Tensor]) -> None:
    """Sums each tensor over the processes, in place: on the CPU, in its own dtype, the same bits in all of them.

    All processes must come here straight from an [`all_gather_or_raise`]: a failure between the two would not be heard.
    """
    if not is_distributed():
        return
    for tensor in tensors:
        for part in tensor.view(-1).split(_SUM_AT_ONCE):
            with _lost_others(), _uninterrupted():
                dist.all_reduce(part, group=_own_group().sockets)


def print_on_main(line: str) -> None:
    """Prints a line on stderr. Processes that are ended by the same error say it once.

    The others wait until the main one has spoken: a launcher that sees one process end badly ends the rest.
    """
    met = _group.cache_info().currsize  # before the processes know each other, each speaks for itself
    group = _own_group() if met else None
    if group is None or group.rank == 0:
        print(line, file=sys.stderr, flush=True)
    if group is not None:
        with suppress(RuntimeError):
            dist.monitored_barrier(group.sockets, timeout=_FAREWELL)


class _Group:
    """What the processes talk through."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.sockets = dist.new_group(backend="gloo", timeout=_PATIENCE)
        # There is no public name for the store that all process groups are made through.
        self._store = dist.PrefixStore("lsm_probe", dist.distributed_c10d._get_default_store())
        self._keys = 0
        self._failures = 0  # those that all have heard of

    def new_key(self) -> str:
        self._keys += 1
        return str(self._keys)

    def add(self, key: str, number: int) -> int:
        with _lost_others():
            return int(self._store.add(key, number))

    def someone_failed(self) -> bool:
        return self.add(_FAILURES, 0) > self._failures

    def gather(self, found: Any, failure: BaseException | None = None) -> tuple[list[Any], list[BaseException]]:
        """What the processes have found, and what has ended some of them."""
        outcome = (found, None if failure is None else _telling(failure, self.rank))
        gathered: list[Any] = [None] * self.size
        with _lost_others(), _uninterrupted():
            if failure is not None:
                self._store.add(_FAILURES, 1)
            dist.all_gather_object(gathered, outcome, group=self.sockets)
        failures = [failure for _, failure in gathered if failure is not None]
        self._failures += len(failures)
        return [found for found, _ in gathered], failures


def _own_group() -> _Group:
    init_distributed()
    return _group(dist.group.WORLD)


@cache
def _group(world: Any) -> _Group:
    return _Group()


def _telling(failure: BaseException, rank: int) -> BaseException:
    """A failure as the other processes hear of it: plain, since what libraries raise may not bear the way."""
    for kind in (InputError, WorkFailed, Terminated, KeyboardInterrupt):
        if isinstance(failure, kind):
            return kind(str(failure))
    if isinstance(failure, OSError) and failure.errno is not None:
        return OSError(failure.errno, failure.strerror, failure.filename)
    return WorkFailed(f"process {rank} of this run has failed ({type(failure).__name__}: {failure})")


@contextmanager
def _lost_others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        lost = WorkFailed("another process of this run is gone, or does not answer: run it again (--resume goes on)")
        setattr(lost, _TOLD, True)
        raise lost from error


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits for the end of the block: one process that left an exchange half-way would keep the others in it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
