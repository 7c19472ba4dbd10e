"""Instruction pools: built-in ones, files, and the random assignment."""

from collections import Counter
from pathlib import Path

import pytest

from lsm_probe.data.pools import builtin_pools, read_pool
from lsm_probe.errors import InputError

GENERATION = ("generation", "transcription")


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        read_pool(write(path, text))
    message = str(caught.value)
    assert str(path) in message
    return message


def test_every_built_in_pool_can_be_read_and_names_its_source() -> None:
    assert {"probing", "evaluation", "generation", "transcription", "continuation"} <= set(builtin_pools())
    for name in builtin_pools():
        wordings = [instruction for task in read_pool(name).tasks for instruction in task.instructions]
        assert len(set(wordings)) == len(wordings)


def test_the_training_mix_has_the_tasks_and_numbers_of_the_paper() -> None:
    tasks = {task.task: task for task in read_pool(*GENERATION).tasks}
    six = {"repetition", "translation", "keywords", "intent", "sentiment", "continuation"}
    assert set(tasks) == six | {"transcription"}
    assert all(len(task.instructions) == 5 for task in tasks.values())
    assert tasks["translation"].languages == ["German", "Chinese", "French", "Spanish"]
    assert {name for name, task in tasks.items() if task.answer == "transcript"} == {"transcription"}
    # The LLM gets a transcript, and the instructions are used unchanged in training.
    assert all("text" in i and "speech" not in i for name in six for i in tasks[name].instructions)
    assert all("50" in instruction for instruction in tasks["continuation"].instructions)


def test_the_evaluation_pool_has_the_labels_of_the_paper() -> None:
    tasks = {task.task: task for task in read_pool("evaluation").tasks}
    assert (len(tasks["emotion"].labels), len(tasks["intent"].labels)) == (7, 19)
    assert tasks["keywords-lights"].labels == tasks["keywords-washing"].labels
    assert len(tasks["keywords-lights"].labels) == 8
    drawn = read_pool("evaluation").only(["emotion"]).assign(0, "a").instruction
    assert "'neutral', 'joy', 'sadness', 'anger', 'surprise', 'fear', 'disgust'" in drawn
    assert "{'label'}" in drawn


def test_tasks_wordings_and_languages_are_drawn_uniformly() -> None:
    pool = read_pool(*GENERATION)
    assigned = [pool.assign(0, f"sample-{i}") for i in range(14_000)]
    per_task = Counter(a.task for a in assigned)
    # Binomial with n = 14,000 and p = 1/7: standard deviation 41.
    assert len(per_task) == 7
    assert all(abs(count - 2_000) < 5 * 41 for count in per_task.values())
    translated = Counter((d.language, d.instruction) for d in assigned if d.task == "translation")
    assert len(translated) == 20
    assert min(translated.values()) > 50
    assert all(d.language in d.instruction for d in assigned if d.language)
    assert all(d.language is None for d in assigned if d.task != "translation")
    assert all("{" not in d.instruction for d in assigned)


def test_a_draw_depends_on_seed_and_id_only() -> None:
    pool = read_pool(*GENERATION)
    ids = [f"{i}" for i in range(200)]
    first = {i: pool.assign(3, i) for i in ids}
    assert {i: pool.assign(3, i) for i in reversed(ids)} == first
    assert {i: pool.assign(4, i) for i in ids} != first
    # Fixed values: data of an earlier release must be reproducible.
    assert [pool.assign(0, i).instruction_id for i in ("a", "b", "c")] == PINNED


PINNED = ["translation/Spanish/0", "translation/Chinese/3", "continuation/4"]


def test_one_task_can_be_selected() -> None:
    pool = read_pool(*GENERATION).only(["continuation"])
    assert {pool.assign(0, f"{i}").task for i in range(50)} == {"continuation"}
    with pytest.raises(InputError, match="'juggling' is not in the instruction pool; it has: repetition"):
        read_pool("generation").only(["juggling"])


def test_a_language_can_be_given() -> None:
    pool = read_pool("evaluation").only(["translation"])
    assignment = pool.assign(0, "a", language="Turkish")
    assert (assignment.language, "into Turkish" in assignment.instruction) == ("Turkish", True)


def test_pools_can_be_joined_and_extended(tmp_path: Path) -> None:
    mine = write(
        tmp_path / "mine.yaml",
        "tasks:\n- {task: sentiment, instructions: ['How does it feel?']}\n- {task: rhyme, instructions: [Rhyme.]}",
    )
    tasks = {task.task: task.instructions for task in read_pool("generation", mine).tasks}
    assert len(tasks["sentiment"]) == 6
    assert tasks["rhyme"] == ["Rhyme."]


def test_pools_with_conflicting_tasks_are_refused(tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.yaml", "tasks: [{task: sentiment, answer: transcript, instructions: [x]}]")
    with pytest.raises(InputError, match="'sentiment' has other languages, labels or answer"):
        read_pool("generation", mine)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no tasks"),
        ("tasks: []", "holds no tasks"),
        ("- just\n- a list", "holds no tasks"),
        ("tasks: [{task: a}]", "task 'a' has no instructions"),
        ("tasks: [{task: a, instructions: []}]", "task 'a' has no instructions"),
        ("tasks: [{task: a, instructions: }]", "task 'a' has no instructions"),
        ("tasks: [{task: a, instructions: ['  ']}]", "task 'a', instructions, 0: is empty or blank"),
        ("tasks: [{instructions: [x]}]", "task number 1, task: Field required"),
        ("tasks: [{task: a, instructions: [x], extra: 1}]", "task 'a', extra: Extra inputs"),
        ("tasks: [{task: a, instructions: ['in {language}']}]", "{language} and the list 'languages' go together"),
        ("tasks: [{task: a, instructions: [x], labels: [y]}]", "{labels} and the list 'labels' go together"),
        ("tasks: [{task: a, instructions: [x]}, {task: a, instructions: [y]}]", "task 'a' occurs twice"),
        ("tasks: [nonsense]", "task number 1"),
        ("tasks: {a: [", "cannot be read as YAML"),
        ("tasks: !!python/object/apply:os.system [touch x]", "cannot be read as YAML"),
        ("\x00", "cannot be read as YAML"),
        ("[" * 5_000, "cannot be read as YAML"),
    ],
)
def test_an_invalid_pool_file_is_refused_in_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path / "pool.yaml", text)


def test_a_missing_file_names_the_built_in_pools(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not exist.*built in are: .*generation"):
        read_pool(tmp_path / "nowhere.yaml")
    with pytest.raises(InputError, match="is a directory"):
        read_pool(tmp_path)
