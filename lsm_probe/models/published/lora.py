"""Low-rank adapters (LoRA) of an LLM, which releases store separately from the weights that they change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lsm_probe.errors import InputError


def merge_lora(
    weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor], alpha: float, dtype: torch.dtype, where: str | Path
) -> dict[str, Tensor]:
    """Weights with their adapters added: W + alpha / rank * B A, computed in float32.

    Args:
        weights: weights by name; each name ends in `.weight`.
        adapters: A `[rank, in]` as `NAME.lora_A`, B `[out, rank]` as `NAME.lora_B`, where `NAME.weight` is the weight.
        alpha: the scale of the adapters.
        dtype: dtype of the merged weights.
        where: the release, for messages.

    Raises:
        InputError: an adapter lacks A or B, or does not fit the weight of its name.
    """
    merged = dict(weights)
    for name in sorted({adapter.rpartition(".")[0] for adapter in adapters}):
        weight = weights.get(f"{name}.weight")
        a, b = (adapters.get(f"{name}.lora_{half}") for half in "AB")
        if weight is None or a is None or b is None:
            lacks = "lora_A" if a is None else "lora_B" if b is None else None
            reason = f"lacks {name}.{lacks}" if lacks else f"has an adapter for {name}, which the LLM does not have"
            raise InputError(
                f"{where} {reason}: give the LLM that it was trained with, and an undamaged copy of the release"
            )
        if b.shape[1:] != a.shape[:1] or (len(b), *a.shape[1:]) != tuple(weight.shape):
            raise InputError(
                f"{where}: {name}.lora_A {list(a.shape)} and lora_B {list(b.shape)} do not fit a weight "
                f"{list(weight.shape)} of the LLM: give the LLM that it was trained with"
            )
        merged[f"{name}.weight"] = (weight.float() + alpha / len(a) * (b.float() @ a.float())).to(dtype)
    return merged
