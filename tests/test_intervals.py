"""Intervals over utterances: against loops, against exact references, and how often they hold the true value."""

import math

import numpy as np
import pytest
from scipy.stats import beta, binomtest, t

from lsm_probe.intervals import (
    FEWEST,
    interval,
    leave_one_out,
    most_influential,
    number_clusters,
    share_difference_interval,
    share_interval,
)

CLUSTERS = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5])


def skewed(shape, seed=0):
    """Most values are small and a few large, as D_i is; at most 2.3 nats."""
    return np.minimum(0.3 * np.exp(0.9 * np.random.default_rng(seed).normal(size=shape)), 2.3)


def left_out_means(values, clusters=CLUSTERS):
    counts = leave_one_out(np.ones(len(values)), clusters)
    return leave_one_out(values, clusters) / counts.reshape(-1, *[1] * (values.ndim - 1))


def test_utterances_are_numbered_in_the_order_they_come_in():
    assert number_clusters(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_each_utterance_is_left_out_with_all_its_samples():
    values = np.random.default_rng(0).normal(size=(10, 2, 3)).astype(np.float32)
    found = leave_one_out(values, CLUSTERS)
    expected = [values[cluster != CLUSTERS].astype(np.float64).sum(0) for cluster in range(6)]
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_the_interval_of_a_mean_is_that_written_out_with_loops(slow_interval):
    values = skewed((10, 2, 3))
    low, high = interval(values.mean(0), left_out_means(values))
    for place in np.ndindex(2, 3):
        own = values[:, *place]
        expected = slow_interval(lambda kept, own=own: own[kept].mean(), CLUSTERS)
        assert (low[place], high[place]) == pytest.approx(expected)


def test_the_interval_of_a_ratio_is_that_written_out_with_loops(slow_interval):
    parts, wholes = skewed(10), 1 + skewed(10, seed=1)
    left_out = leave_one_out(parts, CLUSTERS) / leave_one_out(wholes, CLUSTERS)
    found = interval(parts.sum() / wholes.sum(), left_out)
    assert found == pytest.approx(slow_interval(lambda kept: parts[kept].sum() / wholes[kept].sum(), CLUSTERS))


def test_the_interval_of_a_paired_difference_is_that_of_the_differences(slow_interval):
    first = skewed(10)
    second = first + 0.1 + 0.02 * skewed(10, seed=1)
    found = interval(second.mean() - first.mean(), left_out_means(second) - left_out_means(first))
    assert found == pytest.approx(slow_interval(lambda kept: (second - first)[kept].mean(), CLUSTERS))
    assert found[1] - found[0] < 0.2 * np.ptp(interval(first.mean(), left_out_means(first)))


def test_without_skewness_the_interval_is_students():
    values, alone = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]), np.arange(7)
    reach = t.ppf(0.975, 6) * values.std(ddof=1) / math.sqrt(7)
    found = interval(values.mean(), left_out_means(values, alone))
    assert found == (pytest.approx(0.4 - reach), pytest.approx(0.4 + reach))


def test_the_end_on_the_side_of_the_longer_tail_moves_out():
    values, alone = np.array([0.1, 0.2, 0.1, 0.3, 0.2, 2.3]), np.arange(6)
    reach = t.ppf(0.975, 5) * values.std(ddof=1) / math.sqrt(6)
    low, high = interval(values.mean(), left_out_means(values, alone))
    assert low == pytest.approx(values.mean() - reach)
    assert high > values.mean() + 1.5 * reach
    mirrored = interval(-values.mean(), left_out_means(-values, alone))
    assert mirrored == (pytest.approx(-high), pytest.approx(-low))


def test_equal_values_have_no_width_and_unknown_ones_no_interval():
    values, alone = np.tile([0.1 + 0.2, np.nan], (6, 1)), np.arange(6)
    low, high = interval(values.mean(0), left_out_means(values, alone))
    assert low[0] == high[0] == pytest.approx(0.3)
    assert np.isnan([low[1], high[1]]).all()


@pytest.mark.parametrize("find", [interval, lambda p, o: share_interval(p, o, 8), share_difference_interval])
def test_too_few_utterances_have_no_interval(find):
    for count in range(1, FEWEST):
        assert np.isnan(find(np.zeros(2), np.zeros((count, 2)))).all()
    assert np.isfinite(find(np.zeros(2), np.zeros((FEWEST, 2)))).all()


