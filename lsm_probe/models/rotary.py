"""Rotary frequencies that depend on the sequence length (`longrope`, `dynamic`), computed separately for each row.

transformers uses the largest position in a pass as the length of all its rows, including padding, and `dynamic` keeps
the frequencies of a longer sequence until a much shorter one comes. So a batch, a cached beginning, or an earlier pass
would change the numbers of a sample. Here each row is rotated as if it were the only one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lsm_probe.models.layers import find_decoder

_sequence_length: ContextVar[int | None] = ContextVar("lsm_probe_sequence_length", default=None)


def separate_rows(llm: PreTrainedModel) -> None:
    """Makes all later passes of the LLM use, for each row of a batch, the rotary frequencies of its own length.

    A model whose frequencies are the same for all lengths stays as it is.
    """
    decoder = find_decoder(llm)
    rotary = {module: limits for module in decoder.modules() if (limits := _find_limits(module))}
    if rotary and _rows_of(llm) is None:
        rows = _SeparateRows([limit for limits in rotary.values() for limit in limits])
        decoder.register_forward_pre_hook(rows, with_kwargs=True)
        for module in rotary:
            module.register_forward_hook(rows.rotate, with_kwargs=True)


def depends_on_length(llm: PreTrainedModel) -> bool:
    """Whether rotary frequencies depend on the length of a sequence."""
    return _rows_of(llm) is not None


@contextmanager
def sequence_length(tokens: int) -> Iterator[None]:
    """Makes all passes inside the block use the rotary frequencies of a sequence with this number of tokens.

    For a pass over a part of a sequence, such as a beginning whose key-value cache is kept.
    """
    token = _sequence_length.set(tokens)
    try:
        yield
    finally:
        _sequence_length.reset(token)


def group_by_frequencies(llm: PreTrainedModel, lengths: Sequence[int]) -> list[list[int]]:
    """Indices of the sequences in groups that have the same rotary frequencies; `lengths` are in tokens."""
    rows = _rows_of(llm)
    if rows is None:
        return [list(range(len(lengths)))]
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, length in enumerate(lengths):
        groups.setdefault(rows.frequencies(length), []).append(i)
    return list(groups.values())


def frequencies_unchanged(llm: PreTrainedModel, lengths: Sequence[int], more: int) -> bool:
    """Whether sequences of these lengths, in tokens, keep their rotary frequencies when each grows by `more` tokens."""
    rows = _rows_of(llm)
    return rows is None or all(rows.frequencies(n) == rows.frequencies(n + more) for n in lengths)


class _SeparateRows:
    """Hooks: before the decoder runs, store the padding; after a rotary module ran, rotate the rows one by one."""

    def __init__(self, limits: Sequence[tuple[bool, int]]):
        self.limits = limits
        self.mask: Tensor | None = None

    def frequencies(self, length: int) -> tuple[int, ...]:
        """A key that identifies the frequencies of a sequence of this length."""
        return tuple(max(length, limit) if grows else int(length > limit) for grows, limit in self.limits)

    def __call__(self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def rotate(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = signature(type(module).forward).bind(module, *args, **kwargs).arguments
        del given["self"]
        x, positions = given.pop("x"), given.pop("position_ids")
        tokens = positions.shape[-1]
        if self.mask is not None:
            # A row of padding is not a part of a sequence: at position 0 it does not make it longer.
            padding = self.mask[:, -tokens:].to(positions.device) == 0
            positions = positions.expand(*positions.shape[:-2], *padding.shape).masked_fill(padding, 0)
        rotated = [_rotate_alone(module, x, row, given) for row in positions.split(1, dim=-2)]
        if isinstance(output, Tensor):
            return torch.cat([row[:, :tokens] for row in rotated])
        return tuple(torch.cat([row[..., :tokens, :] for row in part], dim=-3) for part in zip(*rotated, strict=True))


def _rotate_alone(module: Any, x: Tensor, positions: Tensor, given: dict[str, Any]) -> Any:
    """What a rotary module gives for one row `[..., 1, tokens]`; a last position may be added for the length."""
    # A pass over one token resets `dynamic` modules to their first frequencies.
    module.forward(x, torch.zeros_like(positions[..., :1]), **given)
    length = _sequence_length.get()
    if length is not None:
        positions = torch.cat([positions, torch.full_like(positions[..., :1], length - 1)], dim=-1)
    return module.forward(x, positions, **given)


def _find_limits(module: Any) -> list[tuple[bool, int]]:
    """Lengths up to which the frequencies of a rotary module stay the same, one for each kind of layer it serves.

    Returns:
        `(grows, limit)`: beyond the limit the frequencies change with each further token, or once.
    """
    kinds = getattr(module, "rope_type", None) or {}
    parameters = getattr(getattr(module, "config", None), "rope_parameters", {})
    limits: list[tuple[bool, int]] = []
    for layer_type, kind in (kinds if isinstance(kinds, dict) else {None: kinds}).items():
        own = parameters if layer_type is None else parameters[layer_type]
        if kind == "longrope" or "long_mscale" in own:  # Phi-MoE changes the scale too, whatever the kind
            limits.append((False, own["original_max_position_embeddings"]))
        elif "dynamic" in kind:
            limits.append((True, module.original_max_seq_len))
    return limits


def _rows_of(llm: Any) -> _SeparateRows | None:
    hooks = find_decoder(llm)._forward_pre_hooks.values()
    return next((hook for hook in hooks if isinstance(hook, _SeparateRows)), None)
