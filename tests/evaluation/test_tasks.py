"""Task files: built-in and user files, where their samples are found, and one line for each error."""

import json
import os

import pytest

from lsm_probe.data.commands import all_commands
from lsm_probe.data.corpora.labels import labels_of
from lsm_probe.data.manifest import read_manifest
from lsm_probe.errors import InputError
from lsm_probe.evaluation.task import builtin_tasks, read_task, read_tasks

MOOD = "answer: label\nlabels: [glad, sad]\nmetrics: [accuracy]\n"


@pytest.fixture
def task_file(write, tmp_path):
    """`task_file(text, name="mood")`: a task's file."""
    return lambda text, name="mood": str(write(tmp_path / "tasks" / f"{name}.yaml", text))


@pytest.fixture
def manifest(write, tmp_path):
    """`manifest(path, **values)`: two samples with additional values."""

    def make(path, **values):
        rows = [{"id": i, "instruction": "How is it?", "text": "Oh!", "target": "glad"} | values for i in ("s1", "s2")]
        return write(tmp_path / path, *map(json.dumps, rows))

    return make


def refusal(*names, **where):
    with pytest.raises(InputError) as info:
        read_tasks(names, **where)
    assert len(str(info.value).splitlines()) == 1
    return str(info.value)


@pytest.mark.parametrize("name", builtin_tasks())
def test_a_built_in_task_has_a_title_and_a_manifest(name):
    task = read_task(name)
    assert task.name == name != task.title
    assert task.manifest.suffix == ".jsonl"
    assert not task.manifest.is_absolute()
    assert len(task.manifest.parts) == 2  # a folder for each corpus


@pytest.mark.parametrize("name", ["intent", "keywords", "device", "place", "capitals"])
def test_every_answer_of_the_commands_can_be_parsed(name):
    task = read_task(f"commands-{name}")
    answers = [task.parser()(answer) for answer in {command.answers()[name] for command in all_commands()}]
    assert all(answer.follows for answer in answers)
    values = {answer.value for answer in answers}
    if task.answer == "label":
        assert values == set(task.labels)
    elif task.answer == "keywords":
        assert frozenset().union(*values) == set(task.labels)


def test_a_task_file_defines_a_task_named_after_it(task_file):
    task = read_task(task_file(MOOD))
    assert (task.name, task.title, task.labels, task.metrics) == ("mood", "mood", ("glad", "sad"), ("accuracy",))
    assert read_task(task_file(MOOD + "title: The mood\n")).title == "The mood"
    assert task.has_form
    assert not read_task(task_file("metrics: [word_error_rate]")).has_form


def test_labels_come_from_a_built_in_pool_or_a_file(task_file, write, tmp_path):
    mood = "answer: label\nmetrics: [accuracy]\nlabels: "
    assert read_task(task_file(mood + "evaluation/intent")).labels == labels_of("intent")
    pool = write(
        tmp_path / "pool.yaml", "tasks: [{task: mood, labels: [glad, sad], instructions: ['One of {labels}?']}]"
    )
    assert read_task(task_file(f"{mood}{pool}/mood")).labels == ("glad", "sad")


def test_the_manifest_is_the_tasks_own_or_the_one_given(task_file, manifest, tmp_path, monkeypatch):
    file = task_file(MOOD + "manifest: own/test.jsonl")
    manifest("tasks/own/test.jsonl", text="beside the file")
    manifest("manifests/own/test.jsonl", text="below the folder")
    manifest("manifests/boolq/dev.boolq.jsonl", text="of the package", target="true")
    given = manifest("given.jsonl", text="given")

    def text(name, **where):
        return {sample.text for sample in read_tasks([name], **where)[1]}

    assert text(file) == {"beside the file"}
    assert text(file, data=tmp_path / "manifests") == {"below the folder"}
    assert text(f"{file}={given}", data=tmp_path / "manifests") == {"given"}
    assert text("boolq", data=tmp_path / "manifests") == {"of the package"}
    assert text(f"boolq={given}") == {"given"}
    monkeypatch.chdir(tmp_path / "manifests")
    assert text("boolq") == {"of the package"}


def test_a_tasks_own_instruction_replaces_the_manifests(task_file, manifest):
    path = manifest("m.jsonl")
    as_it_is, own = task_file(MOOD, "as-it-is"), task_file(MOOD + "instruction: 'Choose one: {labels}.'", "own")
    _, samples = read_tasks([f"{as_it_is}={path}", f"{own}={path}"], limit=1)
    assert [sample.instruction for sample in samples] == ["How is it?", "Choose one: 'glad', 'sad'."]


def test_a_context_goes_into_the_instruction(task_file, manifest):
    path, own = manifest("m.jsonl", context="It rains."), task_file(MOOD + "instruction: Choose.", "own")
    _, samples = read_tasks([f"{task_file(MOOD)}={path}", f"{own}={path}"], limit=1)
    assert [s.instruction for s in samples] == ["How is it?\nCONTEXT: It rains.", "Choose.\nCONTEXT: It rains."]
    assert [s.context for s in samples] == [None, None]


def test_two_tasks_over_one_manifest_keep_their_samples_apart(task_file, manifest):
    path = manifest("m.jsonl", task="asked")
    one, two = (f"{task_file(MOOD, name)}={path}" for name in ("one", "two"))
    tasks, samples = read_tasks([one, two])
    assert [task.name for task in tasks] == ["one", "two"]
    assert [(s.id, s.task) for s in samples] == [
        ("one/s1", "one"),
        ("one/s2", "one"),
        ("two/s1", "two"),
        ("two/s2", "two"),
    ]
    left = {sample.id.partition("/")[2]: sample.model_dump(exclude={"id", "task"}) for sample in samples}
    assert left == {s.id: s.model_dump(exclude={"id", "task"}) for s in read_manifest(path)}


