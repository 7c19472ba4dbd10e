"""What every connector is, and how the valid states of a piece are told from its padding."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from lsm_probe.models.configuration_lsm import LsmProjectorConfig


class Connector(nn.Module, ABC):
    """A module called as `connector(states, lengths)`.

    `states` is `[pieces, max_states, encoder_dim]`, `lengths` is `[pieces]` with the number of valid states of each
    piece (a piece is at most 30 s of one utterance); what stands beyond them counts for nothing, be it NaN. The
    speech tokens `[tokens, llm_dim]` of all pieces come back one after another, without padding, so that what a
    piece becomes never depends on what shares its batch.
    """

    @abstractmethod
    def __init__(self, config: LsmProjectorConfig, *, encoder_dim: int, llm_dim: int):
        super().__init__()

    @staticmethod
    @abstractmethod
    def num_tokens(config: LsmProjectorConfig, num_states: int) -> int:
        """Speech tokens made of a piece of `num_states` valid states."""

    @staticmethod
    @abstractmethod
    def token_states(config: LsmProjectorConfig, num_states: int) -> list[tuple[int, int]]:
        """Which states of a piece each of its speech tokens stands for: the first, and the one after the last.

        Tokens come in order and leave out no state; only tokens of one window share theirs.
        """

    @abstractmethod
    def forward(self, states: Tensor, lengths: Tensor) -> Tensor:
        """Turns states into speech tokens, `[tokens, llm_dim]`."""


def window_states(window: int, num_states: int) -> list[tuple[int, int]]:
    """The states of each window that [`cut_windows`] makes of a piece: the first, and the one after the last."""
    return [(first, min(first + window, num_states)) for first in range(0, num_states, window)]


def valid_states(states: Tensor, lengths: Tensor) -> Tensor:
    """Marks the valid ones of `states [pieces, max_states, dim]`: `[pieces, max_states]`."""
    return torch.arange(states.shape[1], device=states.device) < lengths[:, None]


def blank_padding(states: Tensor, lengths: Tensor) -> Tensor:
    """Zeros in place of whatever stands beyond the valid states; not a product, which would keep NaN."""
    return states.masked_fill(~valid_states(states, lengths).unsqueeze(-1), 0)


def cut_windows(states: Tensor, lengths: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Cuts states into windows that do not overlap.

    Returns:
        The windows that hold a valid state, `[windows, window, dim]`, zeros in place of states the last one of a
        piece lacks; and which states are valid, `[windows, window]`.
    """
    padding = -states.shape[1] % window
    states = nn.functional.pad(states, (0, 0, 0, padding))
    windows = blank_padding(states, lengths).unflatten(1, (-1, window))
    mask = valid_states(states, lengths).unflatten(1, (-1, window))
    used = mask.any(-1)
    return windows[used], mask[used]
