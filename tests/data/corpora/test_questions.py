"""Question sets: text without audio, with answer and context."""

import gzip
import json
import os

import pytest

from lsm_probe.data.corpora import CORPORA, question_sets
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError


def jsonl(path, *rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_question_sets_are_the_corpora_without_audio():
    assert set(question_sets()) == {"boolq", "webglm-qa", "llama-questions", "web-questions"}
    assert all(not corpus.spoken for corpus in question_sets().values())
    assert CORPORA["librispeech"].spoken


@pytest.mark.parametrize("name", ["dev.jsonl", "dev.jsonl.gz"])
def test_boolq_is_read(read, tmp_path, name):
    row = {"question": "is it so", "title": "It", "passage": "It is so.", "answer": True}
    file = jsonl(tmp_path / name, row, "", row | {"answer": "yes"}, row | {"answer": False, "passage": "No\u2028way."})
    utterances, problems = read("boolq", file)
    assert utterances == [
        Utterance("dev-1", "dev", "is it so", context="It is so.", answers={"boolq": "true"}),
        Utterance("dev-4", "dev", "is it so", context="No\u2028way.", answers={"boolq": "false"}),
    ]
    assert problems == [f"{file}, line 3: 'answer' must be true or false; correct the line"]


def test_webglm_qa_is_read(read, tmp_path):
    row = {"question": "Why?", "answer": "So [1][2].", "references": ["One.", "Two."]}
    file = jsonl(tmp_path / "test.jsonl", row, row | {"references": []}, row | {"references": "One."}, {"answer": "A"})
    utterances, problems = read("webglm-qa", file)
    assert utterances == [Utterance("test-1", "test", "Why?", context="One.\nTwo.", answers={"webqa": "So [1][2]."})]
    assert [problem.split(": ")[0] for problem in problems] == [f"{file}, line {number}" for number in (2, 3, 4)]


@pytest.mark.parametrize("name", ["llama-questions", "web-questions"])
def test_open_questions_use_the_first_answer_and_keep_the_others(read, tmp_path, name):
    file = jsonl(
        tmp_path / "web_questions.jsonl",
        {"question": "who?", "answer": ["Deborah Read", "Deborah"]},
        {"question": "what?", "answer": "A pound"},
        {"question": "when?", "answers": ["1990"], "url": "u"},
        {"question": "where?", "answer": []},
        {"question": "which?", "answer": [1]},
        {"question": " ", "answer": "nothing was asked"},
        "[]",
        '{"question": "cut',
    )
    utterances, problems = read(name, file)
    assert [(u.id, u.text, u.answers["question-answering"]) for u in utterances] == [
        ("web_questions-1", "who?", "Deborah Read"),
        ("web_questions-2", "what?", "A pound"),
        ("web_questions-3", "when?", "1990"),
    ]
    assert [u.alternatives for u in utterances] == [{"question-answering": ("Deborah",)}, {}, {}]
    assert [int(problem.split(": ")[0].rsplit(" ", 1)[1]) for problem in problems] == [4, 5, 6, 7, 8]


def test_a_damaged_archive_is_named(read, tmp_path):
    file = jsonl(tmp_path / "dev.jsonl.gz", *({"question": f"q{i}", "answer": "a"} for i in range(2_000)))
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"dev.jsonl.gz cannot be read"):
        read("web-questions", file)


def test_a_line_that_is_too_long_is_refused_before_it_fills_memory(read, tmp_path):
    """80 KB that decompress to 80 MB."""
    file = tmp_path / "bomb.jsonl.gz"
    file.write_bytes(gzip.compress(b"[" * 80_000_000))
    with pytest.raises(InputError, match=r"bomb.jsonl.gz, line 1: is longer than 67108864 bytes"):
        read("boolq", file)


def test_the_root_of_a_question_set_is_a_file(read, tmp_path):
    os.mkfifo(tmp_path / "fifo.jsonl")
    with pytest.raises(InputError, match="is a pipe, socket or device; name a regular file"):
        read("boolq", tmp_path / "fifo.jsonl")
    with pytest.raises(InputError, match="is a folder; give the file"):
        read("boolq", tmp_path)
    with pytest.raises(InputError, match="does not exist; give the file"):
        read("boolq", tmp_path / "gone.jsonl")
