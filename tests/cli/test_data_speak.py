"""`lsm-probe data speak` and `data commands`: resuming, refusals, kills, and one line for every error."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from lsm_probe.data import speech
from lsm_probe.data.manifest import read_manifest

SENTENCES = ["Yes.", "No.", "It rains.", "Not now.", "Come in.", "Who is it?", "Sit down.", "Good night."]


@pytest.fixture
def sentences(tmp_path):
    path = tmp_path / "talk.txt"
    path.write_text("\n".join(SENTENCES))
    return path


def contents(folder):
    """The content of all files in a folder, except the lock."""
    files = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_text_file_becomes_speech_and_a_manifest(data, sentences, tmp_path):
    out = tmp_path / "out"
    code, stdout, _ = data("speak", sentences, "--out", out, "--workers", 1, "--speed", 0.9, "--speed", 1.2)
    assert code == 0
    assert "manifest.jsonl: 8 samples" in stdout
    assert "times real time; 0 were there already" in stdout
    samples = read_manifest(out / "manifest.jsonl")
    assert [s.text for s in samples] == [s.target for s in samples] == SENTENCES
    assert [s.id for s in samples] == [f"talk-{i:06}" for i in range(1, 9)]
    assert {s.task for s in samples} == {"transcription"}
    assert data("validate", out / "manifest.jsonl")[0] == 0
    shutil.move(out, tmp_path / "moved")
    assert data("validate", tmp_path / "moved" / "manifest.jsonl")[0] == 0


def test_rows_keep_their_instructions_and_json_reports_the_speed(data, tmp_path):
    rows = [
        {"id": "a/../b", "text": "Yes.", "instruction": "Shout.", "target": "YES", "task": "shout", "context": "Hm."},
        {"text": "No."},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, stdout, _ = data(
        "speak", path, "--out", tmp_path / "out", "--instructions", "evaluation", "--workers", 1, "--json"
    )
    assert code == 0
    printed = json.loads(stdout)
    assert (printed["spoken"], printed["already"], printed["left_out"]) == (2, 0, 0)
    assert printed["times_real_time"] == pytest.approx(printed["seconds"] / printed["wall_seconds"], rel=0.1)
    brought, drawn = read_manifest(tmp_path / "out" / "manifest.jsonl")
    assert brought.model_dump(include=set(rows[0])) == rows[0]
    assert (drawn.id, drawn.instruction, drawn.target) == ("rows-000002", "Transcribe the speech.", "No.")


def test_resuming_repeats_nothing_and_refuses_other_settings(data, sentences, tmp_path):
    arguments = ["speak", sentences, "--out", tmp_path / "out", "--workers", 1]
    assert data(*arguments)[0] == 0
    before = contents(tmp_path / "out")
    assert "continue with --resume" in data(*arguments)[2]
    code, stdout, _ = data(*arguments, "--resume")
    assert code == 0
    assert "spoken: 0 texts" in stdout
    assert "8 were there already" in stdout
    for others, changed in ((["--seed", 1], "seed"), (["--speed", 1.1], "speeds"), (["--limit", 2], "texts")):
        code, _, stderr = data(*arguments, "--resume", *others)
        assert code == 2
        assert f"({changed})" in stderr
    sentences.write_text(sentences.read_text().replace("Come", "Get"))
    code, _, stderr = data(*arguments, "--resume")
    assert code == 2
    assert "(texts)" in stderr
    assert contents(tmp_path / "out") == before


def test_a_second_process_is_refused(data, sentences, tmp_path):
    import filelock

    out = tmp_path / "out"
    out.mkdir()
    with filelock.FileLock(out / ".lock"):
        code, _, stderr = data("speak", sentences, "--out", out)
    assert code == 2
    assert "another process is writing" in stderr


def test_a_sentence_without_words_fails_or_is_skipped_and_counted(data, tmp_path):
    path = tmp_path / "s.txt"
    path.write_text("Yes.\n…\n-h\n$(touch x)\n")
    code, _, stderr = data("speak", path, "--out", tmp_path / "out", "--workers", 1)
    assert code == 2
    assert "s-000002" in stderr
    # All texts are checked before synthesis.
    assert not (tmp_path / "out").exists()
    code, stdout, stderr = data("speak", path, "--out", tmp_path / "out", "--workers", 1, "--on-error", "skip")
    assert code == 0
    assert "left out: 1" in stdout
    assert "s-000002" in (tmp_path / "out" / "left_out.txt").read_text()
    assert len(read_manifest(tmp_path / "out" / "manifest.jsonl")) == 3
    assert not Path("x").exists()


def test_a_bad_line_is_reported_before_synthesis(data, tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"text": "Yes."}\n{oops\n')
    code, _, stderr = data("speak", path, "--out", tmp_path / "out")
    assert code == 2
    assert "s.jsonl, line 2" in stderr
    assert not (tmp_path / "out").exists()


def test_a_full_disk_gives_one_line_and_the_run_can_be_resumed(data, sentences, tmp_path, monkeypatch):
    write, written = Path.write_bytes, []

    def full(path, content):
        if len(written) == 3:
            write(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write(path, content)

    out = tmp_path / "out"
    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        code, _, stderr = data("speak", sentences, "--out", out, "--workers", 1)
    assert code == 1
    assert [line for line in stderr.splitlines() if "error" in line] == [
        "error: the disk is full: make room, then run it again (--resume continues)"
    ]
    assert sorted(Path(name).suffix for name in contents(out)) == [".flac", ".flac", ".flac", ".yaml"]
    code, stdout, _ = data("speak", sentences, "--out", out, "--workers", 1, "--resume")
    assert code == 0
    assert "3 were there already" in stdout


def test_an_interrupt_prints_how_to_resume(data, sentences, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(speech, "_run_job", interrupt)
    code, _, stderr = data("speak", sentences, "--out", tmp_path / "out", "--workers", 1)
    assert code == 130
    assert "--resume" in stderr
    assert "Traceback" not in stderr


MISTAKES = {
    "no such file": (["speak", "none.txt", "--out", "o"], "none.txt does not exist"),
    "empty file": (["speak", os.devnull, "--out", "o"], "device"),
    "blank file": (["speak", "blank.txt", "--out", "o"], "holds no sentence"),
    "unknown voice": (["speak", "TALK", "--out", "o", "--voice", "hibari:x"], "available: hibari:heart"),
    "speed": (["speak", "TALK", "--out", "o", "--speed", "3"], "--speed 3.0"),
    "pool without transcription": (["speak", "TALK", "--out", "o", "--instructions", "continuation"], "transcription"),
    "on-error": (["speak", "TALK", "--out", "o", "--on-error", "hope"], "'hope' is not one of 'fail', 'skip'"),
    "out is a file": (["speak", "TALK", "--out", "TALK"], "is a file: name a folder"),
    "too many commands": (["commands", "--out", "o", "--count", "20000"], "10400"),
    "too few commands": (["commands", "--out", "o", "--count", "5"], "240"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_invalid_arguments_give_one_line_and_exit_code_2(refusal, sentences, write, tmp_path, monkeypatch, mistake):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "blank.txt", "", " ")
    arguments, expected = MISTAKES[mistake]
    assert expected in refusal("data", *(sentences if part == "TALK" else part for part in arguments))


@pytest.mark.usefixtures("quick_voice")
def test_commands_are_spoken_into_a_manifest_for_each_split_and_task(data, tmp_path):
    out = tmp_path / "out"
    code, stdout, stderr = data("commands", "--out", out, "--count", 240, "--workers", 1, "--json")
    assert code == 0, stderr
    counts = json.loads(stdout)["samples"]
    assert sum(counts.values()) == 6 * 240
    assert counts["test.place.jsonl"] == 24
    sample = read_manifest(out / "test.place.jsonl")[0]
    assert sample.target in sample.text
    assert 0.5 < soundfile.info(sample.audio).duration < 8
    assert len(list(out.glob("audio/??/*.flac"))) == 240


def test_questions_are_spoken_with_their_context(data, tmp_path):
    rows = [{"question": "is it raining", "passage": "It rains.", "answer": True}]
    rows += [{"question": "…", "passage": "It snows.", "answer": False}]
    path = tmp_path / "dev.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["boolq", "--root", path, "--out", tmp_path / "out", "--workers", 1]
    code, _, stderr = data(*arguments)
    assert code == 2
    assert "dev, dev-2" in stderr
    assert not (tmp_path / "out").exists()
    code, _, stderr = data(*arguments, "--on-error", "skip")
    assert code == 0, stderr
    (sample,) = read_manifest(tmp_path / "out" / "dev.boolq.jsonl")
    assert (sample.text, sample.context, sample.target) == ("is it raining", "It rains.", "true")
    assert soundfile.info(sample.audio).duration > 0.5
    assert "--task 'webqa'" in data(*arguments, "--resume", "--task", "webqa")[2]


def start(*arguments):
    """A process group of its own, as a terminal starts one."""
    command = [sys.executable, "-c", "from lsm_probe import cli; cli.main()", "data", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for_files(out, count, process):
    while len(list(out.glob("audio/??/[!.]*.flac"))) < count and process.poll() is None:
        time.sleep(0.001)


@pytest.fixture
def many_sentences(tmp_path):
    """More sentences than two processes can synthesise at once, in chunks of eight."""
    path = tmp_path / "talk.txt"
    path.write_text("".join(f"{text} Number {i}.\n" for i in range(5) for text in SENTENCES))
    return path


def test_a_run_killed_twice_resumes_to_the_same_bytes(data, many_sentences, tmp_path):
    arguments = ["speak", many_sentences, "--speed", 0.9, "--speed", 1.1, "--workers", 2]
    assert data(*arguments, "--out", tmp_path / "whole")[0] == 0
    out, random_ = tmp_path / "killed", random.Random(0)
    for resume in ([], ["--resume"]):
        there = set(contents(out))
        process = start(*arguments, "--out", out, *resume)
        wait_for_files(out, len(there) + random_.randint(1, 10), process)
        time.sleep(random_.random() / 50)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (out / "manifest.jsonl").exists()
        for path in out.glob("audio/??/[!.]*.flac"):
            assert soundfile.read(path)[0].size
    finished = {path: path.stat().st_mtime_ns for path in out.glob("audio/??/[!.]*.flac")}
    code, stdout, stderr = data(*arguments, "--out", out, "--resume")
    assert code == 0, stderr
    assert f"{len(finished)} were there already" in stdout
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert contents(out) == contents(tmp_path / "whole")


def test_worker_processes_end_if_only_their_parent_is_killed(many_sentences, tmp_path):
    import psutil

    process = start("speak", many_sentences, "--out", tmp_path / "out", "--workers", 2)
    wait_for_files(tmp_path / "out", 1, process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.kill()
    process.communicate()
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_an_interrupt_of_all_processes_ends_at_once_without_a_traceback(many_sentences, tmp_path):
    process = start("speak", many_sentences, "--out", tmp_path / "out", "--workers", 2)
    wait_for_files(tmp_path / "out", 1, process)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "--resume" in stderr
    assert "Traceback" not in stderr


def test_a_file_left_empty_by_a_crash_is_synthesised_again(data, sentences, tmp_path):
    out = tmp_path / "out"
    run = ("speak", sentences, "--out", out, "--workers", 1)
    assert data(*run)[0] == 0
    whole = contents(out)
    damaged = sorted(out.glob("audio/??/*.flac"))[0]
    damaged.write_bytes(b"")
    code, stdout, _ = data(*run, "--resume")
    assert code == 0
    assert "spoken: 1 texts" in stdout
    assert contents(out) == whole
