"""Text ability: perplexity by its definition, MMLU by groups, forgetting rates, and resuming."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.data.identity import DataIdentity
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.evaluation import text_ability as module
from lsm_probe.evaluation.mmlu import Mmlu, read_mmlu
from lsm_probe.evaluation.text_ability_result import TextAbilityConventions, TextAbilityResult
from lsm_probe.runner.identity import CheckpointIdentity

TEXTS = [
    ("The quick brown fox jumps", "over the lazy dog while the rain falls softly."),
    ("She sells", "sea shells by the sea shore; nobody knows how many she has sold this year."),
    ("My favourite colour is green,", "because"),
]


@pytest.fixture
def samples():
    return [
        Sample(id=f"s{i}", instruction="Continue writing the text.", text=text, target=target)
        for i, (text, target) in enumerate(TEXTS)
    ]


@pytest.fixture
def mmlu(mmlu_folder):
    """Two subjects, four questions each."""
    whole = read_mmlu(mmlu_folder, questions=4)
    return Mmlu(whole.name, {name: whole.subjects[name] for name in ("anatomy", "sociology")})


def made(right, *, name="by hand", texts=(), seed=0):
    """A result with given answers: `right` by (group, subject), and (nats, tokens) of texts."""
    rows = [
        {"id": f"mmlu/{subject}/{i}", "subject": subject, "group": group, "answer": "A", "chosen": "A" if hit else "B"}
        for (group, subject), hits in right.items()
        for i, hit in enumerate(hits)
    ]
    counts = [[hit, 1] for hits in right.values() for hit in hits] + [list(text) for text in texts]
    rows += [{"id": f"t{i}"} for i in range(len(texts))]
    return TextAbilityResult(
        counts=np.array(counts, dtype=np.float64),
        clusters=np.arange(len(rows)),
        samples=rows,
        checkpoint=CheckpointIdentity(name=name, source="text", template="chat", dtype="float32"),
        data=DataIdentity("made", "0", len(rows)),
        conventions=TextAbilityConventions(shots=5),
        seed=seed,
    )


def hits(right, of):
    return [True] * right + [False] * (of - right)


def by_definition(checkpoint, sample):
    """Nats and tokens of a target after its prompt, in one plain pass over token ids."""
    prompt = checkpoint.encode(sample.instruction, sample.text)
    target = checkpoint.tokenizer(sample.target, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*prompt.input_ids, *target]])
    logs = checkpoint.llm(ids).logits[0].log_softmax(-1)
    first = len(prompt.input_ids)
    return -sum(logs[first + i - 1, token].item() for i, token in enumerate(target)), len(target)


def test_perplexity_covers_all_target_tokens_except_eos(tiny_llm, samples):
    found = lsm_probe.text_ability(tiny_llm, samples)
    expected = np.array([by_definition(tiny_llm, sample) for sample in samples])
    np.testing.assert_allclose(found.counts, expected, rtol=1e-5)
    nats = expected[:, 0].sum() / expected[:, 1].sum()
    assert found.nats.value == pytest.approx(nats, rel=1e-5)
    assert found.perplexity.value == pytest.approx(math.exp(nats), rel=1e-5)
    assert found.summary()["perplexity"]["n_tokens"] == expected[:, 1].sum()
    assert found.summary()["mmlu"] is None
    assert found.accuracies == {}


def test_the_llm_inside_an_lsm_is_scored_on_transcripts_only(tiny_lsm, samples, tmp_path):
    (tmp_path / "noise.wav").write_bytes(b"no sound")
    spoken = [sample.model_copy(update={"audio": tmp_path / "noise.wav"}) for sample in samples]
    found = lsm_probe.text_ability(tiny_lsm, spoken)
    assert found.checkpoint.source == "text"
    expected = [by_definition(replace(tiny_lsm, source="text"), sample) for sample in samples]
    np.testing.assert_allclose(found.counts, expected, rtol=1e-5)


def test_perplexity_and_mmlu_do_not_depend_on_each_other(tiny_llm, samples, mmlu):
    both = lsm_probe.text_ability(tiny_llm, samples, mmlu=mmlu, shots=1)
    texts, questions = lsm_probe.text_ability(tiny_llm, samples), lsm_probe.text_ability(tiny_llm, mmlu=mmlu, shots=1)
    assert both.summary() == {"mmlu": questions.summary()["mmlu"], "perplexity": texts.summary()["perplexity"]}
    assert both.data.n_samples == 3 + 8
    assert [part.sha256 for part in both.data.parts] == [texts.data.sha256, questions.data.sha256]
    assert len({both.data.sha256, texts.data.sha256, questions.data.sha256}) == 3


def test_the_average_is_over_questions_and_each_group_has_its_own():
    anatomy, virology, nutrition = ("stem", "anatomy"), ("stem", "virology"), ("other", "nutrition")
    result = made({anatomy: hits(1, 2), virology: hits(2, 4), nutrition: hits(2, 2)})
    found = {name: number.value for name, number in result.accuracies.items()}
    assert found == {
        "average": pytest.approx(100 * 5 / 8),
        "average_of_groups": pytest.approx((50 + 100) / 2),
        "stem": 50,
        "other": 100,
        "anatomy": 50,
        "virology": 50,
        "nutrition": 100,
    }
    summary = result.summary()["mmlu"]
    assert set(summary["subjects"]) == {"anatomy", "virology", "nutrition"}
    assert summary["stem"]["n"] == 6
    assert summary["n_subjects"] == "3 of 57"
    assert summary["chosen"] == {"A": 62.5, "B": 37.5, "C": 0, "D": 0}


def test_intervals_of_accuracies_are_binomial():
    average = made({("stem", "anatomy"): hits(120, 400)}).accuracies["average"].curve
    spread = 1.96 * 100 * math.sqrt(0.3 * 0.7 / 400)
    assert average.ci_low == pytest.approx(30 - spread, abs=0.7)
    assert average.ci_high == pytest.approx(30 + spread, abs=0.7)


def test_samples_of_one_utterance_are_resampled_together(tiny_llm, samples):
    repeated = [sample.model_copy(update={"id": f"{sample.id}-{i}"}) for sample in samples for i in range(4)]
    once, often = (lsm_probe.text_ability(tiny_llm, given).nats.curve for given in (samples, repeated))
    assert (often.ci_low, often.ci_high) == pytest.approx((float(once.ci_low), float(once.ci_high)), rel=1e-6)


def test_forgetting_rates_equal_those_computed_by_hand():
    before, after = made({("stem", "anatomy"): hits(80, 100)}), made({("stem", "anatomy"): hits(60, 100)}, name="after")
    found = before.differences(after)["mmlu"]["average"]
    assert found["difference"]["mean"] == pytest.approx(-20)
    assert found["forgetting_rate"]["mean"] == pytest.approx(25)
    assert found["forgetting_rate_above_chance"]["mean"] == pytest.approx(100 * 20 / 55, abs=1e-6)
    for rate in ("forgetting_rate", "forgetting_rate_above_chance"):
        assert 0 < found[rate]["ci_low"] < found[rate]["mean"] < found[rate]["ci_high"]
    back = after.differences(before)["mmlu"]["average"]
    assert back["forgetting_rate"]["mean"] == pytest.approx(-100 / 3, abs=1e-6)


def test_accuracy_at_chance_level_has_no_forgetting_rate():
    before, after = made({("stem", "anatomy"): hits(25, 100)}), made({("stem", "anatomy"): hits(20, 100)}, name="after")
    found = before.differences(after)["mmlu"]["subjects"]["anatomy"]
    assert found["forgetting_rate"]["mean"] == pytest.approx(20)
    assert found["forgetting_rate_above_chance"] is None
    assert "not above 25 %" in found["why_no_forgetting_rate_above_chance"]
    nothing = made({("stem", "anatomy"): hits(0, 100)})
    assert nothing.differences(after)["mmlu"]["average"]["forgetting_rate"] is None


def test_differences_are_paired():
    rng = np.random.default_rng(0)
    nats = [(float(value), 10) for value in rng.uniform(10, 90, 50)]
    before = made({}, texts=nats)
    found = before.differences(made({}, texts=[(value + 7, 10) for value, _ in nats], name="after"))
    assert found["mmlu"] is None
    for end in ("mean", "ci_low", "ci_high"):
        assert found["perplexity"]["difference"][end] == pytest.approx(0.7, abs=1e-6)
        assert found["perplexity"]["ratio"][end] == pytest.approx(math.exp(0.7), abs=1e-6)
    assert before.nats.curve.ci_high - before.nats.curve.ci_low > 1


def test_a_perplexity_too_large_for_a_float_is_null_with_a_warning():
    with pytest.warns(UserWarning, match=r"^the perplexity of big overflows \(exp of 1800 nats") as warned:
        found = made({}, name="big", texts=[(9000.0, 5)] * 3).summary()["perplexity"]
    assert len(warned) == 1
    assert found["nats_per_token"]["mean"] == 1800
    assert found["perplexity"] == {"mean": None, "ci_low": None, "ci_high": None}


def test_an_interval_too_large_for_a_float_is_null_with_a_warning():
    texts = [(9000.0, 5)] * 2 + [(5.0, 5)] * 6
    with pytest.warns(UserWarning, match=r"^the interval of the perplexity of by hand overflows \(exp of \d{4} nats"):
        found = made({}, texts=texts).summary()["perplexity"]["perplexity"]
    assert found["mean"] > 1e100
    assert (found["ci_low"], found["ci_high"]) == (None, None)


def test_a_ratio_too_large_for_a_float_is_null_with_a_warning():
    before, after = made({}, texts=[(5.0, 5)] * 3), made({}, name="after", texts=[(9000.0, 5)] * 3)
    with pytest.warns(UserWarning, match="^the ratio of perplexities of after and by hand overflows"):
        found = before.differences(after)["perplexity"]
    assert found["difference"]["mean"] == 1799
    assert found["ratio"]["mean"] is None


def test_comparing_different_tokens_gives_a_warning():
    before = made({}, texts=[(10.0, 5), (20.0, 8)])
    assert before.warning(made({}, texts=[(11.0, 5), (20.0, 8)])) is None
    assert "different tokens" in before.warning(made({}, texts=[(10.0, 5), (20.0, 9)]))


def test_a_saved_result_is_loaded_unchanged(tiny_llm, samples, mmlu, tmp_path):
    result = lsm_probe.text_ability(tiny_llm, samples, mmlu=mmlu, shots=1, seed=3)
    back = TextAbilityResult.load(result.save(tmp_path))
    assert back.to_dict() == result.to_dict()
    assert back.to_frame().equals(result.to_frame())
    comparison = lsm_probe.compare(
        [
            result,
            replace(back, checkpoint=replace(back.checkpoint, name="back")),
        ]
    )
    (pair,) = comparison["pairs"]
    assert pair["perplexity"]["ratio"] == {"mean": 1.0, "ci_low": 1.0, "ci_high": 1.0}
    difference = pair["mmlu"]["average"]["difference"]
    assert difference["mean"] == 0
    assert difference["ci_high"] == -difference["ci_low"] > 0  # few questions; others may distinguish them


def test_texts_that_are_measured_again_in_float32_count_in_the_progress(tiny_llm_folder, samples, mmlu):
    half, seen = lsm_probe.load(tiny_llm_folder, device="cpu", dtype="float16"), []
    options = {"mmlu": mmlu, "shots": 0, "verify_precision": 2}
    lsm_probe.text_ability(half, samples, **options, on_progress=lambda *counts: seen.append(counts))
    assert list(dict.fromkeys(seen)) == [(3, 13), (5, 13), (9, 13), (13, 13)]


def test_an_interrupted_run_resumes_with_the_next_subject(tiny_llm, samples, mmlu, tmp_path, monkeypatch):
    arguments = {"mmlu": mmlu, "shots": 1}
    whole = lsm_probe.text_ability(tiny_llm, samples, **arguments)
    progress = []

    def interrupt(done, total):
        progress.append((done, total))
        if done == 7:  # three texts and the first subject
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lsm_probe.text_ability(tiny_llm, samples, progress_folder=tmp_path, on_progress=interrupt, **arguments)
    assert progress == [(3, 11), (7, 11)]
    run, asked = module.Harness.run, []
    monkeypatch.setattr(module.Harness, "run", lambda self, task: [asked.append(task), run(self, task)][1])
    monkeypatch.setattr(module, "_measure", None)  # the texts are there
    resumed = lsm_probe.text_ability(tiny_llm, samples, progress_folder=tmp_path, **arguments)
    assert asked == ["mmlu_sociology"]
    assert resumed.to_dict() == whole.to_dict()
    assert resumed.samples == whole.samples
    with pytest.raises(InputError, match="interrupted run with another checkpoint, data or settings"):
        lsm_probe.text_ability(tiny_llm, samples, mmlu=mmlu, shots=0, progress_folder=tmp_path)


def test_invalid_input_is_refused_before_the_run(tiny_llm, samples, mmlu, tmp_path, monkeypatch):
    (tmp_path / "rain.wav").write_bytes(b"no sound")
    monkeypatch.setattr(tiny_llm.model, "forward", None)
    without = [*samples, Sample(id="bare", instruction="Go on.", text="The rain")]
    spoken = [Sample(id="spoken", instruction="Go on.", audio=tmp_path / "rain.wav", target="falls")]
    for given, questions, shots, message in (
        ([], None, 5, "nothing to measure: give samples"),
        (without, None, 5, "1 of 4 samples have no `target`, whose perplexity is asked for .first: bare"),
        (spoken, None, 5, "1 of 1 samples have no `text`"),
        (samples, mmlu, 6, "--shots 6: mmlu has 5 examples of anatomy; give 0 to 5"),
    ):
        with pytest.raises(InputError, match=message):
            lsm_probe.text_ability(tiny_llm, given, mmlu=questions, shots=shots)


def test_an_unusable_sample_stops_the_run_or_is_left_out(tiny_llm, samples):
    long = [*samples, Sample(id="long", instruction="Go on.", text="the rain " * 800, target="falls")]
    with pytest.raises(InputError, match=r"sample long: a prompt of .* exceed the context"):
        lsm_probe.text_ability(tiny_llm, long)
    found = lsm_probe.text_ability(tiny_llm, long, on_error="skip")
    assert list(found.excluded.values()) == [["long"]]
    np.testing.assert_allclose(found.counts, lsm_probe.text_ability(tiny_llm, samples).counts, rtol=1e-5)
    with torch.no_grad():
        tiny_llm.model.model.norm.weight[0] = torch.nan
    with pytest.raises(InputError, match=r"sample s0: the log-probability of its response is not finite"):
        lsm_probe.text_ability(tiny_llm, samples)
