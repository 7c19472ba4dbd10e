"""`lsm-probe data validate`: every bad line and every bad clip, with line number and reason."""

import io
import json
import os

import numpy as np
import pytest
import soundfile

GOOD = {"id": "good", "instruction": "Say it.", "audio": "good.wav", "task": "asr"}


@pytest.fixture
def folder(tmp_path, waveform):
    soundfile.write(tmp_path / "good.wav", waveform(1.0), 16_000)
    return tmp_path


def write(folder, *lines):
    path = folder / "clips.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_valid_manifest_passes(lsm_probe_command, folder):
    path = write(folder, GOOD, GOOD | {"id": "second"}, {"id": "text", "instruction": "Say it.", "text": "Hello."})
    code, stdout, _ = lsm_probe_command("data", "validate", path)
    assert code == 0
    assert "3 samples usable, 0 not" in stdout
    assert "asr: 2" in stdout


def test_fields_of_usable_samples_are_counted(lsm_probe_command, folder):
    """A misspelt key only gives a warning; the counts show what is missing."""
    spoken = GOOD | {"text": "Hello.", "target": "Hello."}
    misspelt = {"id": "wav", "instruction": "Say it.", "text": "Hello.", "wav": "good.wav"}
    path = write(folder, spoken, misspelt, GOOD | {"id": "damaged", "audio": "none.wav", "target": "Hello."})
    code, stdout, _ = lsm_probe_command("data", "validate", path)
    assert code == 2
    assert stdout.splitlines()[:2] == [
        f"{path}: 2 samples usable, 1 not",
        "  of those, 1 with audio, 2 with text, 1 with target",
    ]
    stdout = lsm_probe_command("data", "validate", path, "--json")[1]
    assert json.loads(stdout)["with"] == {"audio": 1, "text": 2, "target": 1}


def test_keys_that_no_sample_has_are_counted_too(lsm_probe_command, folder):
    path = write(folder, {"id": "x", "instruction": "Say it.", "text": "Hello.", "transcript": "Hello."})
    code, stdout, stderr = lsm_probe_command("data", "validate", path)
    assert code == 0
    assert "unknown keys are left out: 'transcript'" in stderr
    assert "  of those, 0 with audio, 1 with text, 0 with target" in stdout


def test_every_bad_line_is_named_with_the_reason(lsm_probe_command, folder):
    path = write(
        folder,
        GOOD,
        "{not json",
        GOOD,
        {"id": "x", "instruction": "Say it."},
        {"id": "y", "instruction": " ", "text": "t"},
        GOOD | {"id": "z", "audio": "touch hacked |"},
        GOOD | {"id": "u", "audio": "https://example.org/a.wav"},
        GOOD | {"id": "c", "audio": {"type": "command", "source": "touch hacked"}},
        GOOD | {"id": "w", "audio": "nowhere.wav"},
    )
    code, stdout, stderr = lsm_probe_command("data", "validate", path)
    assert code == 2
    assert "1 samples usable, 8 not" in stdout
    causes = [
        (2, "is not JSON"),
        (3, "line 1 has the same id"),
        (4, "names neither 'audio' nor 'text'"),
        (5, "is empty or blank"),
        (6, "is a command (pipe), which is not run"),
        (7, "is a URL, which is not fetched"),
        (8, "must be a plain path"),
        (9, "does not exist"),
    ]
    lines = [line for line in stderr.splitlines() if f"{path}, line" in line]
    assert len(lines) == len(causes)
    for line, (number, cause) in zip(lines, causes, strict=True):
        assert f"{path}, line {number}: " in line
        assert cause in line
    assert not (folder / "hacked").exists()


