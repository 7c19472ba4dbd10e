"""Voices: synthesis is deterministic, and a text is never read as an option, a file or a command."""

import shutil

import numpy as np
import pytest

from lsm_probe.data import voices
from lsm_probe.data.voices import MAX_CHARACTERS, available_voices, synthesize_text
from lsm_probe.errors import InputError

flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
EVERY = ["hibari:heart", pytest.param("flite:slt", marks=flite)]


def test_the_neural_voice_is_available():
    assert "hibari:heart" in available_voices()


@flite
def test_the_flite_voice_for_clock_times_is_not_offered():
    assert "flite:slt" in available_voices()
    assert "flite:awb_time" not in available_voices()


@pytest.mark.parametrize("voice", EVERY)
def test_synthesis_is_deterministic(voice):
    samples, rate = synthesize_text("The kettle is on.", voice, seed=1)
    again, _ = synthesize_text("The kettle is on.", voice, seed=1)
    assert samples.dtype == np.float32
    assert samples.ndim == 1
    assert 0.5 < len(samples) / rate < 3
    np.testing.assert_array_equal(samples, again)


@pytest.mark.parametrize("voice", EVERY)
def test_a_higher_speed_gives_shorter_audio(voice):
    slow, fast = (len(synthesize_text("The kettle is on the stove.", voice, speed=speed)[0]) for speed in (0.8, 1.6))
    assert fast == pytest.approx(slow / 2, rel=0.25)


@pytest.mark.parametrize("voice", EVERY)
@pytest.mark.parametrize(
    "text", ["-h", "--version", "-t", "-voice kal", "/etc/passwd", "$(touch x)", "; touch x", "a\0b"]
)
def test_a_text_is_never_read_as_an_option_or_file(voice, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "-").write_text("Another text, and one that takes much longer to be spoken than the first.")
    samples, rate = synthesize_text(text, voice)
    assert 0.3 < len(samples) / rate < 4
    assert [path.name for path in tmp_path.iterdir()] == ["-"]


@flite
def test_a_text_equal_to_a_file_name_is_spoken_literally(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    absent = synthesize_text("notes", "flite:kal16")[0]
    (tmp_path / "notes").write_text("This is a long text about something else altogether.")
    np.testing.assert_array_equal(synthesize_text("notes", "flite:kal16")[0], absent)


@pytest.mark.parametrize("voice", EVERY)
@pytest.mark.parametrize(
    "text", ["", " \n", "…", "?!", "@#$%", "\0", "🙂", "你好", "Hello Привет", "word " * MAX_CHARACTERS]
)
def test_texts_that_cannot_be_spoken_are_refused_in_one_line(voice, text):
    with pytest.raises(InputError) as caught:
        synthesize_text(text, voice)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("text", ["①x", "9" * 38])
def test_numbers_that_hibari_cannot_read_are_refused(text):
    with pytest.raises(InputError, match="hibari:heart cannot read"):
        synthesize_text(text, "hibari:heart")


@flite
def test_flite_reads_letters_with_accents_and_curly_quotes():
    accented, plain = (synthesize_text(text, "flite:kal16")[0] for text in ("Café, don’t!", "Cafe, don't!"))
    np.testing.assert_array_equal(accented, plain)


@flite
def test_an_error_of_flite_is_reported_in_one_line(monkeypatch, tmp_path):
    program = tmp_path / "flite"
    program.write_text('#!/bin/sh\n[ "$1" = -lv ] && echo "Voices available: slt" || echo "no room" >&2\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(InputError, match=r"flite cannot speak 'Hello' \(no room"):
        synthesize_text("Hello", "flite:slt")


@pytest.mark.parametrize(
    "voice", ["hibari", "hibari:emma", "flite:/etc/passwd", "flite:awb_time", "espeak:en", "", "a\nb"]
)
def test_an_unknown_voice_error_lists_the_available_voices(voice):
    with pytest.raises(InputError, match="hibari:heart") as caught:
        synthesize_text("Hello.", voice)
    assert "apt-get install flite" in str(caught.value)


def test_without_flite_and_hibari_no_voice_is_available(monkeypatch):
    monkeypatch.setattr(voices, "find_spec", lambda name: None)
    monkeypatch.setattr(voices, "_flite_voices", list)
    assert available_voices() == []
    with pytest.raises(InputError, match="available: none"):
        synthesize_text("Hello.", "hibari:heart")


@flite
def test_flite_keeps_the_sampling_rate_of_the_voice():
    assert synthesize_text("Hello.", "flite:kal")[1] == 8_000
    assert synthesize_text("Hello.", "flite:slt")[1] == 16_000
