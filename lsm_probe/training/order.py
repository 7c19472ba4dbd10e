"""The order of the training data: a function of seed and epoch alone, alike lengths in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerState


class LengthGrouped(Sampler[int], TrainerCallback):
    """Draws every sample once an epoch: random optimizer steps, each sorted by length. What the last step of an epoch
    lacks is taken from its first once more, so that every step is whole.

    The passes that a step is divided into, and the processes that share them, so get samples of about one length and
    little padding, while every step stays a random draw. (Grouping whole steps by length, as the Trainer does, would
    make steps of one task each: the length of an answer tells its task.)

    The order does not depend on how steps are divided, nor on any state: a run goes on in the middle of an epoch with
    exactly what it had not seen. As a callback it learns which epoch begins, since not every way in which the Trainer
    wraps a loader hands that on. `lengths` are in tokens; `batch_size` is in samples of one optimizer step.
    """

    def __init__(self, lengths: NDArray[Any], batch_size: int, seed: int):
        self.lengths = lengths.tolist()
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.lengths) + -len(self.lengths) % self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = list(islice(cycle(torch.randperm(len(self.lengths), generator=generator).tolist()), len(self)))
        for start in range(0, len(order), self.batch_size):
            yield from sorted(order[start : start + self.batch_size], key=lambda i: -self.lengths[i])

    def on_epoch_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self.epoch = int(state.epoch or 0)
