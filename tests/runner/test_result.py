"""Reading a result: every convention compared with its formula, intervals, files, comparison."""

import json
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest

from lsm_probe.data.identity import DataIdentity
from lsm_probe.errors import InputError
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.result import SEGMENTS, AttentionResult, TokenScores, eta_difference
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.identity import CheckpointIdentity, Control

SYSTEM, TEMPLATE, INSTRUCTION, SOURCE, FIRST = range(5)


def make(seed=0, samples=6, layers=7, heads=3, name="model", clusters=None, **fields):
    rng = np.random.default_rng(seed)
    norms = rng.gamma(2.0, size=(samples, layers, 5)).astype(np.float32)
    head_norms = rng.gamma(2.0, size=(samples, layers, heads, 5)).astype(np.float32)
    for sums in (norms, head_norms):  # position 0 is part of the template
        sums[..., TEMPLATE] += sums[..., FIRST]
    tokens = rng.integers(2, 30, size=(samples, 5))
    tokens[:, FIRST] = 1
    return AttentionResult(
        norms=norms,
        head_norms=head_norms,
        tokens=tokens,
        rows=rng.integers(1, 9, size=samples),
        clusters=np.arange(samples) if clusters is None else np.array(clusters),
        samples=[{"id": f"s{i}", "response_ids": [i, 2]} for i in range(samples)],
        checkpoint=CheckpointIdentity(name=name, source="text", template="chat", dtype="float32"),
        data=DataIdentity("data", "abc", samples),
        conventions=Conventions(),
        self_check={"median": 1e-7, "worst": 2e-7, "median_bound": 1e-5, "worst_bound": 1e-5},
        **fields,
    )


def eta_written_out(result, heads, segment, aggregate, span):
    """Eta by layer in plain loops, from the definitions."""
    etas = []
    for layer in range(result.n_layers):
        ones, others = [], []
        for i in range(len(result.samples)):
            sums = result.norms[i, layer] if heads == "sum_then_norm" else result.head_norms[i, layer].mean(0)
            sums = sums.astype(float)
            one, count = sums[INSTRUCTION], result.tokens[i, INSTRUCTION]
            if span == "instruction+template":
                one += sums[TEMPLATE] - sums[FIRST]
                count += result.tokens[i, TEMPLATE] - result.tokens[i, FIRST]
            other = sums[SOURCE]
            if segment == "mean":
                one, other = one / count, other / result.tokens[i, SOURCE]
            ones.append(one)
            others.append(other)
        if aggregate == "mean_of_ratios":
            etas.append(np.mean([a / (a + b) for a, b in zip(ones, others, strict=True)]))
        else:
            etas.append(np.mean(ones) / (np.mean(ones) + np.mean(others)))
    return np.array(etas)


@pytest.mark.parametrize(
    ("heads", "segment", "aggregate", "span"),
    list(
        product(
            ("sum_then_norm", "mean_of_norms"),
            ("mean", "sum"),
            ("mean_of_ratios", "ratio_of_means"),
            ("instruction", "instruction+template"),
        )
    ),
)
def test_every_convention_equals_its_definition(heads, segment, aggregate, span):
    result = make().with_conventions(heads=heads, segment=segment, aggregate=aggregate, span=span)
    expected = eta_written_out(result, heads, segment, aggregate, span)
    np.testing.assert_allclose(result.eta().mean, expected, rtol=1e-6)


def test_conventions_differ_from_each_other():
    """The test above would pass for a convention without effect."""
    result = make()
    plain = result.eta().mean
    changes = {
        "heads": "mean_of_norms",
        "segment": "sum",
        "aggregate": "ratio_of_means",
        "span": "instruction+template",
    }
    for flag, value in changes.items():
        assert np.abs(result.with_conventions(**{flag: value}).eta().mean - plain).max() > 1e-3


def test_response_cannot_be_changed_when_reading():
    with pytest.raises(InputError, match="run the probe again"):
        make().with_conventions(response="reference")


