"""Single heads: kinds of heads, correction for multiple tests, and what a result stores."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.result import SEGMENTS as ATTENTION_SEGMENTS
from lsm_probe.probes.attention.result import head_eta_difference
from lsm_probe.probes.knockout.result import KnockoutResult
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.multiple_testing import corrected_p

RNG = np.random.default_rng


def probe(checkpoint, samples, **options):
    return lsm_probe.knockout(checkpoint, samples, **{"max_new_tokens": 4, "single_heads": True, **options})


# Effects found by chance.


def test_the_familywise_error_rate_is_at_most_5_percent():
    runs, heads = 300, 60
    for side in ("greater", "both"):
        found = by_itself = 0
        for run in range(runs):
            values = RNG(run).standard_t(3, size=(10, heads))
            found += (corrected_p(values, np.arange(10), seed=run, side=side) < 0.05).any()
            by_itself += (corrected_p(values[:, :1], np.arange(10), seed=run, side=side) < 0.05).any()
        assert found / runs < 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
        assert by_itself / runs > 0.01  # a test that never finds anything would pass as well


def test_an_effect_is_detected_among_many_heads():
    values = RNG(0).normal(size=(20, 300))
    values[:, 7] += 3
    values[:, 9] -= 3
    both, greater = (corrected_p(values, np.arange(20), seed=0, side=side) for side in ("both", "greater"))
    assert np.flatnonzero(both < 0.05).tolist() == [7, 9]
    assert np.flatnonzero(greater < 0.05).tolist() == [7]
    assert greater[9] == 1


def test_four_utterances_are_never_significant_for_any_seed():
    values = RNG(0).uniform(1, 1.1, size=(4, 1))
    assert {float(corrected_p(values, np.arange(4), seed=s, side="greater")[0]) for s in range(200)} == {1 / 16}
    assert corrected_p(values, np.arange(4), seed=0, side="both") == 2 / 16


def test_samples_of_one_utterance_count_as_one():
    values = RNG(1).normal(0.5, 1, size=(9, 5, 4))
    once = corrected_p(values, np.arange(9), seed=3)
    twice = corrected_p(np.repeat(values, 2, 0), np.repeat(np.arange(9), 2), seed=3)
    np.testing.assert_array_equal(once, twice)
    assert corrected_p(np.repeat(values, 9, 0), np.arange(81), seed=3).min() < once.min()


def test_constant_effects_need_five_utterances_one_sided_and_six_two_sided():
    for n, side, found in ((4, "greater", False), (5, "greater", True), (5, "both", False), (6, "both", True)):
        assert (corrected_p(np.ones((n, 3)), np.arange(n), seed=0, side=side) < 0.05).all() == found


def test_zero_or_undefined_effects_have_p_1():
    values = np.ones((8, 3))
    values[:, 1], values[3, 2] = 0, np.nan
    np.testing.assert_array_equal(corrected_p(values, np.arange(8), seed=0)[1:], [1, 1])
    assert corrected_p(np.zeros((8, 0, 4)), np.arange(8), seed=0).shape == (0, 4)


# Knockout.


def test_masking_a_head_without_output_has_no_effect(tiny_llm, samples):
    """Heads are query heads: of the three that share key and value, only the one without output has no effect."""
    model = deepcopy(tiny_llm.llm)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[:, 4 * 8 : 5 * 8] = 0
    result = probe(replace(tiny_llm, model=model), samples[:3])
    idle = np.abs(result.fall_heads).max(0) < 1e-6  # [segments, layers, heads]
    assert [tuple(place) for place in np.argwhere(idle)] == [(0, 1, 4), (1, 1, 4)]


def test_selected_layers_have_the_same_results_as_in_a_full_run(tiny_llm, samples):
    every = probe(tiny_llm, samples[:2])
    chosen = probe(tiny_llm, samples[:2], layers=[2, 0, 2])
    assert (every.head_layers, chosen.head_layers) == ([0, 1, 2], [0, 2])
    np.testing.assert_allclose(chosen.fall_heads, every.fall_heads[:, :, [0, 2]], atol=1e-6)
    np.testing.assert_allclose(chosen.fall, every.fall, atol=1e-6)


def test_heads_can_be_left_out(tiny_llm, samples, tmp_path):
    result = probe(tiny_llm, samples[:1], single_heads=False)
    assert result.fall_heads.size == 0
    assert len(result.head_frame()) == 0
    assert json.loads((result.save(tmp_path) / "result.json").read_text())["heads"] is None
    assert KnockoutResult.load(tmp_path).head_layers == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"layers": [3]}, "--layers names layer 3, but .* has layers 0 to 2"),
        ({"layers": [-1, 0]}, "--layers names layer -1"),
        ({"layers": []}, "--layers names no layer"),
        ({"layers": [1], "single_heads": False}, "give --single-heads too"),
    ],
)
def test_invalid_layers_are_refused(tiny_llm, samples, options, line):
    with pytest.raises(InputError, match=line):
        probe(tiny_llm, samples[:1], **options)


@pytest.fixture
def result(knockout_result):
    """Three layers of four heads without effect, except in layer 5: a source head, an instruction head, one that is
    both, and one whose instruction matters as much as its source, with too much variance to be detected."""
    fall = RNG(0).normal(0, 0.01, size=(20, 2, 3, 4))
    fall[:, 1, 1, 0] += 0.1
    fall[:, 0, 1, 1] += 0.1
    fall[:, :, 1, 2] += 0.1
    fall[:, :, 1, 3] += 0.1
    fall[:, 0, 1, 3] += RNG(9).permutation(np.linspace(-0.4, 0.4, 20))
    return knockout_result(fall, [2, 5, 6], 6)


def test_a_speech_anchor_head_needs_the_source_more_than_the_instruction(result, tmp_path):
    kinds = result.head_kinds()
    assert kinds[1].tolist() == ["source", "instruction", "both", ""]
    assert (kinds[[0, 2]] == "").all()
    assert result.head_falls(Segment.SOURCE).p[1, 3] < 0.05  # but not larger than for the instruction
    stored = json.loads((result.save(tmp_path) / "result.json").read_text())["heads"]
    assert stored["kinds"] == {"source": [[5, 0]], "instruction": [[5, 1]], "both": [[5, 2]]}
    assert stored["fall_source"]["n_heads"] == 12


def test_the_frame_ranks_heads_by_their_fall(result):
    frame = result.head_frame()
    best = frame.sort_values("fall_source", ascending=False).iloc[:3]
    assert set(zip(best["layer"], best["head"], strict=True)) == {(5, 0), (5, 2), (5, 3)}
    row = frame[(frame["layer"] == 5) & (frame["head"] == 1)].iloc[0]
    assert row["fall_instruction_low"] < row["fall_instruction"] < row["fall_instruction_high"]
    assert row["fall_instruction"] == pytest.approx(0.1, abs=0.01)


def test_saving_and_loading_preserves_all_heads(result, tmp_path):
    loaded = KnockoutResult.load(result.save(tmp_path))
    assert loaded.to_dict() == result.to_dict()
    np.testing.assert_array_equal(loaded.fall_heads, result.fall_heads)


def test_an_older_result_without_heads_can_be_loaded(result, tmp_path):
    result.save(tmp_path)
    with np.load(tmp_path / "arrays.npz") as stored:
        np.savez(tmp_path / "arrays.npz", **{k: v for k, v in stored.items() if k != "fall_heads"})
    summary = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({k: v for k, v in summary.items() if k != "heads"}))
    loaded = KnockoutResult.load(tmp_path)
    assert loaded.head_layers == []
    np.testing.assert_array_equal(loaded.fall, result.fall)


def test_differences_by_head_are_paired_and_corrected(result):
    first = result
    gain = np.zeros(first.fall_heads.shape[1:])
    gain[1, 2, 3] = 0.2
    noise = RNG(5).normal(0, 0.01, size=first.fall_heads.shape)
    second = replace(
        first,
        fall_heads=first.fall_heads + gain + noise,
        checkpoint=replace(first.checkpoint, name="second"),
    )
    found = compare([first, second])["pairs"][0]["heads_difference"]
    assert np.argwhere(np.array(found["fall_source"]["p_corrected"]) < 0.05).tolist() == [[2, 3]]
    assert (np.array(found["fall_instruction"]["p_corrected"]) > 0.05).all()
    assert found["fall_source"]["mean"][2][3] == pytest.approx(0.2, abs=0.01)
    elsewhere = replace(second, head_layers=[2, 5, 7])
    assert compare([first, elsewhere])["pairs"][0]["heads_difference"] is None


# Attention.


@pytest.mark.parametrize("segment", ["mean", "sum"])
def test_the_eta_of_a_layer_is_the_mean_of_its_heads_weighted_by_share(attention_result, segment):
    result = attention_result(conventions=Conventions("mean_of_norms", segment, "ratio_of_means"))
    np.testing.assert_allclose((result.head_share() * result.head_eta().mean).sum(1), result.eta().mean, rtol=1e-6)
    for aggregate in ("ratio_of_means", "mean_of_ratios"):
        np.testing.assert_allclose(result.with_conventions(aggregate=aggregate).head_share().sum(1), 1)


def test_the_only_head_of_a_layer_has_its_eta_and_interval(attention_result):
    result = attention_result(conventions=Conventions("mean_of_norms"))
    lone = replace(result, head_norms=result.head_norms[:, :, :1])
    for aggregate in ("ratio_of_means", "mean_of_ratios"):
        read = lone.with_conventions(aggregate=aggregate)
        for one, layer in zip(vars(read.head_eta()).values(), vars(read.eta()).values(), strict=True):
            np.testing.assert_allclose(one[:, 0], layer)


def test_a_head_without_attention_has_no_eta_and_no_share(attention_result, tmp_path):
    result = attention_result(conventions=Conventions("mean_of_norms"))
    result.head_norms[:, 2, 1] = 0
    frame = result.head_frame().set_index(["layer", "head"])
    assert np.isnan(frame.loc[(2, 1), "eta"])
    assert frame.loc[(2, 1), "share"] == 0
    assert frame["eta"].isna().sum() == 1
    other = replace(result, checkpoint=replace(result.checkpoint, name="other"))
    pair = compare([result, other])["pairs"][0]["head_eta_difference"]
    assert pair["mean"][2][1] is None
    assert pair["p_corrected"][2][1] == 1
    json.dumps(pair, allow_nan=False)


def test_a_changed_head_is_detected_among_unchanged_heads(attention_result):
    first = attention_result(conventions=Conventions("mean_of_norms"))
    source = ATTENTION_SEGMENTS.index("source")
    head_norms = first.head_norms * RNG(7).lognormal(0, 0.02, size=first.head_norms.shape)
    head_norms[:, 4, 2, source] *= 3
    second = replace(first, head_norms=head_norms)
    found = head_eta_difference(first, second)
    assert np.argwhere(found.p < 0.05).tolist() == [[4, 2]]
    assert found.ci_low[4, 2] < found.mean[4, 2] < found.ci_high[4, 2] < 0
    np.testing.assert_allclose(found.mean, second.head_eta().mean - first.head_eta().mean)