@pytest.mark.parametrize("hits", range(9))
def test_a_share_has_the_exact_binomial_interval(hits):
    values, alone = np.repeat([1.0, 0.0], [hits, 8 - hits]), np.arange(8)
    expected = binomtest(hits, 8).proportion_ci(0.95, "exact")
    found = share_interval(values.mean(), left_out_means(values, alone), 8)
    assert found == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_samples_that_repeat_their_utterance_count_once():
    values, pairs = np.repeat([1.0, 0.0], [6, 10]), np.arange(16) // 2
    expected = binomtest(3, 8).proportion_ci(0.95, "exact")
    found = share_interval(values.mean(), left_out_means(values, pairs), 16)
    assert found == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_a_share_of_several_samples_per_utterance_is_known_from_few_utterances():
    # Utterances have 1 or 2 hits of 3: they differ less than by chance, so that all 24 samples count as independent.
    # Tables of Student's t at 2.5 %: 2.0687 with 23 degrees of freedom, 2.3646 with 7.
    values, triples = np.tile([1.0, 0, 0, 1, 1, 0], 4), np.arange(24) // 3
    effective = 24 * (2.0687 / 2.3646) ** 2
    assert effective == pytest.approx(18.37, abs=0.01)
    low = beta.ppf(0.025, effective / 2, effective / 2 + 1)
    found = share_interval(0.5, left_out_means(values, triples), 24)
    assert found == (pytest.approx(low, abs=1e-4), pytest.approx(1 - low, abs=1e-4))


def test_no_difference_of_shares_on_few_utterances_is_not_certain():
    low, high = share_difference_interval(0.0, np.zeros(8))
    values = np.array([0.0] * 8 + [1, -1])
    assert high == -low == pytest.approx(t.ppf(0.975, 7) * values.std() / math.sqrt(10))


def percentile(values):
    """The percentile bootstrap of the means of `[repetitions, utterances]`."""
    n = values.shape[1]
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=1_000)
    return np.quantile(values @ weights.T / n, [0.025, 0.975], axis=1)


def own(values):
    n = values.shape[1]
    return interval(values.mean(1), (values.sum(1, keepdims=True) - values).T / (n - 1))


@pytest.mark.parametrize(
    ("draw", "true", "level"),
    [(skewed, 0.4387, 0.89), (lambda shape: np.random.default_rng(0).normal(size=shape), 0.0, 0.94)],
    ids=["skewed", "normal"],
)
def test_intervals_over_six_utterances_hold_the_true_mean_as_often_as_they_should(draw, true, level):
    values = draw((4_000, 6))
    assert draw((1_000_000, 1)).mean() == pytest.approx(true, abs=2e-3)
    (low, high), (percentile_low, percentile_high) = own(values), percentile(values)
    assert np.mean((low <= true) & (true <= high)) > level
    assert np.mean((percentile_low <= true) & (true <= percentile_high)) < level - 0.05


def test_an_outlier_alone_decides_the_mean():
    values, alone = np.array([0.3, 0.2, 0.4, 0.3, 0.2, 2.3]), np.arange(6)
    found = most_influential(values, alone)
    assert (found.cluster, found.carries) == (5, True)
    assert found.mean == pytest.approx(values.mean())
    assert found.mean_without == pytest.approx(values[:5].mean())
    assert not most_influential(np.arange(6.0), alone).carries
    assert not most_influential(np.full(6, 0.1 + 0.2), alone).carries
    assert not most_influential(values[[0, 5]], np.arange(2)).carries
    assert not most_influential(values, np.zeros(6, dtype=int)).carries


def test_the_samples_of_an_utterance_are_judged_together():
    values = np.array([0.3, 0.2, 0.4, 0.3, 0.2, 0.3, 0.1, 0.2, 2.3, 0.2, 0.3, 0.3])
    found = most_influential(values, np.arange(12) // 2)
    assert (found.cluster, found.carries) == (4, True)
    assert found.mean_without == pytest.approx(np.delete(values, [8, 9]).mean())


@pytest.mark.parametrize("n", [4, 8, 24])
def test_one_normal_sample_in_a_hundred_has_an_utterance_that_alone_decides_it(n):
    values, alone = np.random.default_rng(0).normal(size=(2_000, n)), np.arange(n)
    assert np.mean([most_influential(row, alone).carries for row in values]) == pytest.approx(0.01, abs=0.007)
