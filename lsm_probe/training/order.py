"""The order of the training data: a function of seed and epoch only, with similar lengths in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerState


class LengthGrouped(Sampler[int], TrainerCallback):
    """Draws every sample once per epoch: random optimizer steps, each sorted by length. The last step of an epoch is
    filled up with samples of the first step, so that every step is whole.

    Each step is divided into passes, which processes share. Sorting gives these passes samples of similar length and
    little padding, while every step stays a random draw. (Grouping whole steps by length, as the Trainer does, would
    make steps of one task each, because the length of a response depends on its task.)

    The order does not depend on how steps are divided, nor on any state: a run resumes in the middle of an epoch with
    exactly the samples it had not seen. It is also a callback, to get the number of the epoch, which not every loader
    wrapper of the Trainer passes on. `lengths` are in tokens; `batch_size` is the number of samples in one optimizer
    step.
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
