"""Similarity of two sets of paired vectors: pure maths over numpy arrays, no model and no I/O.

The sets represent the same samples: row i of `x` (for example speech) is paired with row i of `y` (transcript), both
`[samples, d]`. `clusters`, `[samples]`, gives the utterance of each row. Rows of one utterance, with different
instructions, are not independent and never count as "other" rows.

| function | measures | dissimilar to similar |
|---|---|---|
| [`paired_cosine`], [`unpaired_cosine`] | the cosine, within pairs and between utterances | -1 to 1 |
| [`retrieval`] | how often a row's nearest neighbour in the other set is its own partner | 0 to 1 |
| [`debiased_cka`] | similarity of the geometry, invariant to rotation, scale and offset | about 0 to 1 |
| [`mmd`] | distance of the distributions, and whether it exceeds chance | 1 to 0 |
| [`centroid_distance`] | distance of the centres | large to 0 |
| [`joint_tsne`] | a picture of both sets in one plane | |

[`standardised`] rows reveal similarity that an offset or a few large dimensions hide from cosines and CKA.

All sums are in float64, whatever the input's dtype. Every function raises InputError if a value is NaN or infinite. The
cosine with a zero vector counts as 0. Differences on the order of float64 rounding count as none: see `ROUNDING`.
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
    """Result of [`mmd`]."""

    squared: float  # unbiased estimate of the squared MMD; may be negative by chance if the distributions are equal
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

    Candidates are the own partner and the rows of all other clusters. Other rows of the same utterance count neither as
    hit nor as miss. If t candidates tie at the top (within `ROUNDING`) and the own partner is one of them, the hit
    counts 1 / t, the average of a random choice. So constant or zero sets score at chance level, 1 / candidates, with
    `candidates = samples - (rows of the own cluster) + 1`.

    Args:
        x, y: `[samples, d]`.
        clusters: the utterance of each row, `[samples]`.

    Returns:
        `(hits_xy, hits_yx)`, each `[samples]`, in [0, 1]: searching y_i for x_i, and x_i for y_i.

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

    The estimate assumes independent rows. Rows of one utterance are not independent: they bring back the bias that the
    zero diagonal removes. Give `clusters` if an utterance has several rows: these are then averaged first, and the
    number describes the geometry of the utterances' means. With one row per utterance, `clusters` changes nothing.

    Args:
        x, y: `[samples, d]`; each may have its own d.
        clusters: the utterance of each row, `[samples]`; None treats each row as its own utterance.

    Returns:
        CKA, at most 1; NaN if a set has no geometry (its HSIC with itself is 0): it is constant, constant except for
        one row, or all its rows are orthogonal to each other.

    Raises:
        InputError: a value is NaN or infinite, or there are fewer than 4 utterances (samples, without clusters).
    """
    gram_x, gram_y = _grams(x, y, np.arange(len(x)) if clusters is None else clusters, 4)
    return float(_cka(gram_x, gram_y, leave_out=False)[0])


def jackknife_cka(x: Rows, y: Rows, clusters: Clusters) -> Floats:
    """[`debiased_cka`] without each utterance in turn, `[clusters]`, by ascending cluster number.

    The Gram matrices are computed once, because HSIC does not depend on how rows are centred.

    Args:
        x, y: `[samples, d]`; each may have its own d.
        clusters: the utterance of each row, `[samples]`; rows of one are averaged.

    Raises:
        InputError: a value is NaN or infinite, or there are fewer than 5 utterances.
    """
    gram_x, gram_y = _grams(x, y, clusters, 5)
    return _cka(gram_x, gram_y, leave_out=True)


