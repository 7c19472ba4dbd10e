"""Answers of reasoning models: parsing after the thinking, and what is reported about it."""

import json

import pytest

import lsm_probe
from lsm_probe.data.sample import Sample
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.tables import metrics_summary
from lsm_probe.evaluation.task import Task

COLOUR = Task(name="colour", title="Colour", answer="label", labels=("green", "brown"), metrics=("accuracy",))
SAID = Task(name="said", title="Said", metrics=("word_error_rate",))
THINKING = "<think>\nIt may be green. No, it is not green.\n</think>\n\n"
RESPONSES = {
    "colour/right": THINKING + "{'brown'}</s>",
    "colour/wrong": THINKING + "{'green'}</s>",
    "colour/unfinished": "<think>\nIt is brown",
    "colour/plain": "{'brown'}</s>",
    "said/right": THINKING + "the brown fox</s>",
    "said/unfinished": "<think>\nthe brown fox",
}


@pytest.fixture
def evaluated(tiny_llm, monkeypatch):
    """`evaluated(**tasks' settings)`: the tiny LLM "answers" with `RESPONSES`."""
    ids = {key: tiny_llm.tokenizer(text, add_special_tokens=False)["input_ids"] for key, text in RESPONSES.items()}
    order = iter(())

    def generate(embedded, *, max_new_tokens):
        return [ids[next(order)] for _ in embedded]

    monkeypatch.setattr(tiny_llm, "generate", generate)

    def make(**settings):
        nonlocal order
        target = {"colour": "brown", "said": "the brown fox"}
        # All prompts of a task have one length, so that they stay in order.
        samples = [
            Sample(id=key, task=key.split("/")[0], instruction="Say it.", text="fox", target=target[key.split("/")[0]])
            for key in RESPONSES
        ]
        order = iter([*list(RESPONSES)[-1:], *RESPONSES])  # one more for the warm-up
        tasks = [task.model_copy(update=settings) for task in (COLOUR, SAID)]
        return lsm_probe.evaluate(tiny_llm, samples, tasks=tasks, max_new_tokens=60)

    return make


def scores(result):
    return {task: {name: metric.value for name, metric in found.items()} for task, found in result.metrics().items()}


def test_answers_are_read_after_the_thinking(evaluated):
    result = evaluated()
    assert scores(result) == {
        "colour": {"accuracy": 50.0, "following_rate": 75.0},
        "said": {"word_error_rate": 50.0},  # unfinished thinking is not an answer, even if it contains the right words
    }
    rows = {row["id"]: row for row in result.samples}
    assert rows["colour/right"]["response"] == THINKING + "{'brown'}"  # stays as it was
    assert rows["colour/right"]["answer"] == "{'brown'}"
    assert rows["said/unfinished"]["answer"] is None
    assert "answer" not in rows["colour/plain"]


def test_finished_and_unfinished_thinking_is_counted(evaluated):
    result = evaluated()
    stored = metrics_summary([result])["checkpoints"][result.name]["tasks"]
    counts = {task: (found["thinking"]["responses"], found["thinking"]["unfinished"]) for task, found in stored.items()}
    assert counts == {"colour": (3, 1), "said": (2, 1)}


def test_the_whole_response_is_read_if_the_task_says_so(evaluated):
    found = scores(evaluated(read="all"))
    assert found["colour"] == {"accuracy": 25.0, "following_rate": 25.0}
    assert found["said"]["word_error_rate"] > 100


def test_predictions_can_be_rescored_with_thinking_without_a_model(evaluated, tmp_path, lsm_probe_command):
    result = evaluated()
    result.save(tmp_path / "predictions")
    again = EvaluationResult.load(tmp_path / "predictions")
    assert scores(again) == scores(result)
    assert scores(again.rescored([], "all")) == scores(evaluated(read="all"))
    code, _, error = lsm_probe_command("score", tmp_path / "predictions", "--read", "all", "--out", tmp_path / "all")
    assert code == 0, error
    assert "5 of 6 responses begin with thinking" in error
    assert error.rstrip().endswith("scores use whole responses, thinking included")
    assert "2 stop before the thinking ends" in error
    stored = json.loads((tmp_path / "all" / "result.json").read_text())
    assert stored["conventions"]["tasks"]["colour"]["read"] == "all"
    code, _, error = lsm_probe_command("score", tmp_path / "predictions", "--read", "some", "--out", tmp_path / "some")
    assert code == 2
    assert "'--read': 'some' is not one of 'after_thinking', 'all'" in error


def test_an_evaluation_without_thinking_does_not_mention_it(tiny_llm):
    sample = Sample(id="said/0", task="said", instruction="Say it.", text="fox", target="fox")
    result = lsm_probe.evaluate(tiny_llm, [sample], tasks=[SAID], max_new_tokens=3)
    content = json.dumps([result.to_dict(), result.samples])
    assert not any(word in content for word in ("thinking", "answer", "read"))


def test_thinking_in_targets_is_not_split_off(tiny_llm):
    """Under a template with an opening mark, a target without EOS would look like unfinished thinking."""
    template = tiny_llm.tokenizer.chat_template
    tiny_llm.tokenizer.chat_template = template.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    targets = ["the old town", "<think>rain</think>the old town"]
    samples = [
        Sample(id=f"s{i}", instruction="Continue.", text="fox", target=target) for i, target in enumerate(targets)
    ]
    result = lsm_probe.text_ability(tiny_llm, samples)
    assert "thinking" not in result.to_dict()
    assert [row["response"] for row in result.samples] == targets
