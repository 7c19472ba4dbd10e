"""`lsm-probe data NAME`: manifests that can be read back, and exit codes for all errors."""

import json

import pytest

from lsm_probe.data.corpora import CORPORA
from lsm_probe.data.manifest import read_manifest


@pytest.fixture
def librispeech(clip, tmp_path):
    """Two splits with three valid utterances."""
    for part, texts in {"test-clean": ["ALSO A", "HARANGUE"], "dev-clean": ["LOBSTERS"]}.items():
        chapter = tmp_path / "LibriSpeech" / part / "1" / "2"
        for i in range(len(texts)):
            clip(chapter / f"1-2-000{i}.flac", 0.5 + i)
        (chapter / "1-2.trans.txt").write_text("".join(f"1-2-000{i} {text}\n" for i, text in enumerate(texts)))
    return tmp_path / "LibriSpeech"


def names(folder):
    return {path.name for path in folder.glob("[!.]*")}


def test_a_valid_corpus_is_converted(data, librispeech, tmp_path, besides_progress):
    out = tmp_path / "out"
    code, stdout, stderr = data("librispeech", "--root", librispeech, "--out", out)
    assert (code, besides_progress(stderr)) == (0, [])
    assert names(out) == {"test-clean.transcription.jsonl", "dev-clean.transcription.jsonl", "config.yaml"}
    assert f"{out}/test-clean.transcription.jsonl: 2 samples" in stdout
    first = read_manifest(out / "test-clean.transcription.jsonl")[0]
    assert first.audio.resolve() == librispeech / "test-clean" / "1" / "2" / "1-2-0000.flac"
    assert (first.id, first.text, first.target, first.task, first.language) == (
        "1-2-0000",
        "ALSO A",
        "ALSO A",
        "transcription",
        "en",
    )
    assert first.instruction == "Transcribe the speech."


def test_one_split_can_be_selected(data, librispeech, tmp_path):
    out = tmp_path / "out"
    code, stdout, _ = data("librispeech", "--root", librispeech, "--out", out, "--split", "dev-clean", "--json")
    assert code == 0
    assert names(out) == {"dev-clean.transcription.jsonl", "config.yaml"}
    assert json.loads(stdout) == {
        "out": str(out),
        "samples": {"dev-clean.transcription.jsonl": 1},
        "left_out": 0,
    }


def damage(librispeech, kind):
    """Damages the corpus in one place; returns what the message must contain."""
    chapter = librispeech / "test-clean" / "1" / "2"
    transcript = chapter / "1-2.trans.txt"
    if kind == "corrupt clip":
        (chapter / "1-2-0001.flac").write_bytes(b"not audio at all")
        return "1-2-0001.flac: cannot be decoded"
    if kind == "missing clip":
        (chapter / "1-2-0001.flac").unlink()
        return "1-2-0001.flac does not exist"
    if kind == "empty clip":
        (chapter / "1-2-0001.flac").write_bytes(b"")
        return "1-2-0001.flac: is empty"
    if kind == "empty transcript":
        transcript.write_text("1-2-0000 ALSO A\n1-2-0001 \n")
        return "test-clean, 1-2-0001: its transcript is missing or empty"
    if kind == "id taken":
        transcript.write_text("1-2-0000 ALSO A\n1-2-0000 HARANGUE\n")
        return "test-clean, 1-2-0000: another utterance of the split has the same id"
    transcript.write_text("1-2-0000 ALSO A\n../../../../../etc/passwd HARANGUE\n")
    return "1-2.trans.txt, line 2: '../../../../../etc/passwd.flac' names no file inside"


@pytest.mark.parametrize(
    "kind", ["corrupt clip", "missing clip", "empty clip", "empty transcript", "id taken", "path that leaves the root"]
)
def test_a_bad_entry_fails_and_writes_nothing_or_is_left_out_and_counted(
    data, librispeech, tmp_path, kind, besides_progress
):
    message, out = damage(librispeech, kind), tmp_path / "out"
    code, stdout, stderr = data("librispeech", "--root", librispeech, "--out", out)
    assert (code, stdout) == (2, "")
    assert message in stderr
    assert len(besides_progress(stderr)) == 1
    assert names(out) == set()
    code, stdout, stderr = data("librispeech", "--root", librispeech, "--out", out, "--on-error", "skip")
    assert code == 0
    assert "left out 1" in stderr
    assert f"left out: 1, each with its reason in {out}/left_out.txt" in stdout
    lines = (out / "left_out.txt").read_text().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert [s.id for s in read_manifest(out / "test-clean.transcription.jsonl")] == ["1-2-0000"]


