"""Evaluation: predictions do not depend on batch, order or interruptions; all samples are kept; times add up."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile

import lsm_probe
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.evaluation import EVALUATION
from lsm_probe.evaluation.cascade import NO_WORDS, cascade
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.task import Task
from lsm_probe.evaluation.transcriber import Transcriber
from lsm_probe.models.identity import WeightsIdentity
from lsm_probe.runner.named_checkpoints import named_checkpoint
from lsm_probe.runner.run import run_measurement

TEXTS = ["the quick brown fox jumps", "rain falls softly", "she sells sea shells by the sea shore", "green"]
SAID = Task(name="said", title="Said", metrics=("word_error_rate", "word_error_rate_macro"))
COLOUR = Task(name="colour", title="Colour", answer="label", labels=("green", "brown"), metrics=("accuracy",))
TASKS = [SAID, COLOUR]
QUICK = {"tasks": TASKS, "max_new_tokens": 5}


@pytest.fixture(scope="module")
def samples(tmp_path_factory, waveform):
    """Four utterances of 0.4 to 3 s, each under two tasks."""
    folder = tmp_path_factory.mktemp("speech")
    made = []
    for i, text in enumerate(TEXTS):
        path = folder / f"{i}.wav"
        soundfile.write(path, waveform(0.4 + 0.8 * ((i * 2) % 3), seed=i), 16_000)
        common = {"audio": path, "text": text, "language": "en"}
        said = Sample(id=f"said/{i}", task="said", instruction="Write down what is said.", target=text, **common)
        colour = {"instruction": "Which colour? Say it in one word.", "target": ["green", "brown"][i % 2]}
        made += [said, Sample(id=f"colour/{i}", task="colour", **colour, **common)]
    return made


def content_of(result):
    """The content of a result without its times."""
    content = result.to_dict()
    del content["seconds_per_sample"]
    return content, result.samples


@pytest.mark.parametrize("source", ["speech", "text"])
def test_the_result_does_not_depend_on_the_batch(tiny_lsm, tiny_llm, samples, source):
    checkpoint = tiny_lsm if source == "speech" else tiny_llm
    one = lsm_probe.evaluate(checkpoint, samples, batch_size=1, **QUICK)
    eight = lsm_probe.evaluate(checkpoint, samples, batch_size=8, **QUICK)
    assert content_of(one) == content_of(eight)
    assert len({row["response"] for row in one.samples}) > 1  # different responses, which could be mixed up


def test_rows_keep_the_order_of_samples_and_scores_do_not_depend_on_it(tiny_lsm, samples):
    turned = samples[::-1]
    forth, back = (lsm_probe.evaluate(tiny_lsm, s, **QUICK) for s in (samples, turned))
    assert forth.ids == [sample.id for sample in samples]
    assert back.ids == forth.ids[::-1]
    for task in TASKS:
        for name, metric in forth.metrics()[task.name].items():
            assert back.metrics()[task.name][name].value == pytest.approx(metric.value, nan_ok=True)


def test_two_checkpoints_draw_the_same_utterances(tiny_lsm, tiny_llm, samples):
    """They process samples in different orders: by seconds of speech, and by length of text."""
    speech, text = (lsm_probe.evaluate(checkpoint, samples, **QUICK) for checkpoint in (tiny_lsm, tiny_llm))
    assert speech.clusters.tolist() == text.clusters.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_an_interrupted_evaluation_is_resumed_with_the_same_result(tiny_lsm, samples, tmp_path):
    whole = lsm_probe.evaluate(tiny_lsm, samples, batch_size=2, **QUICK)
    seen = []

    def stop(done):
        seen.append(done)
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lsm_probe.evaluate(tiny_lsm, samples, batch_size=2, progress_folder=tmp_path, on_progress=stop, **QUICK)
    kept = {path.name for path in tmp_path.glob("batch-*")}
    assert seen == [2, 4]
    assert len(kept) == 2
    resumed = lsm_probe.evaluate(tiny_lsm, samples, batch_size=2, progress_folder=tmp_path, **QUICK)
    assert content_of(resumed) == content_of(whole)


def test_a_saved_result_is_loaded_unchanged(tiny_lsm, samples, tmp_path):
    result = lsm_probe.evaluate(tiny_lsm, samples, **QUICK)
    back = EvaluationResult.load(result.save(tmp_path))
    assert back.to_dict() == result.to_dict()
    assert back.samples == result.samples
    assert back.seconds.tolist() == result.seconds.tolist()


def test_predictions_can_be_scored_with_another_task_definition(tiny_lsm, samples):
    result = lsm_probe.evaluate(tiny_lsm, samples, **QUICK)
    free = Task(name="colour", title="Colour", metrics=("answer_contained",))
    again = result.rescored([free])
    assert list(again.metrics()["colour"]) == ["answer_contained"]  # any text is in form
    assert again.metrics()["said"].keys() == result.metrics()["said"].keys()
    with pytest.raises(InputError, match="has no answers to task mood; it has: said, colour"):
        result.rescored([Task(name="mood", title="Mood", metrics=("accuracy",))])


def test_differences_and_agreement_are_paired_by_sample(tiny_lsm, tiny_llm, samples):
    speech, text = (lsm_probe.evaluate(checkpoint, samples, **QUICK) for checkpoint in (tiny_lsm, tiny_llm))
    found = text.differences(speech)
    for task in TASKS:
        for name, metric in speech.metrics()[task.name].items():
            expected = metric.value - text.metrics()[task.name][name].value
            assert found["differences"][task.name][name]["value"] == pytest.approx(expected, abs=1e-6)
    itself = text.differences(text)
    assert all(score["value"] == 100 for score in itself["agreement"].values())
    for score in (score for task in itself["differences"].values() for score in task.values()):
        assert score["value"] == 0
        assert score["ci_low"] is None or score["ci_high"] == -score["ci_low"] > 0  # on few utterances
    assert itself["speed_ratio"] == {"mean": 1, "ci_low": 1, "ci_high": 1}


def test_following_is_the_mean_over_the_tasks_that_ask_for_a_form(tiny_lsm, samples):
    result = lsm_probe.evaluate(tiny_lsm, samples, **QUICK)
    said = ["", "Green!"] * 2 + [""] * 4
    rows = [row | {"response": response} for row, response in zip(result.samples, said, strict=True)]
    result = replace(result, samples=rows)
    following = result.following()
    assert (following.value, following.n) == (50, 4)
    assert following.value == result.metrics()["colour"]["following_rate"].value
    only_text = result.rescored([COLOUR.model_copy(update={"answer": "text", "metrics": ("answer_contained",)})])
    assert only_text.following() is None


def test_responses_at_the_length_limit_and_empty_responses_are_counted(tiny_lsm, samples):
    result = lsm_probe.evaluate(tiny_lsm, samples, **QUICK)
    rows = [dict(row) for row in result.samples]
    rows[0] |= {"response": "", "response_ids": [2]}
    rows[1] |= {"response": "x", "response_ids": [5, 2]}
    found = replace(result, samples=rows).summary()["tasks"]
    for i, task in enumerate(TASKS):
        own = rows[i::2]
        assert found[task.name]["empty_responses"] == sum(row["response"] == "" for row in own)
        assert found[task.name]["cut_responses"] == sum(len(row["response_ids"]) == 5 for row in own)
    assert found["said"]["empty_responses"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": None}, "samples have no `target`"),
        ({"task": "mood"}, r"sample colour/3 is of task 'mood'; there are: said, colour"),
        ({"target": "blue"}, r"sample colour/3: its target 'blue' is not an answer to its task; correct it"),
        ({"id": "said/0"}, "two samples have the same id"),
    ],
)
def test_samples_that_cannot_be_scored_are_refused_before_generation(tiny_lsm, samples, change, message, monkeypatch):
    monkeypatch.setattr(tiny_lsm, "generate", lambda *a, **k: pytest.fail("answered"))
    with pytest.raises(InputError, match=message):
        lsm_probe.evaluate(tiny_lsm, [*samples[:-1], samples[-1].model_copy(update=change)], **QUICK)


def test_a_task_without_samples_is_refused(tiny_lsm, samples):
    with pytest.raises(InputError, match="task colour has no samples"):
        lsm_probe.evaluate(tiny_lsm, samples[::2], **QUICK)


def test_unusable_samples_are_left_out_on_request(tiny_lsm, samples, tmp_path):
    damaged = tmp_path / "damaged.wav"
    damaged.write_bytes(samples[0].audio.read_bytes()[:100])
    broken = [sample.model_copy(update={"audio": damaged}) if sample.id == "said/0" else sample for sample in samples]
    with pytest.raises(InputError, match="sample said/0: "):
        lsm_probe.evaluate(tiny_lsm, broken, **QUICK)
    result = lsm_probe.evaluate(tiny_lsm, broken, on_error="skip", **QUICK)
    assert [id for ids in result.excluded.values() for id in ids] == ["said/0"]
    assert result.metrics()["said"]["word_error_rate"].n == 3


WHISPER = WeightsIdentity(model_type="whisper")


class LengthTranscriber(Transcriber):
    """A transcriber whose transcripts state the length of the clip."""

    def transcribe(self, waveforms, languages):
        assert languages == ["en"] * len(waveforms)
        return [f" clip of {len(waveform)} samples" if len(waveform) > 8_000 else " " for waveform in waveforms]


@pytest.fixture
def whisper_cascade(tiny_llm):
    return cascade(tiny_llm, LengthTranscriber("builtin:whisper", None, None, WHISPER))


def test_a_cascade_answers_the_transcript_of_the_transcriber(whisper_cascade, tiny_llm, samples):
    result = lsm_probe.evaluate(whisper_cascade, samples, batch_size=3, **QUICK)
    lengths = [soundfile.info(sample.audio).frames for sample in samples]
    transcripts = [f"clip of {length} samples" if length > 8_000 else NO_WORDS for length in lengths]
    assert [row["transcript"] for row in result.samples] == transcripts
    as_text = [sample.model_copy(update={"text": text}) for sample, text in zip(samples, transcripts, strict=True)]
    from_text = lsm_probe.evaluate(tiny_llm, as_text, **QUICK)
    assert [row["response"] for row in result.samples] == [row["response"] for row in from_text.samples]
    assert result.checkpoint.model.transcriber == WHISPER
    words = result.summary()["tasks"]["said"]["transcripts"]["details"]["words"]
    assert words == sum(len(text.split()) for text in TEXTS)


def test_a_cascade_needs_a_text_llm(tiny_lsm):
    with pytest.raises(InputError, match="takes speech itself: a cascade consists of"):
        cascade(tiny_lsm, LengthTranscriber("w", None, None, WHISPER))


def test_a_cascade_is_resumed_without_transcribing_again(whisper_cascade, samples, tmp_path):
    whole = lsm_probe.evaluate(whisper_cascade, samples, batch_size=2, progress_folder=tmp_path, **QUICK)

    # Only the warm-up calls the transcriber again.
    object.__setattr__(whisper_cascade.transcriber, "transcribe", lambda waves, langs: ["once"] * len(waves))
    again = lsm_probe.evaluate(whisper_cascade, samples, batch_size=2, progress_folder=tmp_path, **QUICK)
    assert content_of(again) == content_of(whole)
    assert again.seconds.tolist() == whole.seconds.tolist()


def test_the_seconds_of_a_batch_are_divided_among_its_samples(tiny_lsm, samples, monkeypatch):
    clock = iter(range(1_000))
    monkeypatch.setattr("lsm_probe.runner.prepared_samples.perf_counter", lambda: float(next(clock)))
    result = lsm_probe.evaluate(tiny_lsm, samples, batch_size=4, **QUICK)
    assert result.seconds.tolist() == pytest.approx(np.full(8, 1 / 4))


def test_two_checkpoints_are_compared_in_one_folder(tiny_lsm_folder, tiny_llm_folder, samples, tmp_path):
    loading = {"device": "cpu", "dtype": "float32"}
    checkpoints = [named_checkpoint(str(folder), loading) for folder in (tiny_llm_folder, tiny_lsm_folder)]
    results, comparison = run_measurement(EVALUATION, checkpoints, samples, tmp_path, options=QUICK)
    pair = comparison["pairs"][0]
    assert pair["n_samples"] == 8
    assert pair["differences"].keys() == pair["agreement"].keys() == {"said", "colour"}
    assert pair["speed_ratio"]["mean"] == pytest.approx(results[0].seconds.sum() / results[1].seconds.sum(), abs=1e-6)


def test_an_unavailable_metric_is_reported_before_generation(tiny_lsm, tiny_bert_folder, samples, monkeypatch):
    monkeypatch.setattr(tiny_lsm, "generate", lambda *a, **k: pytest.fail("answered"))
    compared = Task(name="said", title="Said", metrics=("bert_score",), bert_layer=99)
    compared = compared.model_copy(update={"bert_model": str(tiny_bert_folder)})
    with pytest.raises(InputError, match="no layer 99"):
        lsm_probe.evaluate(tiny_lsm, samples[::2], tasks=[compared], max_new_tokens=2)


def test_an_undefined_rate_is_null_with_a_warning(tiny_lsm, samples):
    maori = Task(name="said", title="Said", answer="translation", language="mi", metrics=("bleu",))
    result = lsm_probe.evaluate(tiny_lsm, samples[::2], tasks=[maori], max_new_tokens=2)
    why = "no response can be checked for the requested form"
    with pytest.warns(UserWarning, match=f"task said: following_rate is undefined: {why}"):
        summary = result.summary()
    for found in (summary["following_rate"], summary["tasks"]["said"]["metrics"]["following_rate"]):
        assert found["value"] is None
        assert found["details"]["undefined"] == why
