"""Manifests written by lhotse, read without lhotse; and lhotse's recipes compared with our readers."""

import gzip
import json

import pytest

from lsm_probe.data.utterance import Utterance

lhotse = pytest.importorskip("lhotse")

from lhotse import CutSet, Recording, RecordingSet, SupervisionSegment, SupervisionSet  # noqa: E402
from lhotse.audio import AudioSource  # noqa: E402
from lhotse.recipes import prepare_librispeech, prepare_ljspeech  # noqa: E402
from lhotse.recipes.must_c import prepare_must_c  # noqa: E402


@pytest.fixture
def spoken(clip, tmp_path):
    """Two recordings with three supervisions."""
    recordings = [Recording.from_file(clip(tmp_path / "audio" / f"r{i}.wav", 2.0)) for i in range(2)]
    supervisions = [
        SupervisionSegment("s0", "r0", 0.25, 0.5, 0, "One.", "English"),
        SupervisionSegment("s1", "r0", 1.0, 1.0, 0, "Two.", "de"),
        SupervisionSegment("s2", "r1", 0.0, 2.0, 0, "Three."),
    ]
    return RecordingSet.from_recordings(recordings), SupervisionSet.from_segments(supervisions)


def expected(split, audio):
    return [
        Utterance("s0", split, "One.", audio=audio / "r0.wav", start=0.25, duration=0.5),
        Utterance("s1", split, "Two.", audio=audio / "r0.wav", start=1.0, duration=1.0, language="de"),
        Utterance("s2", split, "Three.", audio=audio / "r1.wav", start=0.0, duration=2.0, language=None),
    ]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz"])
def test_recordings_with_supervisions(read, spoken, tmp_path, ending):
    recordings, supervisions = spoken
    recordings.to_file(tmp_path / f"corpus_recordings_test-clean.{ending}")
    supervisions.to_file(tmp_path / f"corpus_supervisions_test-clean.{ending}")
    utterances, problems = read("lhotse", tmp_path)
    assert problems == []
    assert utterances == expected("corpus_test-clean", tmp_path / "audio")


def test_whole_and_trimmed_cuts_give_the_same_sections(read, spoken, tmp_path):
    cuts = CutSet.from_manifests(*spoken)
    cuts.to_file(tmp_path / "whole_cuts.jsonl.gz")
    cuts.trim_to_supervisions().to_file(tmp_path / "cuts_trimmed.jsonl.gz")
    utterances, problems = read("lhotse", tmp_path)
    assert problems == []
    assert utterances == expected("cuts_trimmed", tmp_path / "audio") + expected("whole_cuts", tmp_path / "audio")


def test_relative_files_start_at_the_current_folder_as_in_lhotse(read, clip, tmp_path, monkeypatch):
    clip(tmp_path / "here" / "a.wav")
    monkeypatch.chdir(tmp_path / "here")
    recording = Recording.from_file("a.wav")
    RecordingSet.from_recordings([recording]).to_file(tmp_path / "recordings.jsonl")
    SupervisionSet.from_segments([SupervisionSegment("a", "a", 0, 0.5, text="A.")]).to_file(
        tmp_path / "supervisions.jsonl"
    )
    utterances, problems = read("lhotse", tmp_path)
    assert problems == []
    assert utterances[0].split == "all"
    assert utterances[0].audio.resolve() == tmp_path / "here" / "a.wav"
    assert next(iter(RecordingSet.from_file(tmp_path / "recordings.jsonl"))).load_audio().shape == (1, 8_000)


def test_integer_ids_of_lhotses_slu_recipe_are_read(read, clip, write, tmp_path):
    source = {"type": "file", "channels": [0], "source": str(clip(tmp_path / "a.wav"))}
    write(tmp_path / "slu_recordings_test.jsonl", json.dumps({"id": "a", "sources": [source]}))
    write(
        tmp_path / "slu_supervisions_test.jsonl",
        json.dumps({"id": 0, "recording_id": "a", "start": 0, "duration": 0.5, "channel": 0, "text": "Turn on"}),
    )
    utterances, problems = read("lhotse", tmp_path)
    assert problems == []
    assert [(utterance.id, utterance.text) for utterance in utterances] == [("0", "Turn on")]


