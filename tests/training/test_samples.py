"""Which samples a stage gets, and controls in which no sample keeps its own speech or instruction."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.training.samples import read_samples, with_instructions_shuffled, with_speech_shuffled

ALL: dict[str, Any] = {"tasks": None, "limit": None, "on_error": "fail"}


@pytest.fixture
def manifest(tmp_path: Path, waveform: Callable[..., np.ndarray]) -> Callable[..., Path]:
    """`manifest(name, *changes)`: a manifest with a row for each of `changes`; values that are None are removed."""
    soundfile.write(tmp_path / "good.wav", waveform(0.3), 16_000)
    (tmp_path / "damaged.wav").write_bytes(b"not audio at all")

    def write(name: str, *changes: dict[str, Any]) -> Path:
        row = {"instruction": "Say it.", "audio": "good.wav", "target": "green"}
        rows = [{"id": f"{name}{i}"} | row | change for i, change in enumerate(changes)]
        rows = [{key: value for key, value in row.items() if value is not None} for row in rows]
        (path := tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


def ids(samples: list[Sample]) -> list[str]:
    return [sample.id for sample in samples]


def test_all_manifests_are_read_in_order(manifest: Callable[..., Path]) -> None:
    paths = [manifest("b", {}, {"id": "twice"}), manifest("a", {"id": "twice"}, {})]
    assert ids(read_samples(paths, **ALL)) == ["b0", "twice", "twice", "a1"]


def test_tasks_are_selected_before_the_limit_applies(manifest: Callable[..., Path]) -> None:
    tasks = [{"task": task} for task in ("x", "y", "x", "z", "y", "x")]
    paths = [manifest("m", *tasks), manifest("n", *tasks[::-1])]
    assert ids(read_samples(paths, tasks=["x"], limit=2, on_error="fail")) == ["m0", "m2", "n0", "n3"]
    assert ids(read_samples(paths[:1], tasks=["z", "y"], limit=None, on_error="fail")) == ["m1", "m3", "m4"]
    with pytest.raises(InputError, match=r"no usable sample of task v or w$"):
        read_samples(paths, tasks=["v", "w"], limit=None, on_error="fail")


UNUSABLE: dict[str, tuple[dict[str, Any], str]] = {
    "no audio": ({"audio": None, "text": "green"}, "has no audio"),
    "no target": ({"target": None}, "has no target"),
    "blank target": ({"target": "  "}, "has no target"),
    "context": ({"context": "A passage."}, "has a context, which no prompt template takes"),
    "damaged audio": ({"audio": "damaged.wav"}, "damaged.wav: cannot be decoded"),
    "missing audio": ({"audio": "nowhere.wav"}, "nowhere.wav does not exist"),
    "section outside": ({"start": 4.0}, "start is 4.0 s, outside"),
}


@pytest.mark.parametrize("kind", UNUSABLE)
def test_unusable_samples_fail_or_are_left_out_and_counted(kind: str, manifest: Callable[..., Path]) -> None:
    change, message = UNUSABLE[kind]
    path = manifest("m", {}, change, {})
    with pytest.raises(InputError) as caught:
        read_samples([path], **ALL)
    assert message in str(caught.value)
    assert f"{path}, line 2: " in str(caught.value)
    with pytest.warns(UserWarning, match="^left out 1: "):
        assert ids(read_samples([path], tasks=None, limit=None, on_error="skip")) == ["m0", "m2"]
    with pytest.warns(UserWarning, match="left out"), pytest.raises(InputError, match="no usable sample"):
        read_samples([manifest("only", change)], tasks=None, limit=None, on_error="skip")


def random_samples(rng: random.Random) -> list[Sample]:
    """A random set of few utterances, tasks and wordings; sometimes one group is the majority."""
    count = rng.randint(2, 30)
    heavy = rng.choice([1, 1, 10])  # the weight of the first of each

    def draw(kinds: int) -> int:
        return rng.choices(range(kinds), [heavy, *[1] * (kinds - 1)])[0]

    wordings, speeches = rng.randint(1, 4), rng.randint(1, 12)
    samples = []
    for i in range(count):
        task, speech = draw(4), draw(speeches)
        wording = rng.choice([f"Do {task}, {draw(wordings)}.", f"Do {draw(wordings)}."])
        about = {"instruction": wording, "audio": Path(f"{speech}.wav"), "text": f"words {speech}"}
        samples.append(Sample(id=f"s{i}", target=f"target {i}", task=f"t{task}", **about))
    return samples


SPEECH, INSTRUCTION = {"audio", "text", "start", "duration"}, {"instruction"}


@pytest.mark.parametrize("control", ["speech", "instruction"])
def test_shuffling_leaves_no_sample_with_its_own_speech_or_instruction(control: str) -> None:
    shuffle = {"speech": with_speech_shuffled, "instruction": with_instructions_shuffled}[control]
    changed = SPEECH if control == "speech" else INSTRUCTION
    impossible = 0
    for seed in range(300):
        samples = random_samples(random.Random(seed))
        shuffled = shuffle(samples, seed)
        own = [sample.utterance if control == "speech" else sample.instruction for sample in samples]
        assert (shuffled is None) == (len(set(own)) == 1)
        if shuffled is None:
            impossible += 1
            continue
        found = [sample.utterance if control == "speech" else sample.instruction for sample in shuffled]
        assert all(a != b for a, b in zip(own, found, strict=True)), seed
        assert set(found) <= set(own)
        assert shuffle(samples, seed) == shuffled
        for before, after in zip(samples, shuffled, strict=True):
            assert before.model_dump(exclude=changed) == after.model_dump(exclude=changed)
    assert 0 < impossible < 150


def speech_samples(sizes: list[int]) -> list[Sample]:
    return [
        Sample(id=f"{g}-{i}", instruction="x", target="y", audio=Path(f"{g}.wav"))
        for g, size in enumerate(sizes)
        for i in range(size)
    ]


@pytest.mark.parametrize("sizes", [[1] * 9, [4, 4], [5, 3, 2], [3, 1, 1, 1], [8, 1], [7, 2, 1]])
def test_speech_of_each_sample_is_reused_about_once(sizes: list[int]) -> None:
    samples = speech_samples(sizes)
    shuffled = with_speech_shuffled(samples, 3)
    assert shuffled is not None
    uses = Counter(str(sample.audio) for sample in shuffled)
    largest = max(sizes)
    if 2 * largest <= len(samples):
        assert uses == Counter(str(sample.audio) for sample in samples)
    else:
        rest = len(samples) - largest
        assert uses["0.wav"] == rest
        for group, size in enumerate(sizes[1:], start=1):
            assert abs(uses[f"{group}.wav"] - size * largest / rest) <= size


def test_the_shuffle_depends_on_the_seed() -> None:
    samples = speech_samples([1] * 20)
    drawn = [with_speech_shuffled(samples, seed) for seed in range(5)]
    assert all(a != b for i, a in enumerate(drawn) for b in drawn[:i])


def test_a_shuffled_instruction_comes_from_another_task() -> None:
    """Another wording of the same task would not do: a model that follows instructions would answer the same."""
    samples = [
        Sample(id=f"s{i}", instruction=f"Wording {i % 3} of {i % 2}.", text="x", target="y", task=str(i % 2))
        for i in range(12)
    ]
    shuffled = with_instructions_shuffled(samples, 0)
    assert shuffled is not None
    assert all(after.instruction.endswith(f"of {1 - int(after.task)}.") for after in shuffled)


def test_with_one_task_the_instruction_gets_another_wording() -> None:
    samples = [Sample(id=f"s{i}", instruction=f"Wording {i % 3}.", text="x", target="y", task="t") for i in range(7)]
    shuffled = with_instructions_shuffled(samples, 0)
    assert shuffled is not None
    assert all(a.instruction != b.instruction for a, b in zip(samples, shuffled, strict=True))


def test_tasks_with_one_wording_have_no_instruction_control() -> None:
    """A gain of 0 would wrongly suggest that the model ignores its instructions."""
    samples = [Sample(id=f"s{i}", instruction="Answer.", text="x", target="y", task=str(i % 2)) for i in range(4)]
    assert with_instructions_shuffled(samples, 0) is None


def test_one_utterance_has_no_speech_control() -> None:
    assert with_speech_shuffled(speech_samples([5]), 0) is None


def test_a_file_damaged_later_is_checked_again(manifest: Callable[..., Path], tmp_path: Path) -> None:
    path = manifest("m", {})
    read_samples([path], **ALL)
    (tmp_path / "good.wav").write_bytes(b"not audio at all")
    with pytest.raises(InputError, match="cannot be decoded"):
        read_samples([path], **ALL)