def test_a_missing_root_a_missing_column_and_an_empty_corpus_are_refused(data, tmp_path, besides_progress):
    out = tmp_path / "out"
    code, _, stderr = data("mustc", "--root", tmp_path / "gone", "--out", out)
    assert (code, len(besides_progress(stderr))) == (2, 1)
    assert "gone does not exist; give the folder with en-de/" in stderr
    table = tmp_path / "meld" / "test_sent_emo.csv"
    table.parent.mkdir()
    table.write_text("Utterance,Dialogue_ID,Utterance_ID\nHi,0,0\n")
    code, _, stderr = data("meld", "--root", table.parent, "--out", out)
    assert (code, len(besides_progress(stderr))) == (2, 1)
    assert "test_sent_emo.csv has no column 'Emotion'" in stderr
    code, _, stderr = data("meld", "--root", table.parent, "--out", out, "--task", "intent")
    assert code == 2
    assert "--task 'intent' is not a task of MELD; choose one of: emotion, transcription" in stderr


def test_common_voice_mp3_is_read_with_its_translation(data, clip, tmp_path):
    root, out = tmp_path / "en", tmp_path / "out"
    clip(root / "clips" / "common_voice_en_1.mp3")
    (root / "test.tsv").write_text("client_id\tpath\tsentence\nc\tcommon_voice_en_1.mp3\tGood morning.\n")
    (root / "covost_v2.en_de.test.tsv").write_text(
        "path\tsentence\ttranslation\tclient_id\ncommon_voice_en_1.mp3\tGood morning.\tGuten Morgen.\tc\n"
    )
    assert data("common-voice", "--root", root, "--out", out)[0] == 0
    assert read_manifest(out / "test.transcription.jsonl")[0].target == "Good morning."
    # One command, one folder: nothing is overwritten or mixed.
    run = ("covost2", "--root", root, "--task", "translation", "--task", "transcription")
    code, _, stderr = data(*run, "--out", out)
    assert code == 2
    assert "holds files already: choose another folder" in stderr
    out = tmp_path / "translated"
    assert data(*run, "--out", out)[0] == 0
    sample = read_manifest(out / "en_de.test.translation.jsonl")[0]
    assert sample.target == "Guten Morgen."
    assert "from English into German" in sample.instruction
    assert read_manifest(out / "en_de.test.transcription.jsonl")[0].target == "Good morning."


def test_sections_of_a_long_opus_file_are_read(data, clip, tmp_path):
    root, out = tmp_path / "gigaspeech", tmp_path / "out"
    clip(root / "audio" / "youtube" / "Y1.opus", 5.0)
    segments = [
        {"sid": f"Y1_{i}", "begin_time": i, "end_time": i + 1.5, "text_tn": f"W{i} <PERIOD>", "subsets": ["{L}"]}
        for i in (0, 2, 4)
    ]
    content = {"audios": [{"aid": "Y1", "path": "audio/youtube/Y1.opus", "segments": segments}]}
    (root / "GigaSpeech.json").write_text(json.dumps(content))
    code, _, stderr = data("gigaspeech", "--root", root, "--out", out, "--on-error", "skip")
    assert code == 0
    assert "left out 1: L, Y1_4: " in stderr  # its section ends after the file
    samples = read_manifest(out / "L.transcription.jsonl")
    assert [(s.id, s.target, s.start, s.duration) for s in samples] == [
        ("Y1_0", "W0.", 0, 1.5),
        ("Y1_2", "W2.", 2, 1.5),
    ]


def test_utterances_of_other_tasks_are_left_out_with_a_warning(data, clip, tmp_path, besides_progress):
    root, out = tmp_path / "lights", tmp_path / "out"
    intents = {
        "SwitchLightOn": [{"data": [{"text": "on in the "}, {"text": "kitchen", "slot_name": "room"}]}],
        "SetLightColor": [{"data": [{"text": "make it red"}]}],
    }
    clip(root / "speech_corpus" / "audio" / "0.wav")
    (root / "dataset.json").write_text(json.dumps({"intents": {k: {"utterances": v} for k, v in intents.items()}}))
    texts = enumerate(["on in the kitchen", "make it red"])
    metadata = {str(i): {"text": text, "filename": f"{i}.wav"} for i, text in texts}
    (root / "speech_corpus" / "metadata.json").write_text(json.dumps(metadata))
    code, _, stderr = data("snips-lights", "--root", root, "--out", out)
    assert code == 0
    assert [line.split(str(root))[0] for line in besides_progress(stderr)] == ["warning: 1 recordings of "]
    sample = read_manifest(out / "all.keywords-lights.jsonl")[0]
    assert (sample.text, sample.target) == ("on in the kitchen", "['turn on', 'kitchen']")


