"""How alike two sets of paired vectors are: pure maths over numpy arrays, no model and no I/O.

The sets are representations of the same samples, row i of `x` (speech, say) paired with row i of `y` (transcript):
`[samples, d]`. `clusters`, `[samples]`, says which utterance a row speaks of. Rows of one utterance, under several
instructions, are not independent of each other and never count as "other" rows.

| function | says | unalike to alike |
|---|---|---|
| [`paired_cosine`], [`unpaired_cosine`] | how small the angle is, within pairs and between utterances | -1 to 1 |
| [`retrieval`] | how often a row's nearest neighbour in the other set is its own partner | 0 to 1 |
| [`debiased_cka`] | how alike the geometry is, whatever the rotation, the scale and the place | about 0 to 1 |
| [`mmd`] | how far apart the distributions are, and whether by more than chance | 1 to 0 |
| [`centroid_distance`] | how far apart the centres are | large to 0 |
| [`joint_tsne`] | a picture of both sets in one plane | |

[`standardised`] rows show what an offset between the sets or a few large dimensions hide from cosines and CKA.

Everything is accumulated in float64, whatever the input. Every function raises InputError, in one line, where a value
is NaN or infinite. The cosine of a zero vector with anything is taken as 0. Differences of the order of float64
rounding count as none: see `ROUNDING`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsm_probe.errors import InputError

Rows = NDArray[np.floating[Any]]
Floats = NDArray[np.float64]
Clusters = NDArray[np.int64]

PERMUTATIONS = 1_000

# Cosines and kernel means, of the order of 1, that are this close count as equal. The sums over d = 4,096 products
# that they are made of are off by some 1e-14, differently for equal rows at different places of a matrix product.
ROUNDING = 1e-10
# A sum of squares this small against the squares that cancelled in it is rounding, and stands for 0.
CANCELLED = 1e-12


class Mmd(NamedTuple):
    """What [`mmd`] finds."""

    squared: float  # unbiased estimate of the squared MMD; negative by chance where the distributions are alike
    p_value: float
    sigma: float  # width of the kernel


def paired_cosine(x: Rows, y: Rows) -> Floats:
    """The cosine of each pair, `cos(x_i, y_i)`, `[samples]`; 0 where either is the zero vector.

    Args:
        x, y: `[samples, d]`.

    Raises:
        InputError: a value is NaN or infinite.
    """
    x, y = _finite(x, y)
    return (_unit(x) * _unit(y)).sum(1)


def unpaired_cosine(x: Rows, y: Rows, clusters: Clusters) -> Floats:
    """The baseline of [`paired_cosine`]: the mean cosine with rows of other utterances in the other set, `[samples]`.

    For sample i the mean over the rows j of other clusters of `(cos(x_i, y_j) + cos(x_j, y_i)) / 2`. By linearity it
    is the product of a unit row with the sum of the others' unit rows; no `[samples, samples]` is built.

    Args:
        x, y: `[samples, d]`.
        clusters: the utterance of each row, `[samples]`.

    Raises:
        InputError: a value is NaN or infinite, or there is only one utterance.
    """
    x, y = _finite(x, y)
    number = _numbered(clusters, 2, "the cosine with other utterances")
    x, y = _unit(x), _unit(y)
    others = len(x) - np.bincount(number)[number]
    return ((x * _sum_of_others(y, number)).sum(1) + (y * _sum_of_others(x, number)).sum(1)) / (2 * others)


def retrieval(x: Rows, y: Rows, clusters: Clusters) -> tuple[Floats, Floats]:
    """Recall at 1 by cosine, both ways: whether the nearest row of the other set is the row's own partner.

    Candidates are the own partner and the rows of all other clusters: the same utterance under another instruction is
    neither a hit nor a miss. Where the own partner is among t candidates tied at the top (within `ROUNDING`), the hit
    counts 1 / t, what drawing one of them by lot would give on average. So sets that are constant, or zero, score the
    level of chance, 1 / candidates, with `candidates = samples - (rows of the own cluster) + 1`.

    Args:
        x, y: `[samples, d]`.
        clusters: the utterance of each row, `[samples]`.

    Returns:
        `(hits_xy, hits_yx)`, each `[samples]`, in [0, 1]: x_i looking for its y_i, and y_i looking for its x_i.

    Raises:
        InputError: a value is NaN or infinite, or there is only one utterance.
    """
    x, y = _finite(x, y)
    number = _numbered(clusters, 2, "retrieval")
    cosines = _unit(x) @ _unit(y).T
    same = number[:, None] == number
    np.fill_diagonal(same, False)
    cosines[same] = -np.inf
    return _hits(cosines), _hits(cosines.T)


def debiased_cka(x: Rows, y: Rows, clusters: Clusters | None = None) -> float:
    """Linear CKA (Kornblith et al., ICML 2019) with unbiased estimates of HSIC (Song et al., JMLR 2012, equation 5).

    `HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))` over the Gram matrices `K = x x^T` and `L = y y^T` with their diagonals
    set to 0. With the biased estimate of HSIC, CKA is near 1 even for unrelated sets where d is much larger than the
    number of samples (Murphy et al., 2024, arXiv 2405.01012); this one is then near 0, and may be negative.

    The estimate takes its rows for independent. Rows of one utterance are not: they bring back the bias that leaving
    out the diagonal removes. Give `clusters` where an utterance has several rows: its rows are then averaged first,
    and the number speaks of the geometry of the utterances' means. With one row an utterance it changes nothing.

    Args:
        x, y: `[samples, d]`; each may have its own d.
        clusters: the utterance of each row, `[samples]`; None takes each row as an utterance of its own.

    Returns:
        CKA, at most 1; NaN where a set has no geometry to compare, its HSIC with itself being 0: it is constant, or
        constant but for one row, or all its rows are orthogonal to each other.

    Raises:
        InputError: a value is NaN or infinite, or there are fewer than 4 utterances (samples, without clusters).
    """
    gram_x, gram_y = _grams(x, y, np.arange(len(x)) if clusters is None else clusters, 4)
    return float(_cka(gram_x, gram_y, leave_out=False)[0])


def jackknife_cka(x: Rows, y: Rows, clusters: Clusters) -> Floats:
    """[`debiased_cka`] of the utterances without one of them, `[clusters]`, by ascending cluster number.

    The Gram matrices are made once: HSIC does not depend on where the rows are centred.

    Args:
        x, y: `[samples, d]`; each may have its own d.
        clusters: the utterance of each row, `[samples]`; rows of one are averaged.

    Raises:
        InputError: a value is NaN or infinite, or there are fewer than 5 utterances.
    """
    gram_x, gram_y = _grams(x, y, clusters, 5)
    return _cka(gram_x, gram_y, leave_out=True)


def mmd(x: Rows, y: Rows, clusters: Clusters, *, seed: int = 0, permutations: int = PERMUTATIONS) -> Mmd:
    """Unbiased squared maximum mean discrepancy, and whether it is more than chance (Gretton et al., JMLR 2012).

    The estimate is the mean of `h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)` over the ordered pairs
    i, j of different clusters. With one row a cluster that is the U-statistic of Lemma 6 for sets of equal size
    (equation 4), without the cross terms `k(x_i, y_i)`, and not the general equation 3, which has them: x_i and y_i
    are of one sample, closer (or farther) than independent draws would be, and equation 3 would be biased by that.
    Pairs of rows of one utterance are left out for the same reason.

    The kernel is `k(a, b) = exp(-|a - b|^2 / (2 sigma^2))`, sigma the median distance between the rows of both sets
    pooled (section 8 there). Where more than half of the pairs coincide, so that the median is 0, sigma is the median
    of the distances that are not 0; where all do, sigma is 0, the estimate 0 and the p-value 1.

    The p-value asks how often the estimate would be as large had it been chance which of an utterance's two sets is
    called x and which y. Each permutation swaps x and y for some utterances, all rows of an utterance together. Free
    relabelling of the pooled rows would be wrong: it splits pairs and utterances, whose rows are alike, and so puts
    the estimate in a distribution that it could not come from. A swap of i turns h_ij into -h_ij, so that the
    estimate under signs s is the mean of `s_i s_j h_ij`, exactly; sigma does not change. The p-value is
    `(1 + #{swapped >= observed}) / (1 + permutations)`. As swapping all utterances changes nothing, it cannot be much
    below `2 ** (1 - utterances)`: it takes 6 utterances to come below 0.05.

    Args:
        x, y: `[samples, d]`.
        clusters: the utterance of each row, `[samples]`.
        seed: seeds the permutations.
        permutations: how many.

    Raises:
        InputError: a value is NaN or infinite, or there is only one utterance.
    """
    x, y = _finite(x, y)
    number = _numbered(clusters, 2, "MMD")
    squares = _squared_distances(np.concatenate([x, y]))
    sigma = _median_distance(squares)
    kernel = np.exp(squares / (-2 * (sigma or 1.0) ** 2))
    n = len(x)
    h = kernel[:n, :n] + kernel[n:, n:] - kernel[:n, n:] - kernel[n:, :n]
    between = _cluster_sums(_cluster_sums(h, number).T, number)  # [clusters, clusters]
    np.fill_diagonal(between, 0)
    between /= n**2 - np.square(np.bincount(number)).sum()
    observed = between.sum()
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(permutations, len(between)))
    swapped = ((signs @ between) * signs).sum(1)
    p_value = (1 + int(np.count_nonzero(swapped >= observed - ROUNDING))) / (1 + permutations)
    return Mmd(float(observed), p_value, sigma)


def centroid_distance(x: Rows, y: Rows, weights: Floats | None = None) -> Any:
    """Distance of the two means over the spread within the sets: unit-free, so that layers can be compared.

    `|m_x - m_y| / sqrt((sum_i w_i |x_i - m_x|^2 + sum_i w_i |y_i - m_y|^2) / (2 sum_i w_i))` with the weighted means
    m_x, m_y. At 1, the means are as far apart as a row typically is from its own mean.

    A distance is never negative, so noise adds to it: two sets of n independent rows of one distribution have about
    `sqrt(2 / n)`.

    Args:
        x, y: `[samples, d]`.
        weights: how often each sample counts, `[draws, samples]`; None takes each once.

    Returns:
        One number, or `[draws]` with weights; NaN where both sets are constant, there being nothing to measure by.

    Raises:
        InputError: a value is NaN or infinite.
    """
    x, y = _finite(x, y)
    shares = np.full((1, len(x)), 1 / len(x)) if weights is None else weights / weights.sum(1, keepdims=True)
    # Taken from the plain means, the squares below are of the order of the spread and cancel little.
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    second = shares @ (np.square(x).sum(1) + np.square(y).sum(1))
    x_shift, y_shift = shares @ x, shares @ y  # [draws, d]: the weighted means from the plain ones
    variance = second - np.square(x_shift).sum(1) - np.square(y_shift).sum(1)
    variance[variance <= CANCELLED * second] = np.nan
    distance = np.linalg.norm(x_mean - y_mean + x_shift - y_shift, axis=1) / np.sqrt(variance / 2)
    return float(distance[0]) if weights is None else distance


def standardised(rows: Rows) -> Floats:
    """Each dimension with mean 0 and variance 1 over the rows, `[samples, d]`; a constant one is 0.

    Two things hide what speech and transcript share, and this takes both away. The offset between the sets: where it is
    large against the spread within them, one and the same row is the nearest to all, and retrieval is at chance
    whatever the rest looks like. And single dimensions with "massive activations" (Sun et al., 2024, arXiv
    2402.17762): one that holds most of a set's variance decides its cosines and its CKA alone.

    Raises:
        InputError: a value is NaN or infinite.
    """
    rows, _ = _finite(rows, rows)
    centred = rows - rows.mean(0)
    variance = np.square(centred).mean(0)
    variance[variance <= CANCELLED * np.square(rows).mean(0)] = np.inf
    return centred / np.sqrt(variance)


def joint_tsne(x: Rows, y: Rows, *, perplexity: float = 30.0, seed: int = 0) -> tuple[Floats, Floats]:
    """t-SNE (van der Maaten and Hinton, JMLR 2008) of both sets in one plane, fitted to their rows pooled.

    Args:
        x, y: `[samples, d]`.
        perplexity: about how many neighbours a row is placed by; above 0 and below 2 * samples.
        seed: seeds the principal components that the fit starts from; the same seed and rows give the same picture.

    Returns:
        Where the rows of x and those of y lie, each `[samples, 2]`. All at 0 where the pooled rows are all the same.

    Raises:
        InputError: a value is NaN or infinite, or perplexity is out of range.
    """
    from sklearn.manifold import TSNE  # takes a second, which the other functions need not wait for

    x, y = _finite(x, y)
    check_perplexity(perplexity, len(x))
    pooled = np.concatenate([x, y])
    if (pooled == pooled[0]).all():  # the start by principal components divides by their spread
        return np.zeros((len(x), 2)), np.zeros((len(y), 2))
    places = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(pooled).astype(np.float64)
    return places[: len(x)], places[len(x) :]


def check_perplexity(perplexity: float, samples: int) -> None:
    """Raises InputError for a perplexity that is not above 0, or not below 2 * samples: see [`joint_tsne`]."""
    if not perplexity > 0:
        raise InputError(f"--perplexity {perplexity:g} must be above 0")
    if 2 * samples <= perplexity:
        raise InputError(
            f"t-SNE at perplexity {perplexity:g} needs more than {perplexity / 2:g} samples (each has two vectors), "
            f"got {samples}: lower --perplexity or give more samples"
        )


def _finite(x: Rows, y: Rows) -> tuple[Floats, Floats]:
    """Both sets in float64; raises InputError where a value is NaN or infinite."""
    for name, rows in (("first", x), ("second", y)):
        bad = np.flatnonzero(~np.isfinite(rows).all(1))
        if len(bad):
            raise InputError(
                f"the {name} set of representations holds NaN or infinity in {len(bad)} of {len(rows)} rows "
                f"(the first is row {bad[0]}): in half precision, try --dtype float32"
            )
    return np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)


def _numbered(clusters: Clusters, least: int, what: str) -> NDArray[np.intp]:
    """The clusters renumbered 0, 1, ... in ascending order, `[samples]`; raises InputError if fewer than `least`."""
    names, number = np.unique(clusters, return_inverse=True)
    if len(names) < least:
        raise InputError(f"{what} needs at least {least} utterances, got {len(names)}: give more samples")
    return number


def _cluster_sums(rows: Floats, number: NDArray[np.intp]) -> Floats:
    """Sums over the rows of each cluster: `[samples, d]` to `[clusters, d]`."""
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(number.max() + 1))
    return np.add.reduceat(rows[order], starts, axis=0)


def _sum_of_others(rows: Floats, number: NDArray[np.intp]) -> Floats:
    """For each row the sum of the rows of other clusters, `[samples, d]`."""
    return (rows.sum(0) - _cluster_sums(rows, number))[number]


def _unit(rows: Floats) -> Floats:
    """Rows of length 1; zero rows stay as they are."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _hits(cosines: Floats) -> Floats:
    """The share of the diagonal in the top of each row, `[samples, samples]` to `[samples]`."""
    tied = cosines >= cosines.max(1, keepdims=True) - ROUNDING
    return tied.diagonal() / tied.sum(1)