def bad_clips(folder, waveform):
    """The name of each damaged clip, and what its message contains."""
    whole = (folder / "good.wav").read_bytes()
    (folder / "empty.wav").touch()
    (folder / "cut.wav").write_bytes(whole[:5_000])
    (folder / "garbage.wav").write_bytes(bytes(range(256)) * 40)
    soundfile.write(folder / "nan.wav", np.array([0.1, np.nan, 0.2] * 1_000), 16_000, subtype="FLOAT")
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    os.mkfifo(folder / "pipe.wav")
    soundfile.write(folder / "cut.flac", np.tile(waveform(1.0), 20), 16_000)
    flac = (folder / "cut.flac").read_bytes()
    (folder / "cut.flac").write_bytes(flac[: len(flac) // 2])
    return {
        "empty.wav": "is empty (0 bytes)",
        "cut.wav": "is truncated",
        "garbage.wav": "cannot be decoded",
        "nan.wav": "holds NaN or infinite samples",
        "none.wav": "holds no audio (0 frames)",
        "pipe.wav": "is a pipe, socket or device",
        "cut.flac": "",
    }


def test_every_bad_clip_is_named_with_the_reason(lsm_probe_command, folder, waveform):
    expected = bad_clips(folder, waveform)
    path = write(folder, GOOD, *(GOOD | {"id": name, "audio": name} for name in expected))
    code, stdout, _ = lsm_probe_command("data", "validate", path, "--json")
    assert code == 2
    report = json.loads(stdout)
    assert report["usable"] == 1
    for name, cause in expected.items():
        (line,) = (problem for problem in report["problems"] if name in problem)
        assert cause in line


def test_headers_option_checks_file_headers_only(lsm_probe_command, folder, waveform):
    bad_clips(folder, waveform)
    path = write(folder, GOOD, GOOD | {"id": "nan", "audio": "nan.wav"}, GOOD | {"id": "cut", "audio": "cut.wav"})
    code, stdout, stderr = lsm_probe_command("data", "validate", path, "--headers")
    assert code == 2
    assert "2 samples usable, 1 not" in stdout
    assert "cut.wav: is truncated" in stderr


def test_an_unreadable_manifest_is_refused_in_one_line(lsm_probe_command, tmp_path):
    code, _, stderr = lsm_probe_command("data", "validate", tmp_path / "none.jsonl")
    assert code == 2
    assert stderr.strip() == f"error: manifest {tmp_path / 'none.jsonl'} does not exist; check the path"


def test_validate_reports_the_same_as_reading(lsm_probe_command, folder, waveform):
    """Two streams in one file are 3 s; a size that is too small gives a warning."""
    speech = [io.BytesIO(), io.BytesIO()]
    for file, seconds in zip(speech, (1.0, 2.0), strict=True):
        soundfile.write(file, waveform(seconds), 16_000, format="OGG")
    (folder / "chained.ogg").write_bytes(b"".join(file.getvalue() for file in speech))
    content = (folder / "good.wav").read_bytes()
    at = content.index(b"data") + 4
    (folder / "half.wav").write_bytes(content[:at] + (16_000).to_bytes(4, "little") + content[at + 4 :])
    path = write(
        folder,
        GOOD | {"id": "chained", "audio": "chained.ogg", "start": 2.0, "duration": 1.0},
        GOOD | {"id": "half", "audio": "half.wav", "start": 0.75},
        GOOD | {"id": "beyond", "audio": "chained.ogg", "start": 3.5},
    )
    for option in ([], ["--headers"]):
        code, stdout, stderr = lsm_probe_command("data", "validate", path, *option)
        assert code == 2
        assert "2 samples usable, 1 not" in stdout
        assert "start is 3.5 s, outside the file's 3.000 s" in stderr
        assert "half.wav: its header claims 16000 bytes of audio, and 32000 are there" in stderr


@pytest.mark.parametrize("kind", ["llm", "lsm"])
def test_text_with_control_tokens_of_a_checkpoint_is_reported(lsm_probe_command, folder, request, kind):
    ckpt = request.getfixturevalue(f"tiny_{kind}_folder")
    path = write(
        folder,
        GOOD,
        GOOD | {"id": "turn", "text": "Hello.<|im_end|>"},
        GOOD | {"id": "told", "instruction": "Say <s> it."},
        GOOD | {"id": "ended", "target": "Hello.</s>"},
        GOOD | {"id": "read", "context": "Before.<|im_end|>"},
    )
    assert lsm_probe_command("data", "validate", path)[0] == 0
    code, stdout, stderr = lsm_probe_command("data", "validate", path, "--ckpt", ckpt)
    assert code == 2
    assert "1 samples usable, 4 not" in stdout
    for line in (
        "line 2: sample 'turn': the source holds <|im_end|>",
        "line 3: sample 'told': the instruction holds <s>",
        "line 4: sample 'ended': the target holds </s>",
        "line 5: sample 'read': the context holds <|im_end|>",
    ):
        assert line in stderr


def test_a_missing_checkpoint_is_refused(lsm_probe_command, folder):
    code, _, stderr = lsm_probe_command("data", "validate", write(folder, GOOD), "--ckpt", folder / "nowhere")
    assert code == 2
    assert "there is no folder nowhere" in stderr
