"""Files of sentences: what is read, and that every bad line is named."""

import json
from pathlib import Path

import pytest

from lsm_probe.data.pools import read_pool
from lsm_probe.data.problems import Problems
from lsm_probe.data.sentences import read_sentences
from lsm_probe.errors import InputError


def read(path):
    problems = Problems()
    return list(read_sentences(path, problems)), problems.found


def jsonl(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_text_file_has_one_sentence_per_line(tmp_path):
    path = tmp_path / "my text.txt"
    path.write_bytes("\ufeffOne.\n\n  Two and\u2028more. \r\n\t\nThree.".encode())
    sentences, problems = read(path)
    assert problems == []
    assert [s.utterance.id for s in sentences] == ["my-text-000001", "my-text-000003", "my-text-000005"]
    assert [s.utterance.text for s in sentences] == ["One.", "Two and\u2028more.", "Three."]


def test_rows_keep_their_own_fields(tmp_path):
    row = {"id": "a/b", "text": "Hi.", "instruction": "Shout.", "target": "HI", "task": "shout", "context": "c"}
    (full, plain), problems = read(jsonl(tmp_path, row, {"text": "Bye.", "instruction": None, "language": "fr"}))
    assert problems == []
    pool = read_pool("transcription")
    sample = full.sample(Path("a.flac"), pool, 0)
    assert sample.model_dump(include=set(row)) == row
    assert sample.audio == Path("a.flac")
    drawn = plain.sample(Path("b.flac"), pool, 0)
    assert drawn.id == "rows-000002"
    assert drawn.instruction in pool.tasks[0].instructions
    assert (drawn.target, drawn.task, drawn.language) == ("Bye.", "transcription", "fr")


BAD = {
    "{oops": "JSON",
    "[1]": "line 2",
    '{"text": ""}': "'text' is empty",
    '{"id": "x"}': "'text' is missing",
    '{"text": 5}': "'text' is 5",
    '{"text": "\\ud800"}': "line 2",
    '{"text": "x", "id": "first"}': "line 1 has the same id",
    '{"text": "x", "id": " "}': "'id' is empty",
    '{"text": "x", "target": "y"}': "without an 'instruction'",
    "[" * 100_000: "line 2",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path, line):
    sentences, problems = read(jsonl(tmp_path, {"text": "One.", "id": "first"}, line, {"text": "Three."}))
    assert [s.utterance.text for s in sentences] == ["One.", "Three."]
    assert len(problems) == 1
    assert "rows.jsonl, line 2: " in problems[0]
    assert BAD[line] in problems[0]
    assert len(problems[0].splitlines()) == 1


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "s.txt"
    path.write_bytes(b"One.\nTw\xff.\nThree.\n")
    sentences, problems = read(path)
    assert len(sentences) == 2
    assert "line 2: byte 3 is not UTF-8" in problems[0]


def test_unknown_keys_give_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="'instructions' .line 1."):
        read(jsonl(tmp_path, {"text": "One.", "instructions": "x"}))


@pytest.mark.parametrize("name", ["none.txt", ".", "fifo"])
def test_an_unreadable_file_is_refused(tmp_path, name):
    import os

    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError):
        read(tmp_path / name)


def test_ids_are_valid_unicode_for_any_file_name(tmp_path):
    path = tmp_path / "caf\udce9.txt"
    path.write_bytes(b"One.\n")
    (sentence,), _ = read(path)
    assert sentence.utterance.id.encode() == b"caf--000001"
