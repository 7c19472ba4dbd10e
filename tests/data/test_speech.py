"""Speech synthesis into a folder: deterministic, resumable, no partial files, and safe file names."""

import errno
import io
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lsm_probe.data import speech
from lsm_probe.data.problems import Problems
from lsm_probe.data.speech import RATE, SpeechSettings, synthesize, texts_sha256
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError

TEXTS = ["Yes.", "No, not yet.", "Maybe so.", "Of course."]


def utterances_of(*texts):
    return [Utterance(id=f"s{i}", split="", text=text) for i, text in enumerate(texts)]


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def tones(monkeypatch):
    """A fast voice: a tone for each character. Returns the list of texts that it was asked for."""
    asked = []

    def tone(text, voice, *, speed, seed):
        if not text.strip():
            raise InputError("no word to speak")
        asked.append(text)
        return np.sin(np.arange(2_400 * len(text)) / 9, dtype=np.float32) / speed, 24_000

    monkeypatch.setattr(speech, "synthesize_text", tone)
    return asked


def test_the_bytes_are_the_same_with_one_process_and_with_two(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "_CHUNK_SIZE", 2)
    utterances, settings = utterances_of(*TEXTS), SpeechSettings(speeds=(0.9, 1.1), seed=5)
    one = synthesize(utterances, tmp_path / "1", settings, workers=1, problems=Problems())
    two = synthesize(utterances[::-1], tmp_path / "2", settings, workers=2, problems=Problems())
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert len(contents(tmp_path / "1")) == len(TEXTS)
    assert [u.id for u in one.utterances] == [u.id for u in utterances]
    assert [u.id for u in two.utterances] == [u.id for u in utterances[::-1]]
    assert one.seconds == pytest.approx(two.seconds)
    for utterance in one.utterances:
        info = soundfile.info(utterance.audio)
        assert (info.samplerate, info.channels, info.subtype, info.format) == (16_000, 1, "PCM_16", "FLAC")
        assert 0.2 < info.duration < 3


def test_a_draw_depends_on_seed_and_id_only():
    settings = SpeechSettings(voices=("hibari:heart",), speeds=(0.8, 1.0, 1.2), seed=1)
    chosen = [settings.choose(f"s{i}") for i in range(300)]
    assert chosen == [settings.choose(f"s{i}") for i in range(300)]
    assert {speed for _, speed, _ in chosen} == {0.8, 1.0, 1.2}
    assert min(sum(speed == s for _, speed, _ in chosen) for s in settings.speeds) > 60
    assert len({seed for _, _, seed in chosen}) == 300
    assert chosen != [SpeechSettings(speeds=settings.speeds, seed=2).choose(f"s{i}") for i in range(300)]


@pytest.mark.parametrize("speed", [0, -1, 0.49, 2.01, float("nan"), float("inf")])
def test_a_speed_out_of_range_is_refused(speed):
    with pytest.raises(InputError, match="--speed"):
        SpeechSettings(speeds=(1.0, speed))


def test_an_unknown_voice_is_refused():
    with pytest.raises(InputError, match="--voice 'hibari:x'"):
        SpeechSettings(voices=("hibari:x",))


def test_existing_clips_are_not_synthesised_again(tmp_path, tones):
    first = synthesize(utterances_of(*TEXTS[:2]), tmp_path, SpeechSettings(), workers=1, problems=Problems())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.flac")}
    seen = []
    rest = {"workers": 1, "problems": Problems(), "on_progress": seen.append}
    both = synthesize(utterances_of(*TEXTS), tmp_path, SpeechSettings(), **rest)
    assert tones == TEXTS
    assert (first.new, first.already, both.new, both.already) == (2, 0, 2, 2)
    assert both.seconds == pytest.approx(0.1 * len("".join(TEXTS[2:])))
    assert seen == [3, 4]
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_partial_files_of_a_killed_run_are_removed(tmp_path, tones):
    (spoken,) = synthesize(utterances_of("Yes."), tmp_path, SpeechSettings(), workers=1, problems=Problems()).utterances
    leftover = spoken.audio.with_name(f".{spoken.audio.stem}.4711.flac")
    leftover.write_bytes(b"half")
    synthesize(utterances_of("Yes."), tmp_path, SpeechSettings(), workers=1, problems=Problems())
    assert not leftover.exists()
    assert spoken.audio.exists()


