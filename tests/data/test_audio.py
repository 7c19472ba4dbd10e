"""Reading audio: conversion keeps the signal; damaged files and false headers are refused in one line."""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from lsm_probe.data.audio import read_audio, read_audio_file
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError


def sine(frequency: float, seconds: float, rate: int, amplitude: float = 0.5) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    drawn = 0.1 * np.random.default_rng(0).normal(size=(round(seconds * rate), channels))
    return drawn.astype(np.float32).clip(-1, 1)


def measure(audio: np.ndarray, rate: int) -> tuple[float, float]:
    """Frequency (Hz) and amplitude of the strongest partial, from a windowed spectrum of the middle half."""
    middle = audio[len(audio) // 4 : -len(audio) // 4]
    window = np.hanning(len(middle))
    spectrum = np.abs(np.fft.rfft(middle * window))
    peak = int(spectrum.argmax())
    return peak * rate / len(middle), 2 * float(spectrum[peak]) / float(window.sum())


def flac_bomb(frames: int, size: int = 132, rate: int = 16_000) -> bytes:
    """A FLAC of `size` bytes whose header claims `frames` mono 16-bit frames but which has none."""
    claim = rate << 44 | 0 << 41 | 15 << 36 | frames
    info = b"\x10\x00\x10\x00" + bytes(6) + claim.to_bytes(8, "big") + bytes(16)
    return (b"fLaC\x80\x00\x00\x22" + info + b"\xff\xf8").ljust(size, b"\0")


def refusal(path: Path, start: float = 0.0, duration: float | None = None) -> str:
    """The message of the InputError: one line that names sample and file."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a refusal is an error without warnings
        with pytest.raises(InputError) as caught:
            read_audio(Sample(id="s1", instruction="Repeat.", audio=path, start=start, duration=duration))
    message = str(caught.value)
    assert message.splitlines() == [message]
    assert message.startswith(f"sample 's1': {path}")
    return message


# Conversion


@pytest.mark.parametrize("rate", [1_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 384_000])
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_resampling_keeps_a_tone_at_any_rate_and_channel_count(tmp_path: Path, rate: int, channels: int) -> None:
    tone = sine(200, 2, rate)
    soundfile.write(tmp_path / "x.wav", np.tile(tone[:, None], channels), rate, subtype="FLOAT")
    audio = read_audio_file(tmp_path / "x.wav")
    assert audio.dtype == np.float32
    assert audio.shape == (32_000,)
    frequency, amplitude = measure(audio, 16_000)
    assert frequency == pytest.approx(200, abs=0.5)
    assert amplitude == pytest.approx(0.5, rel=1e-3)


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = sine(440, 1, 44_100, 0.8), sine(1_000, 1, 44_100, 0.2)
    soundfile.write(tmp_path / "x.flac", np.stack([left, right], axis=1), 44_100)
    spectrum = np.abs(np.fft.rfft(read_audio_file(tmp_path / "x.flac") * np.hanning(16_000))) * 4 / 16_000
    assert spectrum[440] == pytest.approx(0.4, rel=1e-2)
    assert spectrum[1_000] == pytest.approx(0.1, rel=1e-2)


def test_same_rate_is_bit_exact(tmp_path: Path) -> None:
    whole = noise(1, 16_000)[:, 0]
    soundfile.write(tmp_path / "x.wav", whole, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio_file(tmp_path / "x.wav"), whole)


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_reading_in_blocks_equals_resampling_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int
) -> None:
    stereo = noise(1.3, rate, channels=2)
    soundfile.write(tmp_path / "x.wav", stereo, rate, subtype="FLOAT")
    expected = soxr.resample(stereo.mean(axis=1), rate, 16_000, quality="HQ")
    monkeypatch.setattr("lsm_probe.data.audio._BLOCK_VALUES", 1_000)
    audio = read_audio_file(tmp_path / "x.wav")
    assert audio.shape == expected.shape
    np.testing.assert_allclose(audio, expected, atol=1e-6)


FORMATS = [
    ("x.wav", "PCM_16"),
    ("x.wav", "GSM610"),  # cannot seek
    ("x.wav", "IMA_ADPCM"),
    ("x.flac", "PCM_24"),
    ("x.ogg", "VORBIS"),
    ("x.ogg", "OPUS"),
    ("x.mp3", "MPEG_LAYER_III"),  # seeks, but not exactly
    ("x.aiff", "PCM_16"),
    ("x.w64", "PCM_16"),
    ("x.rf64", "PCM_16"),
]


@pytest.mark.parametrize(("name", "subtype"), FORMATS)
def test_section_equals_the_slice_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, subtype: str
) -> None:
    monkeypatch.setattr("lsm_probe.data.audio._BLOCK_VALUES", 5_000)
    path = tmp_path / name
    soundfile.write(path, sine(440, 3, 16_000) + noise(3, 16_000)[:, 0], 16_000, subtype=subtype)
    whole = read_audio_file(path)
    in_one_read, _ = soundfile.read(path, frames=10**6, dtype="float32")
    np.testing.assert_allclose(whole, in_one_read, atol=1e-6)
    np.testing.assert_allclose(read_audio_file(path, 1.25, 0.5), whole[20_000:28_000], atol=1e-6)
    np.testing.assert_allclose(read_audio_file(path, start=2.0), whole[32_000:], atol=1e-6)
    np.testing.assert_allclose(read_audio_file(path, duration=0.1), whole[:1_600], atol=1e-6)


def test_section_of_a_resampled_file_equals_the_slice_of_the_whole(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", noise(3, 44_100), 44_100)
    section = read_audio_file(tmp_path / "x.wav", 1.0, 1.0)
    whole = read_audio_file(tmp_path / "x.wav")[16_000:32_000]
    assert section.shape == whole.shape
    # The resampler's filter extends beyond the edges, where a section lacks the neighbouring samples.
    np.testing.assert_allclose(section[200:-200], whole[200:-200], atol=1e-4)


def test_section_slightly_beyond_the_end_is_cut_to_the_file(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", sine(440, 1, 16_000)[:15_995], 16_000)
    assert len(read_audio_file(tmp_path / "x.wav", 0.5, 0.5)) == 7_995


def untagged_mp3(path: Path) -> None:
    """11 s, of which libsndfile estimates the length from the bit rate, 419 frames above what decodes."""
    soundfile.write(path, noise(11, 44_100), 44_100, bitrate_mode="CONSTANT", compression_level=0.5)
    raw = path.read_bytes()
    path.write_bytes(raw[raw.index(raw[:2], 4) :])


def test_section_after_the_end_of_an_mp3_without_a_length_tag_is_refused(tmp_path: Path) -> None:
    untagged_mp3(tmp_path / "x.mp3")
    assert len(read_audio_file(tmp_path / "x.mp3")) == pytest.approx(11 * 16_000, rel=0.01)
    estimate = soundfile.info(tmp_path / "x.mp3").duration
    assert "outside the file's" in refusal(tmp_path / "x.mp3", start=estimate - 0.001)


def test_symlink_to_a_file_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", sine(440, 1, 16_000), 16_000)
    (tmp_path / "link.wav").symlink_to(tmp_path / "x.wav")
    assert len(read_audio_file(tmp_path / "link.wav")) == 16_000


def test_a_file_named_dash_is_not_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "x.wav", sine(440, 1, 16_000), 16_000)
    (tmp_path / "x.wav").rename(tmp_path / "-")
    monkeypatch.chdir(tmp_path)
    assert len(read_audio_file("-")) == 16_000


# Silence


@pytest.mark.parametrize("amplitude", [0.0, 0.9e-4])
def test_silence_is_returned_with_a_warning(tmp_path: Path, amplitude: float) -> None:
    soundfile.write(tmp_path / "x.wav", sine(440, 1, 16_000, amplitude), 16_000, subtype="FLOAT")
    with pytest.warns(UserWarning, match=r"sample 'a': .*x\.wav: is silent"):
        audio = read_audio(Sample(id="a", instruction="Repeat.", audio=tmp_path / "x.wav"))
    assert len(audio) == 16_000


def test_quiet_audio_is_not_reported_as_silence(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", sine(440, 1, 16_000, 1.1e-4), 16_000, subtype="FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_audio_file(tmp_path / "x.wav")


# Refusals


def test_a_sample_without_audio_is_refused() -> None:
    with pytest.raises(InputError, match="sample 'a': has no audio"):
        read_audio(Sample(id="a", instruction="Repeat.", text="hello"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.wav", b"", "is empty (0 bytes)"),
        ("x.wav", b"not sound at all" * 99, "cannot be decoded"),
        ("x.mp3", b"not sound at all" * 99, "cannot be decoded"),
        ("x.flac", bytes(1_000), "cannot be decoded"),
        ("x.raw", bytes(1_000), "has no header"),
        ("x.flac", flac_bomb(2**36 - 1), "claims 68719476735 frames, more than its 132 bytes can hold"),
        ("x.flac", flac_bomb(0), "cannot be decoded"),  # length unknown
        ("x.flac", flac_bomb(900_000), "claims 900000 frames"),
        ("x.flac", flac_bomb(800_000), "is truncated (0 of 800000 frames"),  # just possible in 132 bytes
        ("x.flac", flac_bomb(2**36 - 1, size=2**20), "more than its 1048576 bytes can hold"),
        ("x.flac", flac_bomb(2**32, size=2**20), "covers 268435 s, and the limit is 3600 s"),
    ],
)
def test_files_without_audio_are_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in refusal(tmp_path / name)


def test_missing_files_directories_fifos_and_devices_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.wav")
    assert "is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo.wav")
    assert "is a pipe" in refusal(tmp_path / "fifo.wav")
    assert "device" in refusal(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.aiff"])
def test_files_with_zero_frames_are_refused(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, np.zeros(0, np.float32), 16_000)
    message = refusal(tmp_path / name)
    assert name != "x.wav" or "holds no audio (0 frames)" in message


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["x.wav", "x.flac", "x.aiff", "x.au", "x.caf", "x.w64", "x.rf64", "x.ogg", "x.mp3"])
def test_truncated_files_are_refused(tmp_path: Path, name: str, kept: float) -> None:
    soundfile.write(tmp_path / name, noise(3, 16_000), 16_000)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(raw[: int(len(raw) * kept)])
    assert any(expected in refusal(tmp_path / name) for expected in ("is truncated", "cannot be decoded"))


@pytest.mark.parametrize("lost", [1, 2, 7])
def test_wav_that_lacks_a_few_bytes_is_refused(tmp_path: Path, lost: int) -> None:
    soundfile.write(tmp_path / "x.wav", noise(1, 16_000), 16_000)
    (tmp_path / "x.wav").write_bytes((tmp_path / "x.wav").read_bytes()[:-lost])
    assert f"is truncated ({32_000 - lost} of 32000 bytes" in refusal(tmp_path / "x.wav")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, value: float, subtype: str) -> None:
    audio = noise(1, 16_000, channels=2)
    audio[-1, 1] = value
    soundfile.write(tmp_path / "x.wav", audio, 16_000, subtype=subtype)
    assert "NaN or infinite" in refusal(tmp_path / "x.wav")


def test_infinities_that_cancel_between_channels_are_refused(tmp_path: Path) -> None:
    audio = np.tile(np.array([np.inf, -np.inf], np.float32), (99, 1))
    soundfile.write(tmp_path / "x.wav", audio, 16_000, subtype="FLOAT")
    assert "NaN or infinite" in refusal(tmp_path / "x.wav")


def test_doubles_beyond_float32_are_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.full(99, 1e300), 16_000, subtype="DOUBLE")
    assert "NaN or infinite" in refusal(tmp_path / "x.wav")


@pytest.mark.parametrize(
    ("peak", "advice"),
    [
        (28_000, "they look like 16-bit integers: divide them by 32768"),
        (5e6, "they look like 24-bit integers: divide them by 8388608"),
        (2e9, "they look like 32-bit integers: divide them by 2147483648"),
        (3e38, "bring them within -1 and 1"),
    ],
)
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_floats_scaled_as_integers_are_refused_with_advice(
    tmp_path: Path, peak: float, advice: str, subtype: str
) -> None:
    tone = sine(440, 1, 16_000, peak)
    soundfile.write(tmp_path / "x.wav", np.stack([tone, -tone], axis=1), 16_000, subtype=subtype)  # their mean is 0
    assert advice in refusal(tmp_path / "x.wav")


def test_floats_slightly_above_full_scale_are_read_unchanged(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", sine(440, 1, 16_000, 4), 16_000, subtype="FLOAT")
    assert np.abs(read_audio_file(tmp_path / "x.wav")).max() == pytest.approx(4, rel=1e-3)


@pytest.mark.parametrize("rate", [999, 384_001])
def test_rates_outside_the_range_are_refused(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "x.wav", noise(1, rate), rate)
    assert f"is sampled at {rate} Hz" in refusal(tmp_path / "x.wav")


@pytest.mark.parametrize(
    ("start", "duration", "expected"),
    [
        (1.0, None, "start is 1.0 s, outside the file's 1.000 s"),
        (1e308, None, "outside the file"),
        (5.0, 1.0, "outside the file"),
        (0.5, 0.6, "the section ends at 1.100 s, after the file's 1.000 s"),
        (0.0, 1.002, "after the file"),
        (0.0, 1e308, "after the file"),
        (0.5, 1e-9, "shorter than one frame"),
    ],
)
def test_sections_outside_the_file_are_refused(
    tmp_path: Path, start: float, duration: float | None, expected: str
) -> None:
    soundfile.write(tmp_path / "x.wav", noise(1, 16_000), 16_000)
    assert expected in refusal(tmp_path / "x.wav", start, duration)


@pytest.mark.parametrize(
    ("start", "duration"),
    [(np.nan, None), (-1.0, None), (0.0, np.nan), (0.0, 0.0), (0.0, -1.0), (0.0, np.inf)],
)
def test_invalid_sections_are_refused(tmp_path: Path, start: float, duration: float | None) -> None:
    soundfile.write(tmp_path / "x.wav", noise(1, 16_000), 16_000)
    with pytest.raises(InputError, match=r"x\.wav"):
        read_audio_file(tmp_path / "x.wav", start, duration)


def test_section_that_resamples_to_nothing_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", noise(1, 384_000), 384_000)
    assert "too short" in refusal(tmp_path / "x.wav", 0.5, 1 / 384_000)


def test_only_the_section_counts_against_the_limit(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.flac", np.tile(np.array([999, -999], np.int16), 1_801_000), 1_000)
    assert "covers 3602 s" in refusal(tmp_path / "x.flac")
    assert len(read_audio_file(tmp_path / "x.flac", start=3_600)) == 32_000


def test_line_break_in_the_file_name_stays_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "line\nbreak.wav"
    path.write_bytes(b"")
    with pytest.raises(InputError):
        read_audio_file(path)


# Peak memory


def long_flac(path: Path) -> None:
    """36 minutes of eight channels, truncated at the very end: 1.1 GB once decoded, under 1 MB as a file."""
    with soundfile.SoundFile(path, "w", 16_000, 8, format="FLAC") as file:
        minute = np.full((16_000 * 60, 8), 1_000, np.int16)
        for _ in range(36):
            file.write(minute)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    "build",
    [
        lambda path: path.write_bytes(flac_bomb(2**36 - 1)),
        lambda path: path.write_bytes(flac_bomb(16_000 * 3_600, size=2**20)),  # not beyond any limit
        long_flac,
    ],
    ids=["bomb", "bomb within the limits", "truncated dense file"],
)
def test_refusal_takes_less_than_a_gigabyte(tmp_path: Path, build: Callable[[Path], None]) -> None:
    path = tmp_path / "x.flac"
    build(path)
    code = f"""
import pathlib
from lsm_probe.data.audio import read_audio_file
from lsm_probe.errors import InputError
try:
    read_audio_file({str(path)!r})
except InputError:
    # Not ru_maxrss, which fork and exec carry over from the process that runs the tests.
    status = pathlib.Path("/proc/self/status").read_text()
    print(status.split("VmHWM:")[1].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 1_000_000_000
