"""Similarity of two paired sets compared with textbook formulas as plain loops, on random input."""

import itertools
import math

import numpy as np
import pytest

from lsm_probe.errors import InputError
from lsm_probe.instruments.similarity import (
    centroid_distance,
    debiased_cka,
    jackknife_cka,
    joint_tsne,
    mmd,
    paired_cosine,
    retrieval,
    unpaired_cosine,
)
from lsm_probe.intervals import interval

CLUSTERS = np.array([7, 2, 7, 4, 2, 9, 7, 5])  # uneven, out of order, with gaps


def pairs(n=8, d=5, noise=1.0, seed=0):
    """Two sets with something in common, away from the origin."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(n, d)) + 0.5
    return common + noise * rng.normal(size=(n, d)), common + noise * rng.normal(size=(n, d))


def singles(n):
    return np.arange(n)


def cosine(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def linear_gram(rows):
    return [[sum(p * q for p, q in zip(a, b, strict=True)) for b in rows] for a in rows]


def unbiased_hsic(k, l_):
    """Mean of `K_st (L_st + L_uv - 2 L_su)` over all ordered 4-tuples of distinct samples (Song et al., theorem 2)."""
    terms = [k[s][t] * (l_[s][t] + l_[u][v] - 2 * l_[s][u]) for s, t, u, v in itertools.permutations(range(len(k)), 4)]
    return sum(terms) / len(terms)


def textbook_cka(x, y):
    k, l_ = linear_gram(x), linear_gram(y)
    return unbiased_hsic(k, l_) / math.sqrt(unbiased_hsic(k, k) * unbiased_hsic(l_, l_))


def biased_cka(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    k, l_ = x @ x.T, y @ y.T
    return (k * l_).sum() / math.sqrt((k * k).sum() * (l_ * l_).sum())


def textbook_mmd(x, y, clusters):
    """Equation 4 of Gretton et al. over the pairs of different clusters, with the median of all pooled distances."""
    pooled = [*x, *y]
    sigma = np.median([math.dist(a, b) for a, b in itertools.combinations(pooled, 2)])

    def k(a, b):
        return math.exp(-(math.dist(a, b) ** 2) / (2 * sigma**2))

    terms = []
    for i in range(len(x)):
        for j in range(len(x)):
            if clusters[i] != clusters[j]:
                terms.append(k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]))
    return sum(terms) / len(terms), sigma


# Cosines


def test_paired_cosine_equals_the_formula():
    x, y = pairs()
    np.testing.assert_allclose(paired_cosine(x, y), [cosine(a, b) for a, b in zip(x, y, strict=True)], rtol=1e-13)


@pytest.mark.parametrize("clusters", [CLUSTERS, singles(8)])
def test_unpaired_cosine_is_the_mean_over_other_utterances(clusters):
    x, y = pairs()
    expected = []
    for i in range(8):
        others = [j for j in range(8) if clusters[j] != clusters[i]]
        expected.append(sum((cosine(x[i], y[j]) + cosine(x[j], y[i])) / 2 for j in others) / len(others))
    np.testing.assert_allclose(unpaired_cosine(x, y, clusters), expected, rtol=1e-12)


def test_cosine_of_a_zero_vector_is_zero():
    x, y = pairs()
    x[3] = 0
    assert paired_cosine(x, y)[3] == 0
    assert np.isfinite(unpaired_cosine(x, y, CLUSTERS)).all()


def test_float32_is_accumulated_in_float64():
    x, y = (rows.astype(np.float32) for rows in pairs(n=40, d=3000))
    np.testing.assert_array_equal(paired_cosine(x, y), paired_cosine(x.astype(np.float64), y.astype(np.float64)))
    assert debiased_cka(x, y) == debiased_cka(x.astype(np.float64), y.astype(np.float64))
    large = np.full((1, 4), 1e30, dtype=np.float32)  # whose squares float32 cannot hold
    assert paired_cosine(large, large) == pytest.approx(1)


# Retrieval


def looked_up(queries, keys, clusters):
    hits = []
    for i, query in enumerate(queries):
        candidates = [j for j in range(len(keys)) if j == i or clusters[j] != clusters[i]]
        hits.append(float(max(candidates, key=lambda j: cosine(query, keys[j])) == i))
    return hits


@pytest.mark.parametrize("seed", range(5))
def test_retrieval_equals_a_search_over_all_candidates(seed):
    x, y = pairs(noise=0.8, seed=seed)
    hits_xy, hits_yx = retrieval(x, y, CLUSTERS)
    np.testing.assert_array_equal(hits_xy, looked_up(x, y, CLUSTERS))
    np.testing.assert_array_equal(hits_yx, looked_up(y, x, CLUSTERS))


def test_the_two_directions_of_retrieval_are_not_swapped():
    x = np.array([[1.0, 0], [1, 0.2], [0, 1]])
    y = np.array([[1.0, 0.2], [1, 0.4], [0, 1]])  # y_0 is the nearest to both x_0 and x_1
    hits_xy, hits_yx = retrieval(x, y, singles(3))
    np.testing.assert_array_equal(hits_xy, [1, 0, 1])
    np.testing.assert_array_equal(hits_yx, [0, 1, 1])


def test_other_rows_of_the_same_utterance_are_not_candidates():
    x = np.array([[1.0, 0], [1, 0.1], [0, 1]])
    y = x[[1, 0, 2]]  # rows 0 and 1 lie nearest to each other's partner
    assert retrieval(x, y, singles(3))[0].tolist() == [0, 0, 1]
    assert retrieval(x, y, np.array([0, 0, 1]))[0].tolist() == [1, 1, 1]


@pytest.mark.parametrize("value", [0.0, 0.1, 3.7])
def test_constant_sets_retrieve_at_the_level_of_chance(value):
    rng = np.random.default_rng(0)
    x = np.full((301, 4096), value) * rng.random(4096)
    clusters = np.append(np.arange(150).repeat(2), 150)
    expected = [1 / 300] * 300 + [1 / 301]
    for hits in retrieval(x, x, clusters):
        np.testing.assert_allclose(hits, expected, rtol=1e-12)


def test_a_tie_is_divided_by_the_number_of_tied_candidates():
    x = np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]])
    y = np.array([[2.0, 0], [3, 0], [0, 1], [0, 1]])
    np.testing.assert_allclose(retrieval(x, y, singles(4))[0], [1 / 2, 1 / 2, 0, 1 / 2])


# CKA


def test_debiased_cka_equals_the_mean_over_4_tuples():
    x, y = pairs(n=6)
    assert debiased_cka(x, y) == pytest.approx(textbook_cka(x, y), rel=1e-11)
    assert debiased_cka(x, y[:, :3]) == pytest.approx(textbook_cka(x, y[:, :3]), rel=1e-11)


def test_debiased_cka_averages_the_rows_of_an_utterance():
    x, y = pairs()
    means = [
        [rows[[i for i in range(8) if CLUSTERS[i] == c]].mean(0) for c in sorted(set(CLUSTERS))] for rows in (x, y)
    ]
    assert debiased_cka(x, y, CLUSTERS) == pytest.approx(textbook_cka(*means), rel=1e-11)
    assert debiased_cka(x, y, singles(8)) == debiased_cka(x, y)


def test_cka_is_invariant_to_rotation_scale_and_shift():
    x, y = pairs(n=30, d=20)
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(20, 20)))[0]
    assert debiased_cka(x, 3 * y @ rotation + 1000) == pytest.approx(debiased_cka(x, y), rel=1e-9)
    assert debiased_cka(x, y * np.linspace(0, 5, 20)) != pytest.approx(debiased_cka(x, y), rel=1e-2)
    assert debiased_cka(x, 1e-9 * x @ rotation - 7e-9) == pytest.approx(1)


def test_debiased_cka_of_unrelated_wide_sets_is_near_zero_where_the_biased_is_not():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(20):
        x, y = rng.normal(size=(2, 50, 1000))
        assert biased_cka(x, y) > 0.9
        found.append(debiased_cka(x, y))
    assert abs(np.mean(found)) < 0.02
    assert min(found) < 0 < max(found)


def test_rows_of_one_utterance_bias_cka_unless_averaged():
    x, y = np.random.default_rng(0).normal(size=(2, 50, 1000)).repeat(4, axis=1)
    assert debiased_cka(x, y) > 0.8
    assert abs(debiased_cka(x, y, np.arange(50).repeat(4))) < 0.1


@pytest.mark.parametrize("n", [4, 5, 300])
def test_cka_of_a_constant_set_is_nan(n):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 700))
    constant = np.tile(1000 * rng.random(700), (n, 1))
    assert math.isnan(debiased_cka(x, constant))
    assert math.isnan(debiased_cka(constant, x))
    assert math.isnan(debiased_cka(np.eye(n, 700), x))
    assert debiased_cka(x, x) == pytest.approx(1)


@pytest.mark.parametrize("clusters", [CLUSTERS, singles(8)])
def test_the_jackknife_leaves_out_one_utterance_at_a_time(clusters):
    x, y = pairs()
    expected = [
        debiased_cka(x[clusters != c], y[clusters != c], clusters[clusters != c]) for c in sorted(set(clusters))
    ]
    np.testing.assert_allclose(jackknife_cka(x, y, clusters), expected, rtol=1e-10)


def test_cka_of_a_set_that_is_constant_except_for_one_row_is_nan():
    """Its only distance from the others is on the diagonal; rounding must not be mistaken for other distances."""
    x, y = pairs()
    x[:] = [0.1, 0.2, 0.3, 0.4, 0.5]
    x[6:] += 1e5
    assert np.isnan(jackknife_cka(x, y, singles(8))).tolist() == [False] * 6 + [True, True]


def test_the_interval_of_cka_covers_the_true_value():
    rng = np.random.default_rng(0)
    to_x, to_y = rng.normal(size=(2, 6, 12))
    cov_x, cov_y, cov_xy = to_x.T @ to_x + np.eye(12), to_y.T @ to_y + np.eye(12), to_x.T @ to_y
    true = np.square(cov_xy).sum() / math.sqrt(np.square(cov_x).sum() * np.square(cov_y).sum())
    covered, widths = [], []
    for _ in range(300):
        common = rng.normal(size=(60, 6))
        x, y = (common @ to + rng.normal(size=(60, 12)) for to in (to_x, to_y))
        alone = singles(60)
        low, high = interval(debiased_cka(x, y, alone), jackknife_cka(x, y, alone))
        covered.append(low <= true <= high)
        widths.append(high - low)
    assert 0.9 <= np.mean(covered) <= 0.99
    assert np.mean(widths) < 0.4


# MMD


@pytest.mark.parametrize("clusters", [CLUSTERS, singles(8)])
def test_mmd_equals_the_double_loop(clusters):
    x, y = pairs()
    y += 0.7
    expected, sigma = textbook_mmd(x, y, clusters)
    found = mmd(x, y, clusters)
    assert found.squared == pytest.approx(expected, rel=1e-11)
    assert found.sigma == pytest.approx(sigma, rel=1e-12)


def test_mmd_is_unbiased_for_paired_and_clustered_rows():
    """Equal marginals, with similar partners and rows of an utterance: equation 3 would be biased by their
    similarity."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(300):
        utterance = rng.normal(size=(12, 3)).repeat(2, axis=0)
        x, y = (utterance + 0.1 * rng.normal(size=(12, 3)).repeat(2, axis=0) for _ in range(2))
        found.append(mmd(x, y, np.arange(12).repeat(2), permutations=1).squared)
    assert abs(np.mean(found)) < 3 * np.std(found) / math.sqrt(300)


