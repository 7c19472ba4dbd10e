"""From utterances to manifests: instruction and answer for each task, and either all files or none."""

import pytest
import soundfile

from lsm_probe.data.build import build_manifests
from lsm_probe.data.manifest import read_manifest
from lsm_probe.data.pools import read_pool
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError


@pytest.fixture
def clip(tmp_path, waveform):
    path = tmp_path / "corpus" / "a.wav"
    path.parent.mkdir()
    soundfile.write(path, waveform(2.0), 16_000)
    return path


def build(utterances, out, *tasks, problems=None, **kwargs):
    pool = read_pool("evaluation")
    return build_manifests(utterances, out, tasks, pool, problems=problems or Problems(), **kwargs)


def test_a_file_for_each_split_and_task(tmp_path, clip):
    utterances = [
        Utterance("a", "train", "Gut.", clip, language="de", answers={"emotion": "{'joy'}"}),
        Utterance("b", "test", "Turn it on.", clip, start=0.5, duration=1.0, answers={"emotion": "{'fear'}"}),
    ]
    counts = build(utterances, tmp_path / "out", "emotion", "transcription")
    names = {"train.emotion.jsonl", "train.transcription.jsonl", "test.emotion.jsonl", "test.transcription.jsonl"}
    assert counts == dict.fromkeys(names, 1)
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    (sample,) = read_manifest(tmp_path / "out" / "test.emotion.jsonl")
    assert (sample.id, sample.text, sample.target, sample.task) == ("b", "Turn it on.", "{'fear'}", "emotion")
    assert (sample.start, sample.duration, sample.language, sample.audio) == (0.5, 1.0, "en", clip)
    assert "'surprise'" in sample.instruction
    (sample,) = read_manifest(tmp_path / "out" / "train.transcription.jsonl")
    assert (sample.target, sample.language) == ("Gut.", "de")


def test_translation_names_its_language(tmp_path, clip):
    utterance = Utterance(
        "a",
        "s",
        "Good.",
        clip,
        target_language="Japanese",
        answers={"translation": "良い。"},
        alternatives={"translation": ("いい。",), "transcription": ("Fine.",)},
    )
    build([utterance], tmp_path / "out", "translation")
    (sample,) = read_manifest(tmp_path / "out" / "s.translation.jsonl")
    assert "into Japanese" in sample.instruction
    assert (sample.target, sample.alternatives) == ("良い。", ("いい。",))


def bad(clip, tmp_path):
    cut = tmp_path / "cut.wav"
    cut.write_bytes(clip.read_bytes()[:1_000])
    return {
        "a clip that is not there": (Utterance("x", "s", "t", tmp_path / "no.wav"), "does not exist"),
        "a clip cut short": (Utterance("x", "s", "t", cut), "is truncated"),
        "a section outside": (Utterance("x", "s", "t", clip, start=3.0), "outside the file's 2.000 s"),
        "no transcript": (Utterance("x", "s", None, clip), "its transcript is missing or empty"),
        "a blank transcript": (Utterance("x", "s", " \t", clip), "its transcript is missing or empty"),
        "an id that is taken": (Utterance("good", "s", "t", clip), "has the same id"),
        "a blank id": (Utterance(" ", "s", "t", clip), "is empty or blank"),
    }


WRONG = [
    *("a clip that is not there", "a clip cut short", "a section outside", "no transcript", "a blank transcript"),
    *("an id that is taken", "a blank id"),
]


@pytest.mark.parametrize("what", WRONG)
def test_unusable_utterances_fail_or_are_skipped_and_counted(tmp_path, clip, what):
    wrong, message = bad(clip, tmp_path)[what]
    utterances = [Utterance("good", "s", "Good.", clip), wrong, Utterance("better", "s", "Better.", clip)]
    out = tmp_path / "out"
    with pytest.raises(InputError, match=message):
        build(utterances, out, "transcription")
    assert not out.exists() or not list(out.iterdir())
    problems = Problems()
    with pytest.warns(UserWarning, match="left out 1"):
        counts = build(utterances, out, "transcription", problems=problems, on_error="skip")
    assert counts == {"s.transcription.jsonl": 2}
    assert [sample.id for sample in read_manifest(out / "s.transcription.jsonl")] == ["good", "better"]
    assert len(problems.found) == 1


def test_problems_of_the_reader_stop_the_build(tmp_path, clip):
    problems = Problems(["table, line 7: has no text"])
    with pytest.raises(InputError, match="table, line 7"):
        build([Utterance("a", "s", "t", clip)], tmp_path / "out", "transcription", problems=problems)


def test_an_empty_corpus_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing was found"):
        build([], tmp_path / "out", "transcription")


def test_an_earlier_manifest_survives_a_failed_run(tmp_path, clip):
    good = Utterance("a", "s", "Good.", clip)
    build([good], tmp_path / "out", "transcription")
    before = (tmp_path / "out" / "s.transcription.jsonl").read_bytes()
    with pytest.raises(InputError):
        build([good, Utterance("b", "s", "", clip)], tmp_path / "out", "transcription")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s.transcription.jsonl"]
    assert (tmp_path / "out" / "s.transcription.jsonl").read_bytes() == before


def test_clips_below_the_manifest_have_relative_paths(tmp_path, clip):
    build([Utterance("a", "s", "Good.", clip)], clip.parent, "transcription")
    assert '"audio": "./a.wav"' in (clip.parent / "s.transcription.jsonl").read_text()