def test_the_interval_contains_the_mean_and_shrinks_with_samples():
    few, many = make(samples=6).eta(), make(samples=200).eta()
    for curve in (few, many):
        assert ((curve.ci_low <= curve.mean) & (curve.mean <= curve.ci_high)).all()
    assert (many.ci_high - many.ci_low).mean() < 0.5 * (few.ci_high - few.ci_low).mean()


@pytest.mark.parametrize("aggregate", ["mean_of_ratios", "ratio_of_means"])
def test_the_interval_of_eta_is_over_utterances(aggregate, slow_interval):
    result = replace(make(samples=8), clusters=np.array([0, 0, 1, 2, 2, 2, 3, 4])).with_conventions(aggregate=aggregate)
    instruction, source = result.scores()
    eta, head_eta = result.eta(), result.head_eta()
    for layer in range(result.n_layers):

        def statistic(kept, i=instruction[:, layer], s=source[:, layer]):
            if aggregate == "ratio_of_means":
                return i[kept].sum() / (i[kept].sum() + s[kept].sum())
            return (i[kept] / (i[kept] + s[kept])).mean()

        expected = np.clip(slow_interval(statistic, result.clusters), 0, 1)
        np.testing.assert_allclose([eta.ci_low[layer], eta.ci_high[layer]], expected, rtol=1e-9)
        i, s = (scores[:, layer, 0] for scores in result.head_scores())
        expected = np.clip(slow_interval(partial(statistic, i=i, s=s), result.clusters), 0, 1)
        np.testing.assert_allclose([head_eta.ci_low[layer, 0], head_eta.ci_high[layer, 0]], expected, rtol=1e-9)


def test_samples_of_one_utterance_are_resampled_together():
    # Equal samples in one cluster count as one: the interval is wider than if they were independent.
    base = make(samples=30)
    twice = [*range(30), *range(30)]
    twins = replace(
        base.subset([f"s{i}" for i in range(30)]),
        **{name: getattr(base, name)[twice] for name in ("norms", "head_norms", "tokens", "rows")},
        samples=base.samples * 2,
        clusters=np.array(twice),
    )
    width = [curve.ci_high - curve.ci_low for curve in (twins.eta(), replace(twins, clusters=np.arange(60)).eta())]
    assert (width[0] > width[1]).mean() > 0.8


def test_layer_groups_equal_array_split():
    result = make(layers=8)
    groups = result.eta_groups()
    assert [group["layers"] for group in groups] == [[0, 1], [2, 3], [4, 4], [5, 5], [6, 6], [7, 7]]
    assert groups[0]["eta"] == pytest.approx(result.eta().mean[:2].mean())


def test_head_eta_equals_its_definition():
    result = make()
    sums = result.head_norms.astype(float)
    one = sums[..., INSTRUCTION] / result.tokens[:, INSTRUCTION, None, None]
    other = sums[..., SOURCE] / result.tokens[:, SOURCE, None, None]
    np.testing.assert_allclose(result.head_eta().mean, (one / (one + other)).mean(0), rtol=1e-6)
    assert result.head_eta().mean.shape == (7, 3)
    frame = result.head_frame().set_index(["layer", "head"])
    assert frame.loc[(5, 2), "eta"] == pytest.approx(result.head_eta().mean[5, 2])
    assert frame.loc[(5, 2), "S_source"] == pytest.approx(other.mean(0)[5, 2])


def test_saving_and_loading_preserves_the_result(tmp_path):
    scores = TokenScores(
        norms=np.random.default_rng(0).random((7, 5), dtype=np.float32),
        ids=np.arange(5),
        segments=np.array([2, 3, 3, 4, 4]),
        offsets=np.array([0, 2, 5]),
    )
    result = make(excluded={"empty response": ["x"]}, seed=5, token_scores=scores).with_conventions(segment="sum")
    loaded = AttentionResult.load(result.save(tmp_path / "result"))
    assert loaded.to_dict() == result.to_dict()
    assert loaded.samples == result.samples
    for name in ("norms", "head_norms", "tokens", "rows", "clusters"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(result, name))
    for name in ("norms", "ids", "segments", "offsets"):
        np.testing.assert_array_equal(getattr(loaded.token_scores, name), getattr(scores, name))


