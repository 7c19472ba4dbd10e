"""What was measured of each checkpoint is put together from the results, whatever folders they come from."""

from dataclasses import replace

import numpy as np
import pytest

import lsm_probe
from lsm_probe.diagnosis.verdict import Verdict
from lsm_probe.evaluation.evaluation_result import EvaluationConventions, EvaluationResult
from lsm_probe.evaluation.task import read_task
from lsm_probe.probes.sensitivity.result import SensitivityConventions, SensitivityResult
from lsm_probe.reports import verdicts
from lsm_probe.reports.verdicts import find_verdicts, measured_checkpoints


@pytest.fixture
def sensed(planted):
    """`sensed(attention, responses_of=...)`: sensitivity of the same checkpoint, on its own or on given responses."""

    def make(attention, responses_of=None, **conventions):
        n, rng = len(attention.samples), np.random.default_rng(0)
        given = responses_of or attention
        return SensitivityResult(
            instruction_log_probs=rng.normal(size=(n, 5, 3)),
            source_log_probs=rng.normal(size=(n, 5, 3)),
            self_check={"mean": 0.0, "bound": 1.0},
            conventions=SensitivityConventions(**conventions),
            samples=given.samples,
            checkpoint=replace(attention.checkpoint, responses=None if responses_of is None else "given"),
            **{key: getattr(attention, key) for key in ("clusters", "data")},
        )

    return make


@pytest.fixture
def attention(planted):
    """The base LLM, its control, and a speech checkpoint; each answers with tokens of its own."""

    def answering(result, first):
        return replace(result, samples=[{**s, "response_ids": [first, i]} for i, s in enumerate(result.samples)])

    return {
        "llm": answering(planted("llm", 0.6, source="text"), 1),
        "lsm": answering(planted("lsm", 0.3, tokens=30), 2),
        "control": planted("llm at length of lsm", 0.5, source="text", control=True, tokens=30),
    }


@pytest.fixture
def read(tmp_path):
    """`read(results...)`: those results, saved in a folder each and read back."""

    def save_and_read(*results):
        for i, result in enumerate(results):
            result.save(tmp_path / "runs" / str(i))
        return lsm_probe.read_results([tmp_path / "runs"])

    return save_and_read


def test_a_full_set_of_folders_fills_every_field(attention, sensed, read):
    llm, lsm = attention["llm"], attention["lsm"]
    results = read(*attention.values(), sensed(llm), sensed(lsm), sensed(lsm, responses_of=llm))
    speech, text = sorted(measured_checkpoints(results), key=lambda each: each.source)
    assert (speech.name, speech.source, text.name, text.source) == ("lsm", "speech", "llm", "text")
    assert speech.attention.name == "lsm"
    assert speech.control.is_control
    assert speech.own.of_own_words
    assert speech.base_words.responses() == llm.responses()
    assert speech.base_own.name == text.base_own.name == text.own.name == "llm"
    assert text.base_words is None
    assert text.control is None


def test_own_responses_that_were_stored_and_given_again_are_own(attention, sensed, read):
    llm, lsm = attention["llm"], attention["lsm"]
    results = read(llm, lsm, sensed(lsm, responses_of=lsm), sensed(lsm, responses_of=llm))
    speech = next(each for each in measured_checkpoints(results) if each.name == "lsm")
    assert speech.own.responses() == lsm.responses()
    assert speech.base_words.responses() == llm.responses()


def test_references_and_paraphrases_are_not_judged(attention, sensed, read):
    lsm = attention["lsm"]
    reference = replace(lsm, samples=[{**sample, "response_ids": [9]} for sample in lsm.samples])
    for left_out in (sensed(reference, response="reference"), sensed(lsm, pool="paraphrases")):
        (speech,) = measured_checkpoints(read(lsm, left_out))
        assert (speech.own, speech.base_words) == (None, None)


def test_the_transcription_task_is_taken_from_an_evaluation(attention, read):
    tasks = tuple(read_task(name) for name in ("german", "librispeech-clean", "commands-transcription"))
    lsm = attention["lsm"]
    rows = [
        {"id": f"{task.name}/{i}", "task": task.name, "reference": "yes", "response": "yes", "response_ids": [1],
         "instruction": "Do.", "language": "en"}
        for task in tasks for i in range(2)
    ]  # fmt: skip
    evaluation = EvaluationResult(
        clusters=np.arange(6), samples=rows, seconds=np.ones(6), checkpoint=lsm.checkpoint, data=lsm.data,
        conventions=EvaluationConventions(8, tasks),
    )  # fmt: skip
    (speech,) = measured_checkpoints(read(evaluation))
    assert [task.name for task in speech.transcription.tasks] == ["commands-transcription"]
    assert speech.transcription.scores()["commands-transcription"]["word_error_rate"].value == 0


@pytest.mark.parametrize(
    ("instruction", "found"),
    [("Is it positive, negative or neutral?", True), ("What sentiment does the text express?", False)],
)
def test_a_form_counts_only_if_the_instruction_asks_for_it(attention, read, instruction, found):
    lsm = attention["lsm"]
    samples = [{**sample, "task": "sentiment", "instruction": instruction} for sample in lsm.samples]
    (speech,) = measured_checkpoints(read(replace(lsm, samples=samples)))
    assert set(speech.tasks) == ({"sentiment"} if found else set())


def test_the_verdict_warns_of_measurements_on_different_samples(attention, sensed, read, monkeypatch):
    monkeypatch.setattr(
        verdicts, "judge", lambda measured: Verdict(checkpoint=measured.name, verdict="in between", reason="Planted.")
    )
    lsm = attention["lsm"]
    part = sensed(lsm).subset(["s0", "s3"])
    assert find_verdicts(read(lsm, replace(part, data=replace(lsm.data, sha256="ef" * 32))))[0].warnings == ()
    other = replace(sensed(lsm), data=replace(lsm.data, sha256="cd" * 32, name="other.jsonl"))
    (verdict,) = find_verdicts(read(lsm, other))
    assert verdict.verdict == "in between"
    assert verdict.warnings == [
        "The measurements of lsm are on different samples: attention on planted.jsonl (12 samples), sensitivity on "
        "other.jsonl (12 samples)."
    ]


def test_checkpoints_of_other_measurements_alone_are_not_judged(runs):
    assert measured_checkpoints(lsm_probe.read_results([runs / "importance", runs / "timeline"])) == []
    assert [each.name for each in measured_checkpoints(lsm_probe.read_results([runs]))] == ["llm", "lsm"]