def refused(tmp_path, recording, channel=0):
    """Writes a recording with a supervision, as a pair of manifests and as a cut."""
    supervision = {"id": "s", "recording_id": "r", "start": 0, "duration": 0.5, "channel": channel, "text": "T."}
    cut = {"id": "c", "start": 0, "duration": 0.5, "channel": 0, "supervisions": [supervision], "type": "MonoCut"}
    for name, content in [
        ("recordings", recording),
        ("supervisions", supervision),
        ("cuts", cut | {"recording": recording}),
    ]:
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(json.dumps(content).encode() + b"\n"))


def source(**changes):
    return {"type": "file", "channels": [0], "source": "/a.wav"} | changes


@pytest.mark.parametrize(
    ("sources", "more", "message"),
    [
        ([source(type="url", source="https://a/b.wav")], {}, "its source is a URL, which is never fetched"),
        ([source(type="memory", source="UklGRg==")], {}, "its source is of type 'memory'"),
        ([source(channels=[0, 1])], {}, "has 2 channels"),
        ([source(), source(channels=[1])], {}, "has 2 sources"),
        ([], {}, "has 0 sources"),
        ([source()], {"transforms": [{"name": "Speed", "kwargs": {"factor": 1.1}}]}, "has transforms"),
        ([source(source=["a", "b"])], {}, "should be a valid string"),
    ],
)
def test_recordings_that_a_manifest_cannot_express_are_refused(read, tmp_path, sources, more, message):
    refused(tmp_path, {"id": "r", "sources": sources, "sampling_rate": 16_000, "duration": 0.5} | more)
    utterances, problems = read("lhotse", tmp_path)
    assert utterances == []
    named = {line.split(": ")[0].rsplit("/", 1)[1]: line for line in problems}
    assert message in named["recordings.jsonl.gz, line 1"]
    assert message in named["cuts.jsonl.gz, line 1"]
    assert "recording 'r' was left out or is not in" in named["supervisions.jsonl.gz, line 1"]


def test_audio_commands_in_a_lhotse_manifest_are_not_run(read, clip, tmp_path):
    """A manifest cannot run a command; lhotse itself would run it."""
    wav, ran = clip(tmp_path / "a.wav"), tmp_path / "ran"
    command = AudioSource("command", [0], f"touch {ran}; cat {wav}")
    recording = Recording("r", [command], 16_000, 8_000, 0.5)
    refused(tmp_path, recording.to_dict())
    utterances, problems = read("lhotse", tmp_path)
    assert utterances == []
    assert sum("is a shell command, which is never run" in line for line in problems) == 2
    assert not ran.exists()
    next(iter(RecordingSet.from_file(tmp_path / "recordings.jsonl.gz"))).load_audio()
    assert ran.exists()


def test_a_supervision_of_another_channel_is_refused(read, tmp_path):
    refused(tmp_path, {"id": "r", "sources": [source()]}, channel=1)
    utterances, problems = read("lhotse", tmp_path)
    assert utterances == []
    assert [line.split(": ", 1)[1] for line in problems] == [
        "has channel 1, and its recording has channel 0; correct one of them"
    ] * 2


def test_mixed_cuts_and_cuts_of_features_are_refused(read, write, spoken, tmp_path):
    cuts = CutSet.from_manifests(*spoken)
    mixed = cuts[0].pad(duration=10).to_dict()
    features = {"type": "MonoCut", "id": "f", "start": 0, "duration": 1, "channel": 0, "features": {}}
    write(tmp_path / "cuts.jsonl", json.dumps(mixed), json.dumps(features))
    utterances, problems = read("lhotse", tmp_path)
    assert utterances == []
    assert "is a 'MixedCut', and only MonoCut can be read" in problems[0]
    assert "has no recording" in problems[1]


