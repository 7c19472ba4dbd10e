"""Validation of importance: perplexity with the most, the least and random weights set to 0."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from lsm_probe.probes.importance.masks import top_share

Which = Literal["top", "bottom", "random"]
WHICH: tuple[Which, ...] = ("top", "bottom", "random")


def perplexities(
    perplexity: Callable[[], float],
    weights: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    share: float,
    seed: int,
) -> dict[str, float]:
    """Perplexity of the unchanged model, and with a share of each matrix set to 0.

    Args:
        perplexity: measures the model.
        weights: the matrices, which are changed during a measurement and restored bit by bit.
        scores: their importance, of the same shapes.
        share: of each matrix.
        seed: of the random weights.

    Returns:
        Perplexity by `none`, `top`, `bottom` and `random`.
    """
    found = {"none": perplexity()}
    for which in WHICH:
        generator = torch.Generator().manual_seed(seed)
        with zeroed(weights, {name: _chosen(score, share, which, generator) for name, score in scores.items()}):
            found[which] = perplexity()
    return found


@contextmanager
def zeroed(weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Sets the marked weights to 0 inside the block; afterwards every bit is as before, also after an error."""
    saved: list[tuple[Tensor, tuple[Tensor, ...], Tensor]] = []
    try:
        with torch.no_grad():
            for name, mask in masks.items():
                weight = weights[name]
                # By index, because counting the marks of a boolean mask would wait for the device.
                places = tuple(axis.to(weight.device) for axis in mask.nonzero(as_tuple=True))
                saved.append((weight, places, weight[places]))
                weight[places] = 0
        yield
    finally:
        with torch.no_grad():
            for weight, places, values in saved:
                weight[places] = values


def _chosen(score: Tensor, share: float, which: Which, generator: torch.Generator) -> Tensor:
    if which == "random":
        return top_share(torch.rand(score.shape, generator=generator), share)
    return top_share(score, share, largest=which == "top")
