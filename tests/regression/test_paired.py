"""The paired check: few false alarms over all layers at once, and not blind."""

from dataclasses import replace

import numpy as np
import pytest

from lsm_probe.errors import InputError
from lsm_probe.regression.check import check
from lsm_probe.regression.paired import eta_by_sample, p_values

LAYERS, UTTERANCES, DRAWS = 20, 24, 200


def differences(rng, fall, draws=DRAWS):
    """Falls of a retrained model, `[draws][utterances, layers]`: layers scatter by factors of thirty."""
    sizes = np.geomspace(0.01, 0.3, LAYERS)
    return [fall + sizes * rng.standard_normal((UTTERANCES, LAYERS)) for _ in range(draws)]


def alarms(falls, *, two_sided=False):
    clusters = np.arange(UTTERANCES)
    return sum(
        (p_values(f, clusters=clusters, tolerance=0.02, seed=0, two_sided=two_sided) <= 0.05).any() for f in falls
    )


def test_false_alarms_are_few_whatever_the_number_of_layers():
    """At the very tolerance in all 20 layers 5 % of 200 and 3 standard errors at most; without any fall fewer."""
    rng = np.random.default_rng(0)
    at_the_tolerance, nothing = differences(rng, 0.02), differences(rng, 0.0)
    assert alarms(at_the_tolerance) <= 19
    assert alarms(at_the_tolerance, two_sided=True) <= 19
    assert alarms(nothing) <= 8
    # The same falls by the default rule, for which these samples are all there is.
    assert sum((f.mean(0) > 0.02).any() for f in nothing) > 100


def test_a_fall_of_a_twentieth_in_one_layer_is_found_among_noise():
    falls = differences(np.random.default_rng(1), 0.0)
    for fall in falls:
        fall[:, 3] += 0.05
    assert alarms(falls) >= 190


def test_one_odd_utterance_neither_raises_an_alarm_nor_hides_one():
    falls = 1e-8 * np.random.default_rng(0).standard_normal((UTTERANCES, LAYERS))
    falls[:, 7] += 0.05
    falls[5, 2], falls[5, 3] = 0.9, -0.9
    p = p_values(falls, clusters=np.arange(UTTERANCES), tolerance=0.02, seed=0)
    assert (p <= 0.05).nonzero()[0].tolist() == [7]


def test_a_fall_caused_by_one_utterance_is_not_significant(pair, with_eta, scatter):
    eta = scatter()
    eta[7, 2] -= 0.6
    folders = pair(with_eta(eta))
    assert check(*folders).regressed == [2]
    assert check(*folders, paired=True).regressed == []


def test_rounding_in_other_layers_does_not_hide_a_fall(pair, with_eta, scatter):
    eta = scatter() + 1e-8 * np.random.default_rng(3).standard_normal((24, 6))
    eta[:, 3] -= np.random.default_rng(4).uniform(0.03, 0.07, 24)
    assert check(*pair(with_eta(eta)), paired=True).regressed == [3]


def test_several_instructions_about_one_utterance_are_no_more_evidence(with_eta, scatter, tmp_path):
    before = scatter()
    now = before - np.random.default_rng(0).normal(0.03, 0.05, before.shape)
    p = {}
    for times in (1, 4):
        clusters = np.repeat(np.arange(len(before)), times)
        results = (with_eta(np.repeat(eta, times, 0), clusters=clusters) for eta in (before, now))
        folders = [result.save(tmp_path / f"{times}-{i}") for i, result in enumerate(results)]
        p[times] = check(*folders, paired=True).p
    np.testing.assert_allclose(p[4], p[1])
    assert min(p[1]) < 1


@pytest.mark.parametrize("aggregate", ["mean_of_ratios", "ratio_of_means"])
def test_eta_by_sample_averages_to_the_curve(baseline, aggregate):
    result = baseline.with_conventions(aggregate=aggregate)
    np.testing.assert_allclose(eta_by_sample(result).mean(0), result.eta().mean, atol=1e-12)


def test_under_ratio_of_means_samples_scatter_as_the_curve_does(with_eta, scatter):
    """Their standard error is that of the jackknife."""
    rng = np.random.default_rng(0)
    result = with_eta(scatter(utterances=200, size=0.2))
    loud = rng.gamma(2.0, size=(200, 1, 1))
    result = replace(result, norms=result.norms * loud).with_conventions(aggregate="ratio_of_means")
    jackknife = np.sqrt(199) * result.left_out_eta().std(0)
    np.testing.assert_allclose(eta_by_sample(result).std(0) / np.sqrt(200), jackknife, rtol=0.15)


def test_the_text_says_which_change_would_be_found(pair, with_eta, scatter):
    quiet = check(*pair(with_eta(scatter() - 0.001)), paired=True)
    assert quiet.would_find == 6
    assert "a change of 0.04 would be found in 6 of 6 layers" in quiet.text()
    assert check(*pair(with_eta(scatter(seed=1, size=0.25))), paired=True).would_find < 6


def test_samples_are_paired_by_id_in_any_order(pair, with_eta, scatter):
    eta = scatter()
    eta[:, 2] -= 0.04
    current = with_eta(eta)
    shuffled = current.subset(list(np.random.default_rng(0).permutation(current.ids)))
    assert check(*pair(shuffled), paired=True).p == check(*pair(current), paired=True).p


def test_few_utterances_are_refused(pair, baseline, tmp_path):
    few = baseline.subset(baseline.ids[:19])
    first, second = few.save(tmp_path / "a"), few.save(tmp_path / "b")
    with pytest.raises(InputError, match="needs 20 utterances, the two results share 19"):
        check(first, second, paired=True)
    assert not check(first, second).regressed


def test_arrays_must_be_of_the_curve_beside_them(pair, edit, with_eta, scatter):
    before, now = pair()
    with_eta(scatter(seed=1)).save(now.parent / "other")
    (now.parent / "other" / "arrays.npz").replace(now / "arrays.npz")
    with pytest.raises(InputError, match=r"current/arrays.npz does not belong to the result.json"):
        check(before, now, paired=True)
    assert not check(before, now).regressed


@pytest.mark.parametrize("damage", ["gone", "truncated", "short"])
def test_damaged_arrays_are_refused_in_one_line(pair, damage):
    before, now = pair()
    arrays = now / "arrays.npz"
    if damage == "gone":
        arrays.unlink()
    elif damage == "truncated":
        arrays.write_bytes(arrays.read_bytes()[:200])
    else:
        stored = dict(np.load(arrays))
        np.savez(arrays, **{**stored, "norms": stored["norms"][:-1]})
    with pytest.raises(InputError):
        check(before, now, paired=True)


def test_a_file_alone_cannot_be_paired(pair):
    before, now = pair()
    with pytest.raises(InputError, match="needs a folder"):
        check(before / "result.json", now, paired=True)


def test_given_responses_must_be_the_same(pair, baseline, edit):
    changed = [{**sample, "response_ids": [1]} for sample in baseline.samples]
    before, now = pair(samples=changed)
    for folder in (before, now):
        edit(folder, conventions__response="generated", checkpoint__responses="given")
    (note,) = check(before, now).notes
    assert "given" in note
    with pytest.raises(InputError, match="responses differ"):
        check(before, now, paired=True)
    (now / "samples.jsonl").write_bytes((before / "samples.jsonl").read_bytes())
    assert check(before, now, paired=True).notes == []