def test_p_value_is_the_share_of_swaps_of_whole_utterances():
    """All 2^5 ways to swap x and y, applied to the rows and computed from the formula."""
    x, y = pairs(seed=3)
    y += 0.4
    observed, _ = textbook_mmd(x, y, CLUSTERS)
    at_least = []
    for swapped in itertools.product([False, True], repeat=5):
        names = [name for name, swap in zip(sorted(set(CLUSTERS)), swapped, strict=True) if swap]
        swap = np.isin(CLUSTERS, names)[:, None]
        at_least.append(textbook_mmd(np.where(swap, y, x), np.where(swap, x, y), CLUSTERS)[0] >= observed - 1e-12)
    assert 4 <= sum(at_least) <= 28
    found = mmd(x, y, CLUSTERS, permutations=20_000)
    assert found.p_value == pytest.approx(np.mean(at_least), abs=0.015)


@pytest.mark.parametrize("shared", [False, True], ids=["noise of each row", "noise of each utterance"])
def test_p_value_is_uniform_under_the_null(shared):
    """Rows of an utterance share noise of the modality, so swaps of single rows would reject too often."""
    rng = np.random.default_rng(0)
    clusters = np.arange(12).repeat(4)
    found = []
    for seed in range(300):
        utterance = rng.normal(size=(12, 4))[clusters]
        x, y = (rng.normal(size=(12, 4))[clusters] if shared else rng.normal(size=(48, 4)) for _ in range(2))
        found.append(mmd(utterance + x, utterance + y, clusters, seed=seed, permutations=99).p_value)
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.04)
    assert np.quantile(found, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.1)


