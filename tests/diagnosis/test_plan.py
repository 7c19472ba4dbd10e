"""Which measurements the samples allow, and which samples each takes."""

import pytest

from lsm_probe.data.pools import read_pool
from lsm_probe.data.sample import Sample
from lsm_probe.data.spread import one_sample_an_utterance
from lsm_probe.diagnosis.plan import make_plan


def spoken(utterances, tasks=("translate", "repeat"), text=True):
    """Samples of so many utterances, each under the instruction of every task."""
    return [
        Sample(
            id=f"{i}/{task}",
            instruction=f"Please {task}.",
            task=task,
            audio=f"{i}.wav",
            text=f"number {i}" if text else None,
        )
        for i in range(utterances)
        for task in tasks
    ]


def counts(plan):
    return {part.name: len(part.samples) for part in plan.parts}


def test_each_utterance_gives_one_sample_and_tasks_take_turns():
    chosen = one_sample_an_utterance(spoken(5), 4)
    assert [sample.id for sample in chosen] == ["0/translate", "1/repeat", "2/translate", "3/repeat"]


def test_slow_measurements_take_fewer_utterances_and_never_fewer_than_six():
    full = {"attention": 48, "sensitivity": 48, "base-words": 12, "knockout": 8, "alignment": 48, "transcription": 48}
    assert counts(make_plan(spoken(60), with_base=True)) == full
    assert counts(make_plan(spoken(12), with_base=True)) == dict.fromkeys(full, 12) | dict.fromkeys(
        ["base-words", "knockout"], 6
    )
    assert counts(make_plan(spoken(60), with_base=True, utterances=8))["attention"] == 8


def test_quick_leaves_out_slow_measurements():
    assert list(counts(make_plan(spoken(12), quick=True))) == ["attention", "sensitivity", "transcription"]
    assert make_plan(spoken(12), quick=True).left_out == {}


@pytest.mark.parametrize(
    ("samples", "with_base", "left_out"),
    [
        (spoken(8), False, {"base-words": "it needs a base LLM (--base)"}),
        (
            spoken(1),
            True,
            {
                "sensitivity": "it needs at least two different utterances, and the data has one",
                "base-words": "it needs at least two different utterances, and the data has one",
                "alignment": "it needs transcripts (`text`) of 5 utterances, got 1",
            },
        ),
        (
            spoken(8, text=False),
            True,
            {
                "alignment": "it needs transcripts (`text`) of 5 utterances, got 0",
                "transcription": "it needs transcripts (`text`)",
            },
        ),
    ],
)
def test_measurements_that_the_samples_do_not_allow_are_left_out_with_the_reason(samples, with_base, left_out):
    plan = make_plan(samples, with_base=with_base)
    assert plan.left_out == left_out
    assert not set(counts(plan)) & set(left_out)


def test_samples_of_one_task_are_scored_under_the_probing_instructions():
    plan = make_plan(spoken(8, tasks=("translate",)))
    pool = next(part for part in plan.parts if part.name == "sensitivity").options["instructions"]
    assert pool == read_pool("probing")
    own = next(part for part in make_plan(spoken(8)).parts if part.name == "sensitivity").options["instructions"]
    assert [task.task for task in own.tasks] == ["translate", "repeat"]


def test_a_text_llm_is_not_asked_to_transcribe_or_align():
    plan = make_plan(spoken(8), with_base=True)
    assert [part.name for part in plan.for_source("text")] == ["attention", "sensitivity", "knockout"]
    assert [part.name for part in plan.for_base()] == ["attention", "sensitivity"]


def test_the_transcription_part_asks_for_the_words_and_has_room_for_them():
    part = next(part for part in make_plan(spoken(8)).parts if part.name == "transcription")
    sample = part.samples[0]
    assert sample.id == "transcription/0/translate"
    assert (sample.target, sample.task) == ("number 0", "transcription")
    assert sample.instruction == read_pool("transcription").tasks[0].instructions[0]
    assert part.options["max_new_tokens"] == 8 + 3 * 2
