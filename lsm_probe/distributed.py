"""The ranks of a run started by `torchrun` or `accelerate launch`, and the data they exchange.

An error in one rank ends all ranks with the same error. The rank that fails increases a failure count in the store of
the process group. The others read that count before each item of their share. Then all ranks call the same gather,
which hands the error to each of them. All communication uses gloo between CPUs, so a rank whose GPU has run out of
memory can still report it.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Generic, TypeVar

from lsm_probe.errors import RAISED_ON_ALL_RANKS, InputError, WorkFailed

# torch takes seconds to import, and code that only reads results also asks for the rank: import it only where used.
if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from torch import Tensor

    from lsm_probe.gloo import Gloo

_EXIT_TIMEOUT = timedelta(minutes=1)
_REDUCE_ELEMENTS = 2**24  # 64 MB of float32

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
        cpu: use the CPU even if there are GPUs.
    """
    import torch
    from accelerate import PartialState

    from lsm_probe.gloo import TIMEOUT, destroy_groups

    state = PartialState(cpu=cpu or not torch.cuda.is_available(), timeout=TIMEOUT)
    if is_distributed():
        atexit.unregister(destroy_groups)
        atexit.register(destroy_groups)
    return state


def local_device() -> torch.device:
    """The GPU with this rank's local number; the CPU if there are no GPUs.

    Raises:
        InputError: this machine has fewer GPUs than ranks.
    """
    import torch

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
        setattr(failures[0], RAISED_ON_ALL_RANKS, True)
        raise failures[0]
    return values


@contextmanager
def on_all_ranks() -> Iterator[None]:
    """Raises an exception of one rank in all ranks, at their next gather or at the end of the block.

    Every rank must enter the block. As a decorator, it does the same for a function.
    """
    try:
        yield
    except BaseException as error:
        if is_distributed() and not hasattr(error, RAISED_ON_ALL_RANKS):
            with suppress(WorkFailed, KeyboardInterrupt):  # raised by the gather; this rank raises its own error
                _gloo().gather(None, error)
            setattr(error, RAISED_ON_ALL_RANKS, True)
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
        """Adds to the number of items this rank has done; returns the number that all ranks have done so far."""
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
    import torch.distributed as dist

    from lsm_probe.gloo import defer_interrupt, lost_rank_as_work_failed

    for tensor in tensors:
        for part in tensor.view(-1).split(_REDUCE_ELEMENTS):
            with lost_rank_as_work_failed(), defer_interrupt():
                dist.all_reduce(part, group=_gloo().group)


def print_on_main(line: str) -> None:
    """Prints a line on stderr, once for all ranks.

    The other ranks wait until rank 0 has printed, because a launcher that sees one process fail ends the rest. Before
    the process group is initialized, each process prints the line itself.
    """
    gloo = _initialized_gloo()
    if gloo is None or gloo.rank == 0:
        print(line, file=sys.stderr, flush=True)
    if gloo is not None:
        import torch.distributed as dist

        with suppress(RuntimeError):
            dist.monitored_barrier(gloo.group, timeout=_EXIT_TIMEOUT)


def _gloo() -> Gloo:
    """The process group, initialized at the first call."""
    import torch.distributed as dist

    from lsm_probe.gloo import gloo_of

    init_distributed()
    return gloo_of(dist.group.WORLD)


def _initialized_gloo() -> Gloo | None:
    """The process group; None before it is initialized, and in a single process."""
    if not is_distributed():
        return None
    from lsm_probe.gloo import gloo_of

    return _gloo() if gloo_of.cache_info().currsize else None