def test_result_json_is_small_and_diffs_by_line(tmp_path):
    folder = make(layers=32).save(tmp_path)
    text = (folder / "result.json").read_text()
    assert len(text) < 10_000
    assert max(map(len, text.splitlines())) < 400
    assert json.loads(text)["schema"] == "lsm-probe/attention/2"
    assert sorted(path.name for path in folder.iterdir()) == ["arrays.npz", "result.json", "samples.jsonl"]


def test_a_failed_save_leaves_no_result_json(tmp_path):
    make().save(tmp_path)
    broken = replace(make(seed=1), samples=[{"id": object()}])
    with pytest.raises(TypeError):
        broken.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arrays.npz", "samples.jsonl"]
    with pytest.raises(InputError):
        AttentionResult.load(tmp_path)


def test_responses_may_contain_any_character(tmp_path):
    strange = "a\u2028b\u2029c\u0085d\ne"
    result = make()
    result = replace(result, samples=[{**sample, "response": strange} for sample in result.samples])
    assert AttentionResult.load(result.save(tmp_path)).samples == result.samples


def test_a_result_of_schema_1_names_the_checkpoint_of_its_control(tmp_path):
    make().save(tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())
    stored["schema"] = "lsm-probe/attention/1"
    stored["checkpoint"] |= {"name": "llm at length of runs/a b", "control": "transcript repeated or cut"}
    (tmp_path / "result.json").write_text(json.dumps(stored))
    result = AttentionResult.load(tmp_path)
    assert result.checkpoint.control == Control("llm", ("runs/a b",))
    assert AttentionResult.load(result.save(tmp_path / "2")).checkpoint == result.checkpoint


@pytest.mark.parametrize("damage", ["missing", "truncated", "schema", "samples", "keys", "no object"])
def test_invalid_result_files_are_refused(tmp_path, damage):
    make().save(tmp_path)
    if damage == "missing":
        (tmp_path / "arrays.npz").unlink()
    if damage == "truncated":
        (tmp_path / "arrays.npz").write_bytes((tmp_path / "arrays.npz").read_bytes()[:100])
    if damage == "schema":
        text = (tmp_path / "result.json").read_text()
        (tmp_path / "result.json").write_text(text.replace("attention/2", "attention/99"))
    if damage == "samples":
        (tmp_path / "samples.jsonl").write_text("{oops\n")
    if damage == "keys":
        (tmp_path / "result.json").write_text('{"schema": "lsm-probe/attention/1"}')
    if damage == "no object":
        (tmp_path / "result.json").write_text("[]")
    with pytest.raises(InputError):
        AttentionResult.load(tmp_path)


def test_the_frame_has_a_row_for_each_layer():
    result = make()
    frame = result.to_frame()
    assert frame["layer"].tolist() == list(range(7))
    np.testing.assert_allclose(frame["eta"], result.eta().mean)
    instruction, source = result.scores()
    np.testing.assert_allclose(frame["S_instruction"], instruction.mean(0))
    np.testing.assert_allclose(frame["S_source"], source.mean(0))


def test_a_result_compared_with_itself_does_not_differ():
    result = make()
    difference = eta_difference(result, replace(result, checkpoint=replace(result.checkpoint, name="twin")))
    for values in (difference.mean, difference.ci_low, difference.ci_high):
        np.testing.assert_array_equal(values, 0)


def test_paired_results_share_their_resamples_for_any_seed():
    first = make(samples=20)
    twin = replace(first, seed=7, checkpoint=replace(first.checkpoint, name="twin"))
    pair = compare([first, twin])["pairs"][0]["eta_difference"]["mean"]
    assert set(pair["ci_low"]) == set(pair["ci_high"]) == {0.0}


def test_differences_are_paired():
    """Two checkpoints that differ by the same small step on every sample: the paired interval is much narrower than
    those of the curves."""
    first = make(samples=40)
    norms = first.norms.copy()
    norms[..., INSTRUCTION] *= 1.1
    second = replace(first, norms=norms, checkpoint=replace(first.checkpoint, name="second"))
    pair = compare([first, second])["pairs"][0]["eta_difference"]["mean"]
    own = first.eta()
    assert np.all(np.array(pair["ci_low"]) > 0)
    assert np.mean(np.array(pair["ci_high"]) - pair["ci_low"]) < 0.2 * np.mean(own.ci_high - own.ci_low)
    expected = second.eta().mean - first.eta().mean
    np.testing.assert_allclose(pair["mean"], expected, atol=1e-6)


