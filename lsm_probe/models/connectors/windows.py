"""Windows of states, and how the valid states of a piece are distinguished from its padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