def _grams(x: Rows, y: Rows, clusters: Clusters, least: int) -> tuple[Floats, Floats]:
    """Gram matrices of the utterances' means, `[clusters, clusters]`, the diagonals 0."""
    x, y = _finite(x, y)
    number = _numbered(clusters, least, "CKA" if least == 4 else "the interval of CKA")
    grams = []
    for rows in (x, y):
        means = _cluster_sums(rows, number) / np.bincount(number)[:, None]
        means -= means.mean(0)  # changes no HSIC, but keeps a large common part of the rows from costing digits
        gram = means @ means.T
        np.fill_diagonal(gram, 0)
        grams.append(gram)
    return grams[0], grams[1]


def _cka(gram_x: Floats, gram_y: Floats, *, leave_out: bool) -> Floats:
    """CKA from Gram matrices without diagonals, `[1]`; or without each row in turn, `[n]`."""
    scale = np.sqrt(_self_hsic(gram_x, leave_out) * _self_hsic(gram_y, leave_out))
    return _hsic(gram_x, gram_y, leave_out) / scale


def _hsic(gram_x: Floats, gram_y: Floats, leave_out: bool) -> Floats:
    """Unbiased HSIC (Song et al., equation 5), `[1]` or `[n]`.

    With K, L the Gram matrices and m rows,
    `(tr(K L) + 1'K1 1'L1 / ((m - 1)(m - 2)) - 2 / (m - 2) 1'K L1) / (m (m - 3))`
    """
    m = len(gram_x) - leave_out
    x_sums, y_sums = _row_sums(gram_x, leave_out), _row_sums(gram_y, leave_out)
    totals = x_sums.sum(1) * y_sums.sum(1) / ((m - 1) * (m - 2))
    trace = _row_sums(gram_x * gram_y, leave_out).sum(1)
    return (trace + totals - 2 / (m - 2) * (x_sums * y_sums).sum(1)) / (m * (m - 3))


