"""Windows of states, and masks that separate the valid states of a piece from its padding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lsm_probe.models.connectors.base import LsmProjectorConfig


def window_size(config: LsmProjectorConfig, num_states: int) -> int:
    """States in a window of a piece of `num_states` valid states.

    `window="length"` is the released code of arXiv 2410.03798: the window grows with the utterance, from 1 state to
    `window_seconds` of 30 s.
    """
    if config.window != "length":
        return config.window
    return max(1, round(num_states * config.window_seconds / 30))


def window_states(config: LsmProjectorConfig, num_states: int) -> list[tuple[int, int]]:
    """The states of each window that [`cut_windows`] makes of a piece: the first, and the one after the last."""
    window = window_size(config, num_states)
    past = num_states - num_states % window if config.drop_partial_window else num_states
    return [(first, min(first + window, num_states)) for first in range(0, past, window)]


def valid_states(states: Tensor, lengths: Tensor) -> Tensor:
    """Marks the valid ones of `states [pieces, max_states, dim]`: `[pieces, max_states]`."""
    return torch.arange(states.shape[1], device=states.device) < lengths[:, None]


def blank_padding(states: Tensor, lengths: Tensor) -> Tensor:
    """Replaces everything beyond the valid states by zeros; not by multiplication, which would keep NaN."""
    return states.masked_fill(~valid_states(states, lengths).unsqueeze(-1), 0)


def cut_windows(states: Tensor, lengths: Tensor, config: LsmProjectorConfig) -> tuple[Tensor, Tensor]:
    """Cuts states into windows that do not overlap.

    Args:
        states: `[pieces, max_states, dim]`.
        lengths: valid states of each piece, `[pieces]`.
        config: says how large a window is, and whether the last partial one is kept.

    Returns:
        The windows, `[windows, window, dim]`, zeros in place of states that one lacks; and which states are valid,
        `[windows, window]`.
    """
    lengths = lengths.cpu()  # one copy for the batch, because a copy waits for the device
    if config.window != "length":
        return _cut(states, lengths, config.window, config.drop_partial_window)
    cut = []
    for i, length in enumerate(lengths.tolist()):
        window = window_size(config, length)
        cut.append(_cut(states[i : i + 1, :length], lengths[i : i + 1], window, config.drop_partial_window))
    largest = max(windows.shape[1] for windows, _ in cut)
    filled = [(nn.functional.pad(w, (0, 0, 0, largest - w.shape[1])), _filled(m, largest)) for w, m in cut]
    return torch.cat([windows for windows, _ in filled]), torch.cat([mask for _, mask in filled])


def _cut(states: Tensor, lengths: Tensor, window: int, drop_partial: bool) -> tuple[Tensor, Tensor]:
    """As [`cut_windows`]; `lengths` are on the CPU, so that selecting windows does not wait for the device."""
    padding = -states.shape[1] % window
    states = nn.functional.pad(states, (0, 0, 0, padding))
    windows = blank_padding(states, lengths.to(states.device)).unflatten(1, (-1, window))
    mask = (torch.arange(states.shape[1]) < lengths[:, None]).unflatten(1, (-1, window))
    used = (mask.all(-1) if drop_partial else mask.any(-1)).nonzero(as_tuple=True)
    return windows[used], mask[used].to(states.device)


def _filled(mask: Tensor, window: int) -> Tensor:
    return nn.functional.pad(mask, (0, window - mask.shape[1]))