def test_recordings_without_supervisions_are_counted_and_unmatched_files_named(read, spoken, tmp_path):
    recordings, supervisions = spoken
    recordings.to_file(tmp_path / "music_recordings.jsonl")
    supervisions.to_file(tmp_path / "lost_supervisions.jsonl")
    recordings.to_file(tmp_path / "half_recordings.jsonl")
    supervisions.filter(lambda s: s.recording_id == "r0").to_file(tmp_path / "half_supervisions.jsonl")
    CutSet.from_manifests(recordings).to_file(tmp_path / "bare_cuts.jsonl")
    with pytest.warns(UserWarning, match="have no supervision") as warned:
        utterances, problems = read("lhotse", tmp_path)
    assert [utterance.split for utterance in utterances] == ["half", "half"]
    assert [str(w.message) for w in warned] == [
        f"2 cuts of {tmp_path}/bare_cuts.jsonl have no supervision",
        f"1 recordings of {tmp_path}/half_recordings.jsonl have no supervision",
    ]
    assert problems == [
        f"{tmp_path}/lost_supervisions.jsonl has no recordings beside it; prepare the corpus again",
        f"{tmp_path}/music_recordings.jsonl has no supervisions beside it; prepare the corpus again",
    ]


def both(read, name, root, prepared, splits):
    """(ours, lhotse's) as lists of (id, text, file, start, duration)."""
    ours, problems = read(name, root, splits)
    assert problems == []
    files = {recording.id: recording.sources[0].source for recording in prepared["recordings"]}
    theirs = [(s.id, s.text, files[s.recording_id], s.start, s.duration) for s in prepared["supervisions"]]
    return [(u.id, u.text, str(u.audio), u.start, u.duration) for u in ours], theirs


def test_lhotse_agrees_on_librispeech(read, write, clip, tmp_path):
    chapter = tmp_path / "test-other" / "367" / "130732"
    write(chapter / "367-130732.trans.txt", "367-130732-0000 LOBSTERS AND LOBSTERS", "367-130732-0001 WHEN IS A")
    for number in range(2):
        clip(chapter / f"367-130732-000{number}.flac", 0.5 + number)
    prepared = prepare_librispeech(tmp_path)["test-other"]
    ours, theirs = both(read, "librispeech", tmp_path, prepared, ["test-other"])
    assert [row[:3] for row in ours] == [row[:3] for row in theirs]
    assert [row[4] for row in theirs] == [0.5, 1.5]  # ours, None, read to the end


def test_lhotse_agrees_on_ljspeech_with_the_normalised_text(read, write, clip, tmp_path):
    write(tmp_path / "metadata.csv", "LJ001-0001|In 1465|In fourteen sixty-five")
    clip(tmp_path / "wavs" / "LJ001-0001.wav")
    prepared = prepare_ljspeech(tmp_path)
    ours, theirs = both(read, "ljspeech", tmp_path, prepared, None)
    assert [(row[0], row[2]) for row in ours] == [(row[0], row[2]) for row in theirs]
    assert ours[0][1] == next(iter(prepared["supervisions"])).custom["normalized_text"]


def test_lhotse_agrees_on_mustc(read, write, clip, tmp_path):
    for part in ("train", "dev", "tst-HE", "tst-COMMON"):
        folder = tmp_path / "en-de" / "data" / part
        segments = [(0.1, 0.5, "ted_1"), (0.7, 0.25, "ted_1"), (0.2, 1.0, "ted_2")]
        write(
            folder / "txt" / f"{part}.yaml",
            *(f"- {{duration: {d}, offset: {o}, speaker_id: s, wav: {wav}.wav}}" for o, d, wav in segments),
        )
        write(folder / "txt" / f"{part}.en", "One.", "Two.", "Three.")
        write(folder / "txt" / f"{part}.de", "Eins.", "Zwei.", "Drei.")
        clip(folder / "wav" / "ted_1.wav", 2.0)
        clip(folder / "wav" / "ted_2.wav", 2.0)
    prepare_must_c(tmp_path, tmp_path / "lhotse", "de")
    theirs, problems = read("lhotse", tmp_path / "lhotse", ["must_c_en-de_tst-COMMON"])
    assert problems == []
    ours, problems = read("mustc", tmp_path, ["en-de.tst-COMMON"])
    assert problems == []
    assert [(u.id, u.answers["translation"], u.audio, u.start, u.duration) for u in ours] == [
        (u.id, u.text, u.audio, u.start, u.duration) for u in theirs
    ]