def test_a_command_in_a_manifest_of_lhotse_is_refused(data, tmp_path):
    """A manifest cannot run a command."""
    ran = tmp_path / "ran"
    recording = {"id": "r", "sources": [{"type": "command", "channels": [0], "source": f"touch {ran}"}]}
    supervision = {"id": "s", "recording_id": "r", "start": 0, "duration": 1, "channel": 0, "text": "T."}
    (tmp_path / "recordings.jsonl").write_text(json.dumps(recording) + "\n")
    (tmp_path / "supervisions.jsonl").write_text(json.dumps(supervision) + "\n")
    for on_error in ("fail", "skip"):
        code, stdout, stderr = data("lhotse", "--root", tmp_path, "--out", tmp_path / "out", "--on-error", on_error)
        assert (code, stdout) == (2, "")
        assert "recordings.jsonl, line 1: recording 'r': its source is a shell command, which is never run" in stderr
    assert not ran.exists()


@pytest.mark.parametrize("name", [name for name, corpus in CORPORA.items() if corpus.spoken])
def test_every_corpus_with_sound_has_a_command_that_explains_itself(data, name):
    code, stdout, _ = data(name, "--help")
    assert code == 0
    words = " ".join(stdout.replace("│", " ").split())
    assert CORPORA[name].root.split(",")[0].split("*")[0] in words
    assert all(task in words for task in CORPORA[name].tasks)


def test_a_missing_split_is_named(data, librispeech, tmp_path):
    run = ("librispeech", "--root", librispeech, "--out", tmp_path / "out", "--split", "dev-clean", "--split")
    code, _, stderr = data(*run, "test-claen")
    assert code == 2
    assert "--split 'test-claen' was not found" in stderr
    assert names(tmp_path / "out") == set()
    assert data(*run, "test-clean")[0] == 0


def test_pipes_and_devices_of_an_archive_are_not_read(data, librispeech, tmp_path):
    (tmp_path / "metadata.csv").symlink_to("/dev/zero")
    code, _, stderr = data("ljspeech", "--root", tmp_path, "--out", tmp_path / "out")
    assert code == 2
    assert "metadata.csv is a pipe, socket or device" in stderr


def test_a_duplicate_recording_is_refused(data, clip, tmp_path):
    root = tmp_path / "lhotse"
    for name in ("a", "b"):
        clip(root / f"{name}.wav")
    recording = {"id": "r", "sampling_rate": 16_000, "num_samples": 8_000, "duration": 0.5}
    sources = [[{"type": "file", "channels": [0], "source": str(root / f"{name}.wav")}] for name in ("a", "b")]
    lines = [json.dumps(recording | {"sources": source}) for source in sources]
    (root / "x_recordings_dev.jsonl").write_text("\n".join(lines))
    said_of = {"id": "s", "recording_id": "r", "start": 0, "duration": 0.5, "channel": 0, "text": "a"}
    (root / "x_supervisions_dev.jsonl").write_text(json.dumps(said_of))
    code, _, stderr = data("lhotse", "--root", root, "--out", tmp_path / "out")
    assert code == 2
    assert "x_recordings_dev.jsonl, line 2: recording 'r' occurs twice" in stderr


def test_half_a_surrogate_pair_is_refused_in_one_line(data, clip, tmp_path):
    clip(tmp_path / "lhotse" / "a.wav")
    recording = {
        "id": "r",
        "sources": [{"type": "file", "channels": [0], "source": str(tmp_path / "lhotse" / "a.wav")}],
    }
    (tmp_path / "lhotse" / "recordings.jsonl").write_text(json.dumps(recording))
    said_of = {"id": "s\ud800", "recording_id": "r", "start": 0, "duration": 0.5, "channel": 0, "text": "a"}
    (tmp_path / "lhotse" / "supervisions.jsonl").write_text(json.dumps(said_of))
    code, _, stderr = data("lhotse", "--root", tmp_path / "lhotse", "--out", tmp_path / "out")
    assert code == 2
    assert "unpaired surrogate" in stderr


def test_manifests_of_a_folder_with_a_colon_can_be_read(data, librispeech, tmp_path):
    root = librispeech.rename(tmp_path / "corpus:v1")
    assert data("librispeech", "--root", root, "--out", tmp_path / "manifests")[0] == 0
    inside = tmp_path / "manifests" / "dev-clean.transcription.jsonl"
    (tmp_path / "here.jsonl").write_text(inside.read_text().replace(f'"{tmp_path}/', '"./'))
    assert data("validate", inside)[0] == 0
    assert data("validate", tmp_path / "here.jsonl")[0] == 0


def test_limit_keeps_the_first_utterances(data, librispeech, tmp_path):
    out = tmp_path / "out"
    code, stdout, _ = data("librispeech", "--root", librispeech, "--out", out, "--limit", 2, "--json")
    assert code == 0
    assert sum(json.loads(stdout)["samples"].values()) == 2
