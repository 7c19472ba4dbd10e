"""Percentile bootstrap over utterances: an interval that speaks of samples, not of training seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1_000
LEVEL = 0.95


def number_clusters(utterances: Sequence[str]) -> NDArray[np.int64]:
    """Numbers the utterances 0, 1, ... in the order they come in, `[samples]`.

    Not sorted: their keys hold paths, and the same data elsewhere would be drawn in another order.
    """
    numbers = {utterance: i for i, utterance in enumerate(dict.fromkeys(utterances))}
    return np.array([numbers[utterance] for utterance in utterances], dtype=np.int64)


def cluster_weights(clusters: NDArray[np.int64], seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """How often each sample is drawn in each resample, `[resamples, samples]`.

    Whole clusters are drawn: samples of one utterance (several instructions about it) stay together.

    Args:
        clusters: the utterance each sample belongs to, `[samples]`, numbered 0, 1, ...
        seed: seeds the draw; the same seed and clusters give the same resamples, so paired differences stay paired.
    """
    count = int(clusters.max()) + 1
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    return draws[:, clusters].astype(np.float64)


def interval(resampled: NDArray[np.floating[Any]]) -> tuple[NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Lower and upper end of the 95 % percentile interval over the first axis, `[resamples, ...]`."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return low, high
