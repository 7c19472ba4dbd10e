"""Reasoning models: thinking and answer of hand-written responses measured together, apart, and one alone."""

import json

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.instruments.norms import norm_attention
from lsm_probe.probes.attention import measure
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.probes.importance.measure import response_loss
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.options import ResponseOptions
from lsm_probe.runner.prepared_samples import prepare

THINKING = "<think>\nThe speaker wants green.\n</think>"
ANSWER = "\n\nIt is green.</s>"
POOL = lsm_probe.read_pool("probing")


@pytest.fixture
def responses(tiny_llm, samples):
    """Three that think and answer, one that only thinks, one that only answers."""
    responses = [THINKING + ANSWER] * 3 + [THINKING.removesuffix("</think>")] + [ANSWER.strip()]
    return {
        s.id: tiny_llm.tokenizer(text, add_special_tokens=False)["input_ids"]
        for s, text in zip(samples[:5], responses, strict=True)
    }


@pytest.fixture
def thinking_tokens(tiny_llm):
    """Of the responses that think and answer: the marks and the blank behind them count as thinking."""
    return len(tiny_llm.tokenizer(THINKING + "\n\n", add_special_tokens=False)["input_ids"])


@pytest.fixture
def whole(tiny_llm, samples, responses):
    return lsm_probe.attention(tiny_llm, samples[:5], responses=responses, batch_size=4)


def test_the_tokens_of_both_parts_are_counted(whole, responses, thinking_tokens):
    counts = [row.get("thinking_tokens") for row in whole.samples]
    unfinished = len(responses["s3"])
    assert counts == [thinking_tokens] * 3 + [unfinished, None]
    assert [row.get("answer") for row in whole.samples[:4]] == ["It is green."] * 3 + [None]
    found = whole.to_dict()["thinking"]
    assert (found["responses"], found["unfinished"]) == (4, 1)
    assert found["thinking_tokens"] == pytest.approx((3 * thinking_tokens + unfinished) / 4)
    assert found["answer_tokens"] == pytest.approx(3 * (len(responses["s0"]) - thinking_tokens) / 4)


@pytest.mark.parametrize(
    ("part", "ids"), [("answer", ["s0", "s1", "s2", "s4"]), ("thinking", ["s0", "s1", "s2", "s3"])]
)
def test_eta_of_a_response_part_uses_only_its_rows(tiny_llm, samples, responses, whole, part, ids):
    """Read from the sums of all rows, and measured with only these rows."""
    alone = lsm_probe.attention(tiny_llm, samples[:5], responses=responses, response_part=part)
    read = whole.of_part(part)
    assert read.ids == alone.ids == ids
    np.testing.assert_array_equal(read.rows, alone.rows)
    np.testing.assert_allclose(read.norms, alone.norms, rtol=1e-4)
    np.testing.assert_allclose(read.head_norms, alone.head_norms, rtol=1e-4, atol=1e-5)
    summary = whole.to_dict()["eta_by_part"][part]
    assert summary["mean"] == pytest.approx(alone.eta().mean, abs=1e-5)
    assert summary["n_samples"] == len(ids)
    assert not np.allclose(whole.eta().mean, alone.eta().mean, atol=1e-4)
    assert alone.to_dict()["checkpoint"]["response_part"] == part
    assert alone.excluded == ({"unfinished thought": ["s3"]} if part == "answer" else {"no thinking": ["s4"]})


def test_norms_are_computed_once_for_all_rows_and_for_those_of_the_answer(
    tiny_llm, samples, responses, whole, monkeypatch
):
    """The numbers have the bits of one call for each of the two averages."""
    calls = []

    def one_call_an_average(alpha, value, metric, row_weights, keys):
        calls.append(len(row_weights))
        found = [norm_attention(alpha, value, metric, row_weight, keys) for row_weight in row_weights]
        return [torch.stack(part) for part in zip(*found, strict=True)]

    monkeypatch.setattr(measure, "norm_attention", one_call_an_average)
    apart = lsm_probe.attention(tiny_llm, samples[:5], responses=responses, batch_size=4)
    layers = apart.n_layers
    assert calls == [2] * layers + [1] * layers  # the second batch does not think
    for name, array in whole._arrays().items():
        np.testing.assert_array_equal(apart._arrays()[name], array)


def test_a_stored_result_loads_unchanged(whole, tmp_path):
    again = AttentionResult.load(whole.save(tmp_path / "result"))
    assert again.to_dict() == whole.to_dict()
    np.testing.assert_array_equal(again.of_part("answer").norms, whole.of_part("answer").norms)
    assert again.subset(["s2", "s4"]).of_part("answer").ids == ["s2", "s4"]