def test_the_limit_applies_to_each_task(task_file, manifest):
    path = manifest("m.jsonl")
    names = [f"{task_file(MOOD, name)}={path}" for name in ("one", "two")]
    assert [sample.id for sample in read_tasks(names, limit=1)[1]] == ["one/s1", "two/s1"]


def test_unusable_manifest_lines_fail_or_are_left_out(task_file, manifest):
    path = manifest("m.jsonl")
    path.write_text("{oops\n" + path.read_text())
    name = f"{task_file(MOOD)}={path}"
    assert refusal(name).startswith(f"task mood: {path}, line 1: is not JSON")
    with pytest.warns(UserWarning, match="line 1"):
        assert len(read_tasks([name], on_error="skip")[1]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("meldd", "task 'meldd' does not exist; did you mean meld?"),
        ("librispeech", "did you mean librispeech-other?"),
        ("xyz", f"task 'xyz' does not exist; there are: {', '.join(builtin_tasks())}; or give a YAML file"),
        ("a\nb", "does not exist"),
        ("gone/mood.yaml", "task file gone/mood.yaml does not exist; check the path"),
        ("boolq=gone.jsonl", "task boolq: manifest gone.jsonl does not exist; check the path"),
        ("boolq", "task boolq: manifest boolq/dev.boolq.jsonl does not exist; check the path"),
    ],
)
def test_an_unknown_task_is_named(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refusal(name)


FAULTS = {
    "": "is not a table of settings",
    "- metrics": "is not a table of settings",
    "metrics: [": "cannot be read as YAML",
    "metrics: \0": "cannot be read as YAML",
    "metric: [accuracy]\nmetrics: [accuracy]": "'metric' is not a setting; look at its spelling",
    "1: 2\nmetrics: [accuracy]": "'1' is 1; keys should be strings",
    "title: x": "'metrics' is missing; add it",
    "metrics: []": "'metrics' is []",
    "metrics: [acuracy]": "'metrics.0' is 'acuracy'; input should be 'word_error_rate', ",
    "answer: labl\nmetrics: [accuracy]": "'answer' is 'labl'; input should be 'text', ",
    "answer: label\nmetrics: [accuracy]": "answer 'label' needs 'labels'; add it",
    "answer: keywords\nnumber: 2\nmetrics: [accuracy]": "answer 'keywords' needs 'labels'; add it",
    "answer: keywords\nlabels: [a]\nmetrics: [accuracy]": "answer 'keywords' needs 'number'; add it",
    "answer: keywords\nlabels: [a]\nnumber: 0\nmetrics: [accuracy]": "'number' is 0",
    "answer: translation\nmetrics: [accuracy]": "answer 'translation' needs 'language'; add it",
    "metrics: [bleu]": "metric 'bleu' needs 'language'; add it",
    "metrics: [f1_micro]": "metric 'f1_micro' needs answer 'label', not 'text'",
    "answer: keywords\nlabels: [a]\nnumber: 1\nmetrics: [f1_macro]": "metric 'f1_macro' needs answer 'label'",
    "answer: label\nlabels: [a, A]\nmetrics: [accuracy]": "labels ['a', 'A'] are empty, blank or repeated",
    "answer: label\nlabels: [a, ' ']\nmetrics: [accuracy]": "'labels.1' is empty or blank",
    "answer: label\nlabels: [true, false]\nmetrics: [accuracy]": "'labels.0' is True",  # as YAML reads them
    "answer: label\nlabels: mood\nmetrics: [accuracy]": "'labels' are 'mood'; write them as a list, or as pool/task",
    "answer: label\nlabels: gone/mood\nmetrics: [accuracy]": "'labels' are 'gone/mood': gone does not exist",
    "answer: label\nlabels: evaluation/mood\nmetrics: [accuracy]": "task 'mood' is not in the instruction pool",
    "answer: label\nlabels: evaluation/boolq\nmetrics: [accuracy]": "answer 'label' needs 'labels'; add it",
    "instruction: 'One of {labels}'\nmetrics: [accuracy]": "the instruction says {labels} and there are none",
    "metrics: [accuracy]": "task mood names no manifest; give it as mood=MANIFEST",
}


@pytest.mark.parametrize("text", FAULTS)
def test_an_invalid_task_file_is_refused_in_one_line(text, task_file):
    file = task_file(text)
    message = refusal(file)
    assert FAULTS[text] in message
    assert message.startswith(f"task file {file}") or "names no manifest" in message


def test_a_task_given_twice_is_refused(task_file, manifest):
    path = manifest("m.jsonl")
    for again in (f"boolq={path}", f"{task_file(MOOD, 'boolq')}={path}"):
        assert "task boolq is given twice; give the second a file, and so a name, of its own" in refusal(
            f"boolq={path}", again
        )


def test_a_pipe_is_refused_as_a_task_file(tmp_path):
    os.mkfifo(tmp_path / "mood.yaml")
    assert "is a pipe, socket or device" in refusal(str(tmp_path / "mood.yaml"))


def test_a_path_may_contain_an_equals_sign(tmp_path):
    folder = tmp_path / "lr=1e-4"
    folder.mkdir()
    (folder / "mood.yaml").write_text("manifest: mood.jsonl\nmetrics: [answer_contained]\n")
    row = {"id": "a", "instruction": "i", "text": "t", "target": "t"}
    for name in ("mood.jsonl", "other=1.jsonl"):
        (folder / name).write_text(json.dumps(row | {"id": name}) + "\n")
    assert read_tasks([str(folder / "mood.yaml")])[1][0].id == "mood/mood.jsonl"
    assert read_tasks([f"{folder}/mood.yaml={folder}/other=1.jsonl"])[1][0].id == "mood/other=1.jsonl"