def test_only_shared_samples_are_compared():
    first = make(samples=8)
    second = replace(first.subset(["s1", "s3", "s4"]), checkpoint=replace(first.checkpoint, name="second"))
    pair = compare([first, second])["pairs"][0]
    assert pair["n_samples"] == 3
    np.testing.assert_array_equal(pair["eta_difference"]["mean"]["mean"], 0)


def test_different_source_lengths_give_a_warning():
    first = make()
    tokens = first.tokens.copy()
    tokens[:, SEGMENTS.index("source")] += 3
    longer = replace(first, tokens=tokens, checkpoint=replace(first.checkpoint, name="longer"))
    pairs = compare([first, longer, replace(first, checkpoint=replace(first.checkpoint, name="twin"))])["pairs"]
    assert "source lengths differ" in pairs[0]["warning"]
    assert not pairs[0]["same_lengths"]
    assert pairs[1]["warning"] is None
    tokens = first.tokens.copy()
    tokens[:, TEMPLATE] += 1
    laid_out = replace(first, tokens=tokens, checkpoint=replace(first.checkpoint, name="other template"))
    assert "have prompts of different layouts" in compare([first, laid_out])["pairs"][0]["warning"]


def test_the_warning_about_lengths_names_the_length_matched_control():
    def at(name, longer, control=None):
        tokens = first.tokens.copy()
        tokens[:, SEGMENTS.index("source")] += longer
        return replace(first, tokens=tokens, checkpoint=replace(first.checkpoint, name=name, control=control))

    first = make()
    results = [at("llm", 0), at("a", 3), at("b", 5)]
    results += [at(f"llm at length of {name}", n, Control("llm", (name,))) for name, n in (("a", 3), ("b", 5))]
    said = {(p["first"], p["second"]): p["warning"] for p in compare(results)["pairs"]}
    control, controls = "compare with the length-matched control `", "compare with the length-matched controls `"
    assert said["llm", "a"].endswith(f"read `mean` and `sum` together, and {control}llm at length of a`")
    assert said["llm", "b"].endswith(f"{control}llm at length of b`")
    assert said["a", "b"].endswith(f"{controls}llm at length of a`, `llm at length of b`")
    assert said["b", "llm at length of a"].endswith(f"{control}llm at length of b`")
    assert said["a", "llm at length of a"] is None
    both = said["llm at length of a", "llm at length of b"]
    assert both.endswith("read `mean` and `sum` together")
    assert compare(results[:2])["pairs"][0]["warning"].endswith("compare with a length-matched control")
    others = [at("other", 0), at("other at length of a", 3, Control("other", ("a",)))]
    said = {(p["first"], p["second"]): p["warning"] for p in compare([*results, *others])["pairs"]}
    assert said["llm", "a"].endswith(f"{control}llm at length of a`")
    assert said["a", "other"].endswith(f"{control}other at length of a`")


def test_models_of_different_depth_have_no_differences_by_layer():
    pair = compare([make(), make(name="second", layers=6)])["pairs"][0]
    assert pair["eta_difference"] is None
    assert "has 7 layers and second 6" in pair["warning"]


@pytest.mark.parametrize("change", ["data", "conventions"])
def test_results_that_cannot_be_paired_are_refused(change):
    first, second = make(), make(name="second")
    if change == "data":
        second = replace(second, data=replace(second.data, sha256="other"))
    if change == "conventions":
        second = second.with_conventions(segment="sum")
    with pytest.raises(InputError):
        compare([first, second])


def test_the_result_counts_its_utterances():
    assert make(samples=6).counted == "6 samples"
    two_instructions = make(samples=6, clusters=[0, 0, 1, 1, 2, 2])
    assert two_instructions.counted == "6 samples of 3 utterances"
    assert two_instructions.subset(two_instructions.ids[:4]).counted == "4 samples of 2 utterances"
