"""The gloo process group, between CPUs, in which the ranks of a run exchange Python objects and failures."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any

import torch.distributed as dist

from lsm_probe.errors import RAISED_ON_ALL_RANKS, InputError, NotMeasurable, Terminated, WorkFailed

# One rank may encode or hash large files while the others wait; the defaults of 10 or 30 minutes are too short.
TIMEOUT = timedelta(hours=3)


class Gloo:
    """A gloo group of all ranks, with counters in the store of the default process group."""

    def __init__(self) -> None:
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.group = dist.new_group(backend="gloo", timeout=TIMEOUT)
        # torch has no public name for this store.
        self._store = dist.PrefixStore("lsm_probe", dist.distributed_c10d._get_default_store())
        # Keys of new counters. They are the same on every rank, because all ranks make counters in the same order.
        self.counters = map(str, count(1))
        self._raised = 0  # failures that have been raised on all ranks

    def add(self, counter: str, number: int) -> int:
        """Adds to a counter; returns its sum over all ranks."""
        with lost_rank_as_work_failed():
            return int(self._store.add(counter, number))

    def has_failed(self) -> bool:
        """Whether a rank has failed and the others have not raised its error yet."""
        return self.add("failures", 0) > self._raised

    def gather(self, value: Any, failure: BaseException | None = None) -> tuple[list[Any], list[BaseException]]:
        """Gathers the values of all ranks, and the failures of those that failed."""
        outcome = (value, None if failure is None else _picklable(failure, self.rank))
        outcomes: list[Any] = [None] * self.world_size
        with lost_rank_as_work_failed(), defer_interrupt():
            if failure is not None:
                self._store.add("failures", 1)
            dist.all_gather_object(outcomes, outcome, group=self.group)
        failures = [failure for _, failure in outcomes if failure is not None]
        self._raised += len(failures)
        return [value for value, _ in outcomes], failures


@cache
def gloo_of(world: Any) -> Gloo:
    return Gloo()


def destroy_groups() -> None:
    """Ends the groups before the interpreter exits: a gloo thread that frees a tensor later would abort the process."""
    gloo_of.cache_clear()  # the threads end with the last reference to the group
    if dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()


def _picklable(failure: BaseException, rank: int) -> BaseException:
    """The exception that the other ranks raise. It has one of a few types, as a library's may not be picklable."""
    for kind in (NotMeasurable, InputError, WorkFailed, Terminated, KeyboardInterrupt):
        if isinstance(failure, kind):
            return kind(str(failure))
    if isinstance(failure, OSError) and failure.errno is not None:
        return OSError(failure.errno, failure.strerror, failure.filename)
    return WorkFailed(f"process {rank} of this run has failed ({type(failure).__name__}: {failure})")


@contextmanager
def lost_rank_as_work_failed() -> Iterator[None]:
    """Raises WorkFailed if gloo or the store cannot reach another rank."""
    try:
        yield
    except RuntimeError as error:
        lost = WorkFailed(
            "another process of this run has ended, or does not answer: start the run again (--resume continues)"
        )
        setattr(lost, RAISED_ON_ALL_RANKS, True)
        raise lost from error


@contextmanager
def defer_interrupt() -> Iterator[None]:
    """Delays KeyboardInterrupt to the end of the block: a rank that left a collective would block the others."""
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