def test_a_text_that_cannot_be_synthesised_is_counted(tmp_path, tones):
    problems = Problems()
    spoken = synthesize(utterances_of("Yes.", "", "No.", " "), tmp_path, SpeechSettings(), workers=1, problems=problems)
    assert [u.id for u in spoken.utterances] == ["s0", "s2"]
    assert [line.split(": ")[0] for line in problems.found] == ["s1", "s3"]
    assert len(contents(tmp_path)) == 2


NASTY = ["a/b", "../../up", "..", ".", "/etc/passwd", "nul\0byte", "x" * 1_000, "x" * 1_001, "Case", "case", "CASE"]
NASTY += ["é", "e\u0301", "日本", "con", "a b", "a\nb", "-h", " ", "a:b", "a.flac", ".a.1.flac"]


def test_every_id_gets_its_own_file_inside_the_folder(tmp_path, tones):
    utterances = [Utterance(id=name, split=split, text="Yes.") for name in NASTY for split in ("", "b")]
    spoken = synthesize(utterances, tmp_path / "in", SpeechSettings(), workers=1, problems=Problems())
    names = [str(u.audio.relative_to(tmp_path / "in")) for u in spoken.utterances]
    assert len({name.lower() for name in names}) == len(utterances)
    assert all(len(Path(name).name) < 100 and name.isascii() and ".." not in name for name in names)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}
    assert len(contents(tmp_path / "in")) == len(utterances)


def test_a_duplicate_id_is_a_problem(tmp_path, tones):
    problems = Problems()
    utterances = [Utterance(id="a", split="x", text=text) for text in ("Yes.", "No.")]
    made = synthesize(utterances, tmp_path, SpeechSettings(), workers=1, problems=problems).utterances
    assert [u.text for u in made] == ["Yes."]
    assert problems.found == ["x, a: an earlier utterance has the same id"]


def test_a_full_disk_is_reported_and_leaves_no_partial_file(tmp_path, tones, monkeypatch):
    write = Path.write_bytes

    def full(path, content):
        if len(tones) == 3:
            write(path, content[:50])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError) as caught:
            synthesize(utterances_of(*TEXTS), tmp_path, SpeechSettings(), workers=1, problems=Problems())
    assert caught.value.errno == errno.ENOSPC
    assert len(contents(tmp_path)) == 2
    spoken = synthesize(utterances_of(*TEXTS), tmp_path, SpeechSettings(), workers=1, problems=Problems())
    assert (spoken.new, spoken.already) == (2, 2)
    assert all(soundfile.read(u.audio)[0].size for u in spoken.utterances)


def test_audio_above_full_scale_is_scaled_and_not_clipped(tmp_path, monkeypatch):
    square = np.where(np.arange(24_000) // 60 % 2, 1.0, -1.0).astype(np.float32)  # overshoots when resampled
    monkeypatch.setattr(speech, "synthesize_text", lambda *args, **kwargs: (square, 24_000))
    (loud,) = synthesize(utterances_of("Loud."), tmp_path, SpeechSettings(), workers=1, problems=Problems()).utterances
    samples, rate = soundfile.read(loud.audio, dtype="int16")
    assert rate == RATE
    assert np.abs(samples.astype(int)).max() == 32_767
    assert (np.abs(samples.astype(int)) == 32_767).sum() < 10


def test_the_digest_of_the_texts_changes_with_every_edit():
    texts = utterances_of(*TEXTS)
    others = [
        texts[::-1],
        texts[:3],
        utterances_of("Yes", *TEXTS[1:]),
        [Utterance(id="x", split="", text="Yes."), *texts[1:]],
    ]
    assert len({texts_sha256(t) for t in [texts, *others]}) == 5
    assert texts_sha256(utterances_of(*TEXTS)) == texts_sha256(texts)


def test_a_flac_in_memory_equals_the_file(tmp_path):
    samples = (np.sin(np.arange(16_000) / 9) * 20_000).astype(np.int16)
    memory = io.BytesIO()
    soundfile.write(memory, samples, RATE, format="FLAC", subtype="PCM_16")
    soundfile.write(tmp_path / "a.flac", samples, RATE, subtype="PCM_16")
    assert memory.getvalue() == (tmp_path / "a.flac").read_bytes()


def test_a_killed_worker_is_reported_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(speech, "_CHUNK_SIZE", 1)
    monkeypatch.setattr(speech, "_initialize_worker", partial(os._exit, 9))
    with pytest.raises(InputError, match="fewer --workers"):
        synthesize(utterances_of("Yes.", "No."), tmp_path, SpeechSettings(), workers=2, problems=Problems())