def mmd(x: Rows, y: Rows, clusters: Clusters, *, seed: int = 0, permutations: int = PERMUTATIONS) -> Mmd:
    """Unbiased squared maximum mean discrepancy, and whether it exceeds chance (Gretton et al., JMLR 2012).

    The estimate is the mean of `h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)` over the ordered pairs
    i, j of different clusters. With one row per cluster, that is the U-statistic of Lemma 6 for sets of equal size
    (equation 4), without the cross terms `k(x_i, y_i)`. The general equation 3 has these terms and would be biased: x_i
    and y_i come from one sample, so they are closer (or farther apart) than independent draws. Pairs of rows of one
    utterance are excluded for the same reason.

    The kernel is `k(a, b) = exp(-|a - b|^2 / (2 sigma^2))`, with sigma the median distance between the pooled rows of
    both sets (section 8 there). If more than half of the pairs coincide, the median is 0, and sigma is the median of
    the non-zero distances. If all pairs coincide, sigma is 0, the estimate 0 and the p-value 1.

    The null hypothesis is that x and y are exchangeable within each utterance. Each permutation swaps x and y for some
    utterances, all rows of an utterance together. Free relabelling of the pooled rows would be wrong: it splits pairs
    and utterances, whose rows are similar, and gives a distribution that the estimate could not come from. A swap of i
    turns h_ij into -h_ij, so the estimate under signs s is exactly the mean of `s_i s_j h_ij`; sigma does not change.
    The p-value is `(1 + #{swapped >= observed}) / (1 + permutations)`. Swapping all utterances changes nothing, so it
    cannot be much below `2 ** (1 - utterances)`: a value below 0.05 needs 6 utterances.

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
    """Distance of the two means divided by the spread within the sets: unit-free, comparable between layers.

    `|m_x - m_y| / sqrt((sum_i w_i |x_i - m_x|^2 + sum_i w_i |y_i - m_y|^2) / (2 sum_i w_i))` with the weighted means
    m_x, m_y. At 1, the means are as far apart as a row typically is from the mean of its set.

    A distance is never negative, so noise increases it: two sets of n independent rows of one distribution have about
    `sqrt(2 / n)`.

    Args:
        x, y: `[samples, d]`.
        weights: how often each sample counts, `[draws, samples]`; None counts each sample once.

    Returns:
        One number, or `[draws]` with weights; NaN if both sets are constant, because there is no spread.

    Raises:
        InputError: a value is NaN or infinite.
    """
    x, y = _finite(x, y)
    shares = np.full((1, len(x)), 1 / len(x)) if weights is None else weights / weights.sum(1, keepdims=True)
    # Relative to the plain means, the squares below have the order of the spread, so little precision is lost.
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    second = shares @ (np.square(x).sum(1) + np.square(y).sum(1))
    x_shift, y_shift = shares @ x, shares @ y  # [draws, d]: the weighted means from the plain ones
    variance = second - np.square(x_shift).sum(1) - np.square(y_shift).sum(1)
    variance[variance <= CANCELLED * second] = np.nan
    distance = np.linalg.norm(x_mean - y_mean + x_shift - y_shift, axis=1) / np.sqrt(variance / 2)
    return float(distance[0]) if weights is None else distance


def standardised(rows: Rows) -> Floats:
    """Each dimension with mean 0 and variance 1 over the rows, `[samples, d]`; a constant dimension becomes 0.

    This removes two effects that hide the similarity of speech and transcript. One is an offset between the sets: if it
    is large compared with the spread within the sets, the same row is nearest to all others, and retrieval is at
    chance. The other is single dimensions with "massive activations" (Sun et al., 2024, arXiv 2402.17762): a dimension
    with most of a set's variance alone determines its cosines and its CKA.

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
        perplexity: roughly the number of neighbours that place a row; above 0 and below 2 * samples.
        seed: for the principal components that the fit starts from; the same seed and rows give the same picture.

    Returns:
        Coordinates of the rows of x and of y, each `[samples, 2]`. All 0 if the pooled rows are all the same.

    Raises:
        InputError: a value is NaN or infinite, or perplexity is out of range.
    """
    from sklearn.manifold import TSNE  # takes a second, and the other functions do not need it

    x, y = _finite(x, y)
    check_perplexity(perplexity, len(x))
    pooled = np.concatenate([x, y])
    if (pooled == pooled[0]).all():  # the initialisation by principal components divides by their spread
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
    """Both sets in float64; raises InputError if a value is NaN or infinite."""
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
        means -= means.mean(0)  # does not change HSIC, but keeps precision if the rows have a large common part
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
    rows = rows - rows.mean(0)  # keeps precision if the rows have a large common part
    products = rows @ rows.T
    lengths = products.diagonal()
    sums = lengths[:, None] + lengths
    squares = sums - 2 * products
    squares[squares <= CANCELLED * sums] = 0
    return squares


def _median_distance(squares: Floats) -> float:
    """The median distance between different rows; if it is 0, the median of the non-zero distances; 0 if all are 0."""
    distances = np.sqrt(squares[np.triu_indices(len(squares), 1)])
    median = float(np.median(distances))
    if median == 0 and distances.any():
        return float(np.median(distances[distances > 0]))
    return median
