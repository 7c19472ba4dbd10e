"""P-values corrected for testing hundreds of heads at once."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lsm_probe.runner.result import Curve, Floats, rounded

SIGNIFICANT = 0.05
"""Largest corrected p-value of a head that is reported as different from 0, or as changed."""
_DRAWS = 1_000


@dataclass(frozen=True)
class Tested(Curve):
    """A number by layer and head, with the uncorrected 95 % interval of each head, all `[layers, heads]`.

    Attributes:
        p: p-value of the number being 0, corrected for the number of heads; see [`corrected_p`].
    """

    p: Floats

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "p_corrected": rounded(self.p), "n_heads": int(self.p.size)}


def corrected_p(
    values: Floats, clusters: NDArray[np.int64], *, seed: int, side: Literal["greater", "both"] = "both"
) -> Floats:
    """P-values of "the mean over samples is 0", corrected for the number of heads by the maximum statistic.

    Under the null hypothesis the sign of an utterance's values is arbitrary. A draw changes the signs of all its heads
    together, which keeps their correlation. p is the share of draws in which the *largest* statistic of all
    heads reaches the head's own (Nichols & Holmes 2002, "Nonparametric permutation tests for functional neuroimaging",
    section "Single threshold test"). The chance that any head is wrongly below 0.05 is then at most 0.05, for values
    with a symmetric distribution. With n utterances p is at least `2**-n`, or twice that for `both`, so four utterances
    cannot give a p below 0.05.

    Args:
        values: `[samples, ...]`, one number for each sample and head; NaN makes a head's p 1.
        clusters: index of the utterance of each sample, `[samples]`.
        seed: of the draws.
        side: `greater` tests whether means are above 0, `both` whether they differ from 0.

    Returns:
        `[...]`. Up to 1,000 sign changes (nine utterances), p comes from all of them. Otherwise it comes from 1,000
        draws and the unchanged signs, in steps of 1 / 1001.
    """
    flat = values.reshape(len(values), -1).astype(np.float64)
    sums = np.zeros((int(clusters.max()) + 1, flat.shape[1]))
    np.add.at(sums, clusters, flat)
    signs = _signs(len(sums), seed)
    # Student's t rises with the sum divided by its root mean square, and sign changes leave the latter unchanged.
    length = np.sqrt((sums**2).sum(0))
    known = length > 0
    statistics = signs @ sums[:, known] / length[known]
    if side == "both":
        statistics = np.abs(statistics)
    p = np.ones(flat.shape[1])
    # Draws that equal the unchanged signs count as reaching them, despite rounding.
    p[known] = (statistics.max(1, initial=-np.inf)[:, None] >= statistics[0] - 1e-9).mean(0)
    return p.reshape(values.shape[1:])


def _signs(count: int, seed: int) -> NDArray[np.float64]:
    """Signs of `count` utterances, `[draws, count]`; the first draw is the unchanged signs."""
    if 2**count <= _DRAWS:
        # All sign changes: random draws might miss how few there are, and give a false significance.
        return np.array(list(product([1.0, -1.0], repeat=count)))
    drawn = np.random.default_rng(seed).choice([-1.0, 1.0], size=(_DRAWS, count))
    return np.vstack([np.ones(count), drawn])