def test_p_value_is_small_where_one_set_is_shifted_or_wider():
    x, y = pairs(n=60)
    assert mmd(x, y, singles(60)).p_value > 0.05
    assert mmd(x, y + 0.8, singles(60)).p_value == pytest.approx(1 / 1001)
    assert mmd(x, 3 * (y - y.mean(0)) + x.mean(0), singles(60)).p_value == pytest.approx(1 / 1001)


def test_the_permutations_are_seeded():
    x, y = pairs(n=20)
    values = [mmd(x, y, singles(20), seed=seed).p_value for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("place", [0.0, 1e4])
def test_identical_sets_have_zero_mmd_and_p_1(place):
    x = np.random.default_rng(0).normal(size=(150, 400)) + place
    found = mmd(x, x.copy(), singles(150), permutations=200)
    assert found.squared == pytest.approx(0, abs=1e-10)
    assert found.p_value == 1


def test_two_utterances_cannot_be_significant():
    x, y = pairs()
    p_value = mmd(x, y + 100, np.arange(8) // 4).p_value
    assert p_value == pytest.approx(0.5, abs=0.05)  # swapping both gives the same value as swapping none


def test_the_kernel_width_ignores_distances_of_zero():
    constant = np.tile(np.random.default_rng(0).random(700), (10, 1))  # distances of 0 up to rounding
    changed = constant.copy()
    changed[0, 0] += 3
    changed[1, 1] += 4
    distances = [3.0] * 18 + [4.0] * 18 + [5.0]
    found = mmd(constant, changed, singles(10))
    assert found.sigma == pytest.approx(np.median(distances))
    assert np.isfinite(found.squared)
    assert mmd(constant, constant, singles(10)) == (0, 1, 0)


def test_distances_between_equal_rows_are_zero_despite_rounding():
    rng = np.random.default_rng(0)
    rows = np.tile(rng.random(401), (300, 1))
    rows[:30] += rng.normal(size=(30, 401))
    distances = [math.dist(a, b) for a, b in itertools.combinations(rows[:31], 2)]
    alike = 270  # rows that equal the last of these
    weights = [alike if j == 30 else 1 for _, j in itertools.combinations(range(31), 2)]
    assert mmd(rows[:150], rows[150:], singles(150)).sigma == pytest.approx(np.median(np.repeat(distances, weights)))


def test_a_large_common_offset_does_not_reduce_precision():
    x, y = pairs()
    expected = mmd(x, y + 1, CLUSTERS).squared
    assert mmd(x + 1e8, y + 1 + 1e8, CLUSTERS).squared == pytest.approx(expected, rel=1e-5)
    assert centroid_distance(x + 1e8, y + 1 + 1e8) == pytest.approx(centroid_distance(x, y + 1), rel=1e-5)


# Distance of the centres


def textbook_centroid_distance(x, y, weights):
    total = sum(weights)
    m_x = sum(w * a for w, a in zip(weights, x, strict=True)) / total
    m_y = sum(w * a for w, a in zip(weights, y, strict=True)) / total
    spread = 0.0
    for w, a, b in zip(weights, x, y, strict=True):
        spread += w * (math.dist(a, m_x) ** 2 + math.dist(b, m_y) ** 2)
    return math.dist(m_x, m_y) / math.sqrt(spread / (2 * total))


def test_centroid_distance_equals_the_formula():
    x, y = pairs()
    y += 300
    assert centroid_distance(x, y) == pytest.approx(textbook_centroid_distance(x, y, [1] * 8), rel=1e-12)
    weights = np.random.default_rng(0).integers(4, size=(20, 8)).astype(float)
    expected = [textbook_centroid_distance(x, y, row) for row in weights]
    np.testing.assert_allclose(centroid_distance(x, y, weights), expected, rtol=1e-10)


def test_centroid_distance_does_not_depend_on_the_unit():
    x, y = pairs()
    y += 1
    expected = centroid_distance(x, y)
    assert centroid_distance(1e6 * x, 1e6 * y) == pytest.approx(expected)
    assert centroid_distance(x + 1e5, y + 1e5) == pytest.approx(expected)
    assert centroid_distance(x, x) == 0


@pytest.mark.parametrize("n", [3, 10, 300])
def test_centroid_distance_of_constant_sets_is_nan(n):
    for seed in range(20):  # some of which leave rounding
        x = np.tile(1000 * np.random.default_rng(seed).random(700), (n, 1))
        assert math.isnan(centroid_distance(x, x + 1))
    varied = x + np.random.default_rng(1).normal(size=x.shape)
    assert np.isnan(centroid_distance(varied, x + 1, n * np.eye(n))).all()  # each draw has one row only
    assert np.isfinite(centroid_distance(varied, x + 1, n * np.eye(n) + 1)).all()


def test_centroid_distance_needs_no_array_of_draws_by_samples_by_width():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 1000, 256))
    weights = 1 - np.eye(1000)  # the product would be 2 GB
    tracemalloc = pytest.importorskip("tracemalloc")
    tracemalloc.start()
    try:
        distances = centroid_distance(x, y, weights)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert distances.shape == (1000,)


