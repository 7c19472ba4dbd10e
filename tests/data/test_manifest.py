"""Manifests: what is read, and that every error is one line with file and line number."""

import gzip
import json
import lzma
import os
import shutil
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from lsm_probe.data.manifest import BUILTIN_SETS, fingerprint, manifest_writer, read_manifest, scan_manifest
from lsm_probe.data.problems import Problems
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError

GOOD = {"id": "good", "instruction": "Repeat.", "text": "hello"}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a manifest with the given lines: objects as JSON, str and bytes unchanged."""

    def _write(*lines: dict[str, Any] | str | bytes, start: bytes = b"") -> Path:
        def to_bytes(line: dict[str, Any] | str | bytes) -> bytes:
            if isinstance(line, dict):
                line = json.dumps(line)
            return line if isinstance(line, bytes) else line.encode()

        path = tmp_path / "manifest.jsonl"
        path.write_bytes(start + b"\n".join(map(to_bytes, lines)))
        return path

    return _write


def refusal(path: str | Path) -> str:
    """The message of the InputError, which must be one line."""
    with pytest.raises(InputError) as caught:
        read_manifest(path)
    message = str(caught.value)
    assert message.splitlines() == [message]
    return message


def test_reads_in_order_with_blank_lines_bom_and_crlf(write: Write) -> None:
    lines = ["", json.dumps(GOOD | {"id": "b"}) + "\r", "  \r", json.dumps(GOOD | {"id": "a"}), ""]
    path = write(*lines, start=b"\xef\xbb\xbf")
    assert [sample.id for sample in read_manifest(path)] == ["b", "a"]


def test_every_key_is_read(write: Write, tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"x")
    values = GOOD | {
        "audio": "x.wav",
        "target": "hallo",
        "start": 1,
        "duration": 2.5,
        "task": "translation",
        "language": "de",
        "context": "A greeting.",
    }
    (sample,) = read_manifest(write(values))
    assert sample == Sample.model_validate(values | {"audio": tmp_path / "x.wav"})


def test_line_separators_inside_strings_are_kept(write: Write) -> None:
    text = "one\u2028two\u0085three"
    (sample,) = read_manifest(write(json.dumps(GOOD | {"text": text}, ensure_ascii=False)))
    assert sample.text == text


def test_null_equals_a_missing_key(write: Write) -> None:
    (sample,) = read_manifest(write(GOOD | {"start": None, "duration": None, "audio": None}))
    assert (sample.start, sample.duration, sample.audio) == (0.0, None, None)


def test_relative_audio_paths_start_at_the_manifest(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "flac").mkdir()
    (tmp_path / "flac" / "x.flac").write_bytes(b"x")
    write(GOOD | {"audio": "flac/x.flac"})
    monkeypatch.chdir(tmp_path)
    (sample,) = read_manifest("manifest.jsonl")
    monkeypatch.chdir(tmp_path.parent)
    assert sample.audio == tmp_path / "flac" / "x.flac"


def test_absolute_audio_paths_may_be_outside_the_folder(write: Write, tmp_path_factory: pytest.TempPathFactory) -> None:
    audio = tmp_path_factory.mktemp("elsewhere") / "x.wav"
    audio.write_bytes(b"x")
    (sample,) = read_manifest(write(GOOD | {"audio": str(audio)}))
    assert sample.audio == audio


def test_name_with_a_colon_can_be_written_with_a_leading_dot(write: Write, tmp_path: Path) -> None:
    (tmp_path / "take:1.wav").write_bytes(b"x")
    (sample,) = read_manifest(write(GOOD | {"audio": "./take:1.wav"}))
    assert sample.audio == tmp_path / "take:1.wav"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{not json}", "is not JSON"),
        ('{"id": "x"', "is not JSON"),
        ("[" * 100_000, "too deep"),
        ('{"id": "x", "start": ' + "9" * 5000 + "}", "too long"),
        (
            '{"id": "x", "instruction": "i", "text": "t", "text": "u"}',
            "the key 'text' is there twice; keep one",
        ),
        ('{"id": "x"}'.encode("utf-16-le"), "UTF-16 does; save the manifest as UTF-8"),
        (GOOD | {"audio": "~/x.wav"}, "~ is not read as the home folder here, write the path in full"),
        ("[1, 2]", "is a JSON list"),
        ('"text"', "is a JSON str"),
        (b'{"id": "\xff"}', "byte 9 is not UTF-8"),
        ({"instruction": "Repeat.", "text": "hello"}, "'id' is missing"),
        ({"id": "x", "text": "hello"}, "sample 'x': 'instruction' is missing"),
        ({"id": "x", "instruction": "Repeat."}, "sample 'x': names neither 'audio' nor 'text'"),
        (GOOD | {"id": ""}, "'id' is empty or blank"),
        (GOOD | {"id": 5}, "'id' is 5, which is not text; put it in quotes"),
        (GOOD | {"instruction": "  "}, "'instruction' is empty or blank"),
        (GOOD | {"text": ""}, "'text' is empty or blank"),
        (GOOD | {"text": "\ud800"}, "'text' holds an unpaired surrogate"),
        (GOOD | {"start": -1}, "'start' is -1; input should be greater than or equal to 0"),
        (GOOD | {"start": "x\n" * 99}, "'start' is 'x\\nx\\n"),
        ('{"id": "x", "instruction": "i", "text": "t", "start": NaN}', "'start' is nan"),
        ('{"id": "x", "instruction": "i", "text": "t", "duration": Infinity}', "'duration' is inf"),
        (GOOD | {"duration": 0}, "'duration' is 0; input should be greater than 0"),
        (GOOD | {"audio": "absent.wav"}, "absent.wav does not exist"),
        (GOOD | {"audio": "ab\nsent.wav"}, "does not exist"),
        (GOOD | {"audio": "x" * 5000}, "cannot be read"),
        (GOOD | {"audio": "."}, "is a directory"),
        (GOOD | {"audio": "/dev/zero"}, "is a pipe, socket or device"),
        (GOOD | {"audio": {"type": "command", "source": "touch owned"}}, "must be a plain path"),
        (GOOD | {"audio": ["x.wav"]}, "must be a plain path"),
        (GOOD | {"audio": "touch owned |"}, "is a command (pipe)"),
        (GOOD | {"audio": "| touch owned"}, "is a command (pipe)"),
        (GOOD | {"audio": "https://example.org/x.wav"}, "is a URL"),
        (GOOD | {"audio": "file:x.wav"}, "is a URL"),
    ],
)
def test_bad_line_is_named_with_its_number(
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: dict[str, Any] | str | bytes,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(GOOD | {"id": "first"}, "", line, GOOD | {"id": "last"})
    message = refusal(path)
    assert message.startswith(f"{path}, line 3: ")
    assert expected in message
    assert "more)" not in message
    assert not (tmp_path / "owned").exists()


def test_a_gzip_manifest_is_read_and_other_compression_refused(write: Write, tmp_path: Path) -> None:
    content = write(GOOD, GOOD | {"id": "second"}).read_bytes()
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n")))
    assert [sample.id for sample in read_manifest(packed)] == ["good", "second"]
    packed.write_bytes(gzip.compress(content)[:-12])
    assert f"manifest {packed} cannot be read" in refusal(packed)
    packed.write_bytes(lzma.compress(content))
    assert "is packed with xz: unpack it, or pack it with gzip" in refusal(packed)


@pytest.mark.parametrize(("written", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_file_name_in_another_unicode_normal_form_is_found(
    write: Write, tmp_path: Path, written: Literal["NFC", "NFD"], on_disk: Literal["NFC", "NFD"]
) -> None:
    file = tmp_path / unicodedata.normalize(on_disk, "dör") / unicodedata.normalize(on_disk, "é.wav")
    file.parent.mkdir()
    file.write_bytes(b"x")
    (sample,) = read_manifest(write(GOOD | {"audio": unicodedata.normalize(written, "dör/é.wav")}))
    assert sample.audio is not None
    assert sample.audio.read_bytes() == b"x"


def test_fifo_as_audio_does_not_block(write: Write, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wav")
    assert "line 1: sample 'good': audio" in refusal(write(GOOD | {"audio": "fifo.wav"}))


def test_duplicate_id_names_both_lines(write: Write) -> None:
    message = refusal(write(GOOD, "", GOOD | {"id": "other"}, GOOD))
    assert "line 4: sample 'good'" in message
    assert "line 1 has the same id" in message


@pytest.mark.parametrize(("bad", "expected"), [(1, "(and 1 more)"), (3, "(and 3 more)")])
def test_further_bad_lines_are_counted(write: Write, bad: int, expected: str) -> None:
    message = refusal(write(GOOD, "{}", *["nonsense"] * bad))
    assert "line 2: 'id' is missing" in message
    assert message.endswith(expected)


def test_unusable_manifests_are_refused(tmp_path: Path, write: Write) -> None:
    absent = tmp_path / "absent.jsonl"
    assert refusal(absent) == f"manifest {absent} does not exist; check the path"
    assert "is a directory" in refusal(tmp_path)
    assert "holds no usable sample" in refusal(write())
    assert "holds no usable sample" in refusal(write("", "  ", ""))
    assert "line 1: byte 1 is not UTF-8" in refusal(write(json.dumps(GOOD).encode("utf-16")))
    os.mkfifo(tmp_path / "fifo")
    assert "is a pipe" in refusal(tmp_path / "fifo")
    assert "NUL" in refusal("a\0b") or "null" in refusal("a\0b")
    assert "does not exist" in refusal(tmp_path / "line\nbreak")


def test_unknown_keys_are_named_in_one_warning(write: Write) -> None:
    path = write(GOOD, GOOD | {"id": "b", "speaker": 1}, GOOD | {"id": "c", "speaker": 2, "emotion": "x"})
    with pytest.warns(UserWarning, match="unknown keys") as caught:
        samples = read_manifest(path)
    (warning,) = caught
    assert f"{path}: unknown keys are left out: 'emotion' (line 3), 'speaker' (line 2)" in str(warning.message)
    assert warning.filename == __file__
    assert len(samples) == 3


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            {"id": "x", "prompt": "Repeat.", "text": "hello"},
            "sample 'x': 'instruction' is missing; add it (unknown keys of this line: 'prompt')",
        ),
        (
            {"id": "x", "instruction": "Repeat.", "wav": "x.wav", "speaker": 1},
            "names neither 'audio' nor 'text'; give one of them (unknown keys of this line: 'speaker', 'wav')",
        ),
        (
            {"id": "x", "text": "hello", **dict.fromkeys("abcdefgh", "Repeat.")},
            "add it (unknown keys of this line: 'a', 'b', 'c', 'd', 'e' and 3 more)",
        ),
        ({"id": "x", "instruction": "Repeat.", "text": " ", "wav": "x.wav"}, "or leave the key out"),
    ],
)
def test_a_line_with_a_missing_key_names_its_unknown_keys(write: Write, line: dict[str, Any], expected: str) -> None:
    assert refusal(write(GOOD, line)).endswith(expected)


def test_ten_lines_with_the_same_mistake_are_reported_in_one_line(write: Write) -> None:
    path = write(*({"id": str(i), "prompt": "Repeat.", "text": "hello"} for i in range(10)))
    mistake = "sample '0': 'instruction' is missing; add it (unknown keys of this line: 'prompt')"
    assert refusal(path) == f"{path}, line 1: {mistake} (and 9 more)"


def test_known_keys_do_not_warn(write: Write) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_manifest(write(GOOD))


@pytest.mark.parametrize("name", BUILTIN_SETS)
def test_builtin_data_is_found_by_name(name: str) -> None:
    samples = read_manifest(f"builtin:{name}")
    assert all(sample.audio and sample.text and sample.target and sample.task for sample in samples)
    assert len({sample.id for sample in samples}) == len(samples) >= 24


def test_an_unknown_builtin_name_is_refused() -> None:
    message = refusal("builtin:probes")
    assert "builtin:probes is not built in; use one of builtin:probe, builtin:commands, or the path of" in message


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    """A folder with a manifest of two instructions for one audio file."""
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "x.wav").write_bytes(b"sound")
    lines = [{"id": i, "instruction": i, "audio": "x.wav", "text": "hello", "start": 0.5} for i in ("a", "b")]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def test_fingerprint_does_not_depend_on_the_folder(spoken: Path, tmp_path: Path) -> None:
    before = fingerprint(read_manifest(spoken / "manifest.jsonl"))
    assert len(before) == 64
    moved = shutil.copytree(spoken, tmp_path / "two")
    (moved / "x.wav").rename(moved / "renamed.wav")
    text = (moved / "manifest.jsonl").read_text().replace("x.wav", "renamed.wav")
    (moved / "manifest.jsonl").write_text(text)
    assert fingerprint(read_manifest(moved / "manifest.jsonl")) == before


def test_fingerprint_depends_on_the_content(spoken: Path) -> None:
    first, second = read_manifest(spoken / "manifest.jsonl")
    seen = {fingerprint([first, second]), fingerprint([second, first]), fingerprint([first])}
    changes: list[dict[str, Any]] = [
        {"id": "c"},
        {"instruction": "Other."},
        {"text": "other"},
        {"text": None},
        {"target": "other"},
        {"alternatives": ("other",)},
        {"context": "other"},
        {"start": 0.25},
        {"duration": 1.0},
        {"audio": None},
    ]
    for change in changes:
        seen.add(fingerprint([first.model_copy(update=change), second]))
    (spoken / "x.wav").write_bytes(b"Sound")
    seen.add(fingerprint([first, second]))
    assert len(seen) == 3 + len(changes) + 1


def test_fingerprint_of_a_missing_file_names_the_sample(spoken: Path) -> None:
    samples = read_manifest(spoken / "manifest.jsonl")
    (spoken / "x.wav").unlink()
    with pytest.raises(InputError, match=r"sample 'a': audio .*x\.wav does not exist"):
        fingerprint(samples)


def test_bad_lines_can_be_skipped_and_are_counted(write: Write) -> None:
    path = write(GOOD, "{", GOOD | {"id": "b"}, GOOD, GOOD | {"id": "c", "text": ""})
    with pytest.warns(UserWarning, match="left out 3: .*, line 2: is not JSON") as caught:
        samples = read_manifest(path, on_error="skip")
    assert [sample.id for sample in samples] == ["good", "b"]
    assert "(and 2 more)" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_no_usable_sample_is_an_error_even_when_skipping(write: Write) -> None:
    with pytest.warns(UserWarning, match="left out 1"), pytest.raises(InputError, match="holds no usable sample"):
        read_manifest(write("{"), on_error="skip")


def test_every_problem_is_found_in_one_reading(write: Write) -> None:
    path, problems = write("{", GOOD, GOOD, {"id": "x"}), Problems()
    assert [sample.id for _, sample in scan_manifest(path, problems)] == ["good"]
    assert [line.split(":")[0].rpartition(" ")[2] for line in problems.found] == ["1", "3", "4"]


def test_written_samples_are_read_back_unchanged(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    inside, outside = tmp_path / "in" / "a b.wav", tmp_path / "é.wav"
    for audio in (inside, outside):
        audio.write_bytes(b"x")
    samples = [
        Sample(id="a", instruction="Say\nit.", audio=inside, start=1.5, duration=2.0, target="这是。", task="t"),
        Sample(id="b", instruction="Say it.", audio=outside, text="x\u2028y", language="de", context="c"),
        Sample(id="c", instruction="Say it.", text="only"),
    ]
    with manifest_writer(tmp_path / "in" / "m.jsonl") as write_sample:
        for sample in samples:
            write_sample(sample)
    assert read_manifest(tmp_path / "in" / "m.jsonl") == samples
    # The folder can be moved: paths inside it are relative.
    assert '"audio": "./a b.wav"' in (tmp_path / "in" / "m.jsonl").read_text(encoding="utf-8")


def test_an_error_while_writing_leaves_the_old_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("old")

    def write_one_and_fail() -> None:
        with manifest_writer(path) as write_sample:
            write_sample(Sample(id="a", instruction="x", text="y"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_one_and_fail()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.jsonl"]