def test_a_result_without_thinking_does_not_mention_it(tiny_llm, samples):
    result = lsm_probe.attention(tiny_llm, samples[:2], response="reference")
    content = json.dumps(result.to_dict())
    assert not any(word in content for word in ("thinking", "response_part", "eta_by_part"))
    assert set(result._arrays()) == {"clusters", "norms", "head_norms", "tokens", "rows"}
    assert not any("answer" in row for row in result.samples)
    assert result.of_part("answer").eta().mean == pytest.approx(result.eta().mean)
    with pytest.raises(InputError, match=r"no response of .* has the part 'thinking'"):
        result.of_part("thinking")


def test_the_other_probes_measure_the_same_answer(tiny_llm, samples, responses, thinking_tokens):
    """Sensitivity stores log P of each token; knockout and importance use their mean."""
    some = {"responses": responses, "response_part": "answer"}
    everything = lsm_probe.sensitivity(tiny_llm, samples[:3], instructions=POOL, responses=responses)
    own = everything.instruction_log_probs[:, 0, thinking_tokens:]
    alone = lsm_probe.sensitivity(tiny_llm, samples[:3], instructions=POOL, **some)
    np.testing.assert_allclose(alone.instruction_log_probs[:, 0], own, atol=1e-5)
    cut = lsm_probe.knockout(tiny_llm, samples[:3], window=1, **some)
    np.testing.assert_allclose(cut.log_prob, own.mean(1), atol=1e-5)
    items, _ = prepare(tiny_llm, samples[:3], ResponseOptions(responses=responses, response_part="answer"), "fail")
    with torch.no_grad():
        losses = [response_loss(tiny_llm, item).item() for item in items]
    np.testing.assert_allclose(losses, -own.mean(1), atol=1e-5)
    whole, answer = (
        lsm_probe.importance(tiny_llm, samples[:2], **options) for options in ({"responses": responses}, some)
    )
    assert not np.allclose(np.nansum(whole.sums), np.nansum(answer.sums), rtol=1e-3)


def test_alignment_averages_the_states_of_the_part(tiny_lsm, samples, responses, thinking_tokens):
    given = {sample.id: responses["s0"] for sample in samples}
    options = {"segment": "response", "responses": given, "perplexity": 2.0}
    parts = {
        part: lsm_probe.alignment(tiny_lsm, samples, response_part=part, **options)
        for part in ("all", "thinking", "answer")
    }
    rows = len(responses["s0"])
    for side in ("speech", "text"):
        mean = thinking_tokens * getattr(parts["thinking"], side) + (rows - thinking_tokens) * getattr(
            parts["answer"], side
        )
        np.testing.assert_allclose(getattr(parts["all"], side), mean / rows, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="leave out --response-part"):
        lsm_probe.alignment(tiny_lsm, samples, response_part="answer", perplexity=2.0)


def test_comparing_a_thinking_model_with_another_gives_a_warning(tiny_llm, samples, responses, whole):
    plain = lsm_probe.attention(tiny_llm, samples[:5], response="generated", max_new_tokens=3)
    (pair,) = compare([whole, plain])["pairs"]
    assert "thinks before it answers" in pair["warning"]
    assert "--response-part answer" in pair["warning"]
    with pytest.raises(InputError, match="different parts of the response"):
        compare([whole, whole.of_part("answer")])


@pytest.mark.parametrize("command", ["attention", "knockout"])
def test_the_command_prints_which_part_of_thinking_responses_is_measured(
    tiny_llm_folder, responses, write, lsm_probe_command, tmp_path, command
):
    ids = ["s0", "s3"]
    lines = [json.dumps({"id": i, "instruction": "Say it.", "text": f"the sea {i}"}) for i in ids]
    given = [json.dumps({"id": i, "response_ids": responses[i]}) for i in ids]
    options = ["--ckpt", tiny_llm_folder, "--data", write(tmp_path / "data.jsonl", *lines)]
    options += ["--responses", write(tmp_path / "given" / "samples.jsonl", *given).parent]
    code, _, error = lsm_probe_command(command, *options, "--out", tmp_path / "all")
    assert code == 0, error
    assert "2 of 2 responses begin with thinking" in error
    assert "1 stop before the thinking ends: raise --max-new-tokens; all tokens are measured" in error
    code, _, error = lsm_probe_command(command, *options, "--response-part", "answer", "--out", tmp_path / "answer")
    assert code == 0, error
    stored = json.loads((tmp_path / "answer" / "result.json").read_text())
    assert (stored["excluded"], stored["n_samples"]) == ({"unfinished thought": ["s3"]}, 1)