# t-SNE


def test_tsne_shows_both_sets_in_one_plane_and_is_seeded():
    x, y = pairs(n=40, d=600)  # below a width of 500, the start is exact and the seed changes nothing
    y += 5
    first, again, other = (joint_tsne(x, y, perplexity=8, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    places_x, places_y = first
    assert places_x.shape == places_y.shape == (40, 2)
    assert places_x.dtype == np.float64
    apart = np.linalg.norm(places_x.mean(0) - places_y.mean(0))
    assert apart > np.linalg.norm(places_x - places_x.mean(0), axis=1).mean()


def test_tsne_places_similar_rows_of_both_sets_together():
    x, _ = pairs(n=20, d=10)
    y = x + 1e-3 * np.random.default_rng(2).normal(size=x.shape)
    places_x, places_y = joint_tsne(x, y, perplexity=5)
    distances = np.linalg.norm(places_x[:, None] - places_y, axis=2)
    assert (distances.argmin(1) == np.arange(20)).mean() > 0.8


def test_tsne_refuses_too_few_samples_in_one_line():
    x, y = pairs(n=15)
    with pytest.raises(InputError) as refused:
        joint_tsne(x, y)
    assert str(refused.value) == (
        "t-SNE at perplexity 30 needs more than 15 samples (each has two vectors), got 15: "
        "lower --perplexity or give more samples"
    )
    assert joint_tsne(x, y, perplexity=29)[0].shape == (15, 2)
    with pytest.raises(InputError, match="--perplexity 0 must be above 0"):
        joint_tsne(x, y, perplexity=0)


def test_tsne_places_identical_rows_at_the_origin():
    x = np.full((20, 3), 0.1)
    for places in joint_tsne(x, x):
        assert not places.any()


# Refusals


@pytest.mark.parametrize(
    "function",
    [
        paired_cosine,
        lambda x, y: unpaired_cosine(x, y, CLUSTERS),
        lambda x, y: retrieval(x, y, CLUSTERS),
        debiased_cka,
        lambda x, y: jackknife_cka(x, y, CLUSTERS),
        lambda x, y: mmd(x, y, CLUSTERS),
        centroid_distance,
        lambda x, y: joint_tsne(x, y, perplexity=3),
    ],
)
def test_values_that_are_not_finite_are_refused(function):
    x, y = pairs()
    function(x, y)
    y[[2, 5], 1] = np.nan, np.inf
    with pytest.raises(InputError, match=r"the second set .* in 2 of 8 rows \(the first is row 2\): .*float32$"):
        function(x, y)
    with pytest.raises(InputError, match=r"the first set "):
        function(y, x)


@pytest.mark.parametrize(
    ("function", "least"), [(unpaired_cosine, 2), (retrieval, 2), (mmd, 2), (debiased_cka, 4), (jackknife_cka, 5)]
)
def test_too_few_utterances_are_refused(function, least):
    x, y = pairs()
    function(x, y, np.arange(8) % least)
    with pytest.raises(InputError, match=f"needs at least {least} utterances, got {least - 1}: give more samples"):
        function(x, y, np.arange(8) % (least - 1))


def test_cka_of_three_samples_is_refused():
    x, y = pairs(n=3)
    with pytest.raises(InputError, match="CKA needs at least 4"):
        debiased_cka(x, y)
