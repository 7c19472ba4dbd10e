"""Generated commands: distinct, balanced, split without overlap, with correct answers."""

import ast
import re
from collections import Counter

import pytest

from lsm_probe.data.build import build_manifests
from lsm_probe.data.commands import PLACES, TASKS, all_commands, command_utterances, intents
from lsm_probe.data.manifest import read_manifest
from lsm_probe.data.pools import read_pool
from lsm_probe.data.problems import Problems
from lsm_probe.errors import InputError

SPLITS = {"train", "validation", "test"}
# The verbs of each action, written independently of the templates.
VERBS = {
    "activate": {"turn on", "switch on"},
    "deactivate": {"turn off", "switch off"},
    "increase": {"turn up"},
    "decrease": {"turn down"},
    "open": {"open"},
    "close": {"close", "shut"},
}


def words(text):
    return re.sub("[^a-z ]", "", text.lower()).split()


def test_there_are_10400_distinct_commands():
    commands = all_commands()
    assert len(commands) == 10_400
    assert len({" ".join(words(command.text)) for command in commands}) == len(commands)
    assert {4 <= len(words(command.text)) <= 12 for command in commands} == {True}


def test_every_answer_matches_its_sentence():
    for utterance in command_utterances(10_400, 0):
        spoken, answers = words(utterance.text), utterance.answers
        sentence = " ".join(spoken)
        verb, device, place = ast.literal_eval(answers["keywords"])
        (intent,) = ast.literal_eval(answers["intent"])
        action, object_ = intent.split()
        assert verb in VERBS[action]
        assert all(part in spoken for part in verb.split())
        assert object_ == device == answers["device"]
        assert spoken.count(device) == 1
        assert place == answers["place"]
        assert [p for p in PLACES if f" {p} " in f" {sentence} "] == [place]
        assert answers["capitals"] == utterance.text.upper()
        # No particle or verb of another action occurs.
        others = {v for a in VERBS for v in VERBS[a] if a != action}
        assert not any(set(v.split()) <= set(spoken) for v in others), utterance.text


@pytest.mark.parametrize("count", [240, 1_000, 2_000, 10_400])
@pytest.mark.parametrize("seed", [0, 1, 7])
def test_splits_share_no_text_and_each_has_all_intents(count, seed):
    utterances = command_utterances(count, seed)
    assert len(utterances) == len({u.id for u in utterances}) == count
    assert len({" ".join(words(u.text)) for u in utterances}) == count
    sizes = Counter(u.split for u in utterances)
    assert sizes.keys() == SPLITS
    assert sizes["train"] == pytest.approx(0.8 * count, rel=0.05)
    assert sizes["test"] == pytest.approx(0.1 * count, rel=0.15)
    for split in SPLITS:
        own = [u.answers for u in utterances if u.split == split]
        assert {ast.literal_eval(a["intent"]).pop() for a in own} == set(intents())
        assert {a["place"] for a in own} == set(PLACES)


def test_intents_and_places_are_balanced():
    utterances = command_utterances(2_000, 0)
    for task in ("intent", "place"):
        counts = Counter(u.answers[task] for u in utterances).values()
        assert max(counts) - min(counts) <= 3


def test_the_draw_depends_on_the_seed_only():
    assert command_utterances(300, 3) == command_utterances(300, 3)
    assert command_utterances(300, 3) == command_utterances(500, 3)[:300]
    assert {u.text for u in command_utterances(300, 3)} != {u.text for u in command_utterances(300, 4)}


@pytest.mark.parametrize("count", [0, 239, 10_401])
def test_a_count_out_of_range_is_refused(count):
    with pytest.raises(InputError, match=r"--count .* 240, .* 10400"):
        command_utterances(count, 0)


def test_the_pool_has_every_task_and_label():
    pool = {task.task: task for task in read_pool("commands").tasks}
    assert tuple(pool) == TASKS
    assert sorted(pool["intent"].labels) == sorted(intents())
    assert all(3 <= len(task.instructions) <= 5 for task in pool.values())
    assert all("speech" in wording for task in pool.values() for wording in task.instructions)


def test_manifests_are_made_for_all_tasks(tmp_path):
    counts = build_manifests(command_utterances(240, 0), tmp_path, TASKS, read_pool("commands"), problems=Problems())
    assert counts.keys() == {f"{split}.{task}.jsonl" for split in SPLITS for task in TASKS}
    assert sum(counts.values()) == 240 * len(TASKS)
    for sample in read_manifest(tmp_path / "test.intent.jsonl"):
        assert sample.target.strip("{}") in sample.instruction
