"""What a Sample accepts, and which samples share an utterance."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from lsm_probe.data.sample import Sample


def test_optional_fields_have_defaults() -> None:
    sample = Sample(id="a", instruction="Repeat.", text="hello")
    assert sample.audio is None
    assert sample.start == 0
    assert (sample.target, sample.duration, sample.task, sample.language, sample.context) == (None,) * 5


def test_a_sample_is_immutable() -> None:
    sample = Sample(id="a", instruction="Repeat.", text="hello")
    with pytest.raises(ValidationError):
        sample.id = "b"


def test_audio_becomes_a_path() -> None:
    assert Sample.model_validate({"id": "a", "instruction": "Repeat.", "audio": "x.wav"}).audio == Path("x.wav")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "empty or blank"),
        ({"id": 5}, "valid string"),
        ({"instruction": " \t"}, "empty or blank"),
        ({"text": ""}, "empty or blank"),
        ({"text": None}, "neither 'audio' nor 'text'"),
        ({"text": "\ud800"}, "surrogate"),
        ({"start": -0.1}, "greater than or equal to 0"),
        ({"start": float("nan")}, "finite"),
        ({"start": True}, "valid number"),
        ({"start": "1"}, "valid number"),
        ({"start": 10**400}, "valid number"),
        ({"duration": 0.0}, "greater than 0"),
        ({"duration": -1.0}, "greater than 0"),
        ({"duration": float("inf")}, "finite"),
        ({"audio": ""}, "empty or blank"),
        ({"audio": 7}, "plain path"),
        ({"audio": {"type": "command", "source": "touch owned"}}, "plain path"),
        ({"audio": ["x.wav"]}, "plain path"),
        ({"audio": "https://example.org/x.wav"}, "URL"),
        ({"audio": "file:///tmp/x.wav"}, "URL"),
        ({"audio": "s3://bucket/x.wav"}, "URL"),
        ({"audio": " pipe:cat x.wav"}, "URL"),
        ({"audio": Path("https://example.org/x.wav")}, "URL"),
        ({"audio": "cat x.wav |"}, "pipe"),
        ({"audio": "| cat x.wav"}, "pipe"),
        ({"audio": "a\0.wav"}, "NUL"),
        ({"unheard_of": 1}, "not permitted"),
    ],
)
def test_invalid_values_are_refused(change: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"id": "a", "instruction": "Repeat.", "text": "hello"}
    with pytest.raises(ValidationError, match=message):
        Sample.model_validate(values | change)


@pytest.mark.parametrize("audio", ["x.wav", "a|b.wav", "C:\\speech\\x.wav", "2024-01-01T10:00.wav", "ä ö/x.wav"])
def test_unusual_paths_are_accepted(audio: str) -> None:
    assert Sample.model_validate({"id": "a", "instruction": "Repeat.", "audio": audio}).audio == Path(audio)


def test_utterance_is_the_section_of_the_file(tmp_path: Path) -> None:
    def key(name: str, **more: float | str) -> str:
        return Sample.model_validate({"id": name, "instruction": name, "audio": tmp_path / "x.wav"} | more).utterance

    assert key("a") == key("b")
    assert key("a") == key("b", text="the transcript does not matter")
    assert key("a") == key("a", audio=str(tmp_path / "sub" / ".." / "x.wav"))
    assert len({key("a"), key("a", start=1.0), key("a", duration=1.0), key("a", audio=str(tmp_path / "y"))}) == 4


def test_utterance_without_audio_is_the_text() -> None:
    one = Sample(id="a", instruction="Repeat.", text="hello")
    assert one.utterance == Sample(id="b", instruction="Translate.", text="hello").utterance
    assert one.utterance != Sample(id="a", instruction="Repeat.", text="goodbye").utterance


def test_utterance_does_not_contain_the_path(tmp_path: Path) -> None:
    assert tmp_path.name not in Sample(id="a", instruction="Repeat.", audio=tmp_path / "x.wav").utterance


def test_importing_the_manifest_module_does_not_import_numpy_or_torch() -> None:
    code = "import sys, lsm_probe.data.manifest; print({'numpy', 'soundfile', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
