"""Going on with smaller batches where memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from accelerate.utils.memory import should_reduce_batch_size

Item = TypeVar("Item")
Result = TypeVar("Result")


def run_in_halves(
    run: Callable[[Sequence[Item]], list[Result]],
    batch: Sequence[Item],
    alone: Callable[[Item, RuntimeError], Result] | None = None,
) -> list[Result]:
    """Runs a batch, in halves where memory runs out.

    Args:
        run: gives a result for each item of a batch.
        batch: the items.
        alone: gives the result of an item that does not fit even alone, or raises; by default what `run` raised.
    """
    try:
        return run(batch)
    except RuntimeError as error:
        if len(batch) == 1 and alone and should_reduce_batch_size(error):
            return [alone(batch[0], error)]
        if len(batch) == 1 or not should_reduce_batch_size(error):
            raise
    half = len(batch) // 2
    return [*run_in_halves(run, batch[:half], alone), *run_in_halves(run, batch[half:], alone)]