def _self_hsic(gram: Floats, leave_out: bool) -> Floats:
    """HSIC of a set with itself, a sum of squares; NaN where it is 0 up to rounding."""
    m = len(gram) - leave_out
    hsic = _hsic(gram, gram, leave_out)
    mean_square = _row_sums(gram * gram, leave_out).sum(1) / (m * (m - 1))
    return np.where(hsic <= CANCELLED * mean_square, np.nan, hsic)


def _row_sums(gram: Floats, leave_out: bool) -> Floats:
    """Sums of the rows of a symmetric matrix, `[1, n]`; or without row and column c in turn, `[c, n]`, 0 at c, c."""
    sums = gram.sum(0, keepdims=True)
    if leave_out:
        sums = sums - gram
        np.fill_diagonal(sums, 0)
    return sums


def _squared_distances(rows: Floats) -> Floats:
    """Squared Euclidean distances of all pairs of rows, `[n, n]`; exactly 0 for rows that are the same."""
    rows = rows - rows.mean(0)  # keeps a large common part from costing digits
    products = rows @ rows.T
    lengths = products.diagonal()
    sums = lengths[:, None] + lengths
    squares = sums - 2 * products
    squares[squares <= CANCELLED * sums] = 0
    return squares


def _median_distance(squares: Floats) -> float:
    """The median distance between different rows; of those that are not 0 where it is 0; 0 where all are."""
    distances = np.sqrt(squares[np.triu_indices(len(squares), 1)])
    median = float(np.median(distances))
    if median == 0 and distances.any():
        return float(np.median(distances[distances > 0]))
    return median
