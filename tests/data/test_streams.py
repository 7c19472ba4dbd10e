"""Audio is read to the end of the file, whatever the header claims and however many streams there are."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lsm_probe.data.audio import check_audio_file, read_audio_file
from lsm_probe.errors import InputError

RATE = 16_000


def noise(seconds: float, seed: int = 0, amplitude: float = 0.1) -> np.ndarray:
    drawn = amplitude * np.random.default_rng(seed).normal(size=round(seconds * RATE))
    return drawn.astype(np.float32).clip(-1, 1)


def encoded(audio: np.ndarray, kind: str, subtype: str | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, audio, RATE, format=kind, subtype=subtype, **options)
    return file.getvalue()


def with_field(content: bytes, at: int, field: bytes) -> bytes:
    return content[:at] + field + content[at + len(field) :]


def length(path: Path, content: bytes) -> int:
    """The number of samples read; reading, checking and sections must agree, without a warning."""
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return agreed_length(path)


def length_with_warning(path: Path, content: bytes, expected: str) -> int:
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=expected):
        return agreed_length(path)


def agreed_length(path: Path) -> int:
    whole = read_audio_file(path)
    assert check_audio_file(path) * RATE == pytest.approx(len(whole))
    begin = len(whole) - RATE // 2
    np.testing.assert_allclose(read_audio_file(path, start=begin / RATE), whole[begin:], atol=1e-6)
    return len(whole)


def refusal(path: Path, content: bytes) -> str:
    """The message of reading and checking, which must agree."""
    path.write_bytes(content)
    with pytest.raises(InputError) as checked:
        check_audio_file(path)
    with pytest.raises(InputError) as read:
        read_audio_file(path)
    assert str(read.value) == str(checked.value)
    return str(read.value)


# Several streams


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", None),
        ("FLAC", None),
        ("WAV", None),
        ("WAV", "FLOAT"),
        ("RF64", None),
        ("W64", None),
        ("AIFF", None),
        ("AU", None),
        ("CAF", None),
    ],
)
def test_concatenated_files_are_read_completely(tmp_path: Path, kind: str, subtype: str | None) -> None:
    contents = [encoded(noise(seconds, seed), kind, subtype) for seed, seconds in enumerate((1.0, 1.5, 0.75))]
    parts = []
    for content in contents:
        (tmp_path / "part").write_bytes(content)
        parts.append(read_audio_file(tmp_path / "part"))
    path = tmp_path / "whole"
    assert length(path, b"".join(contents)) == sum(map(len, parts)) == 3.25 * RATE
    np.testing.assert_array_equal(read_audio_file(path), np.concatenate(parts))
    over_a_joint = read_audio_file(path, 0.9, 1.7)
    np.testing.assert_allclose(over_a_joint, np.concatenate(parts)[round(0.9 * RATE) : round(2.6 * RATE)], atol=1e-6)


def test_concatenated_streams_of_different_rates_are_refused(tmp_path: Path) -> None:
    other = io.BytesIO()
    soundfile.write(other, noise(1), 8_000, format="OGG")
    message = refusal(tmp_path / "x.ogg", encoded(noise(1), "OGG") + other.getvalue())
    assert "streams of different rates (8000, 16000 Hz)" in message


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        *(("FLAC", "WAV", "RIFF"), ("MP3", "FLAC", "fLaC"), ("OGG", "FLAC", "fLaC"), ("FLAC", "OGG", "OggS")),
        *(("WAV", "FLAC", "fLaC"), ("WAV", "OGG", "OggS"), ("MP3", "AIFF", "FORM"), ("NIST", "NIST", "NIST_1A")),
    ],
)
def test_concatenated_files_of_different_formats_are_refused(
    tmp_path: Path, first: str, second: str, expected: str
) -> None:
    content = encoded(noise(1), first)
    assert f"holds a second sound file ({expected} at byte {len(content)})" in refusal(
        tmp_path / "x", content + encoded(noise(1, 1), second)
    )


def ogg_pages(content: bytes) -> list[bytes]:
    return [b"OggS" + page for page in content.split(b"OggS")[1:]]


def test_multiplexed_ogg_streams_are_refused(tmp_path: Path) -> None:
    first, *rest = ogg_pages(encoded(noise(1), "OGG"))
    other, *others = ogg_pages(encoded(noise(1, 1), "OGG"))
    assert "several streams side by side" in refusal(tmp_path / "x.ogg", b"".join([first, other, *rest, *others]))


def test_ogg_with_decreasing_positions_is_refused(tmp_path: Path) -> None:
    pages = ogg_pages(encoded(noise(30), "OGG"))
    pages[-1] = with_field(pages[-1], 6, struct.pack("<q", 100))
    assert "has a position that decreases (Ogg page at byte " in refusal(tmp_path / "x.ogg", b"".join(pages))


def test_wav_with_two_data_chunks_is_refused(tmp_path: Path) -> None:
    content = encoded(noise(1), "WAV")
    assert "audio in several chunks" in refusal(tmp_path / "x.wav", content + content[content.index(b"data") :])


# MP3 without a length


def untagged(audio: np.ndarray) -> bytes:
    """An MP3 with variable bit rate and without the frame that states its length."""
    content = encoded(audio, "MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    assert b"Xing" in content[:100]
    return content[content.index(content[:2], 4) :]


@pytest.mark.parametrize("loud_first", [False, True])
def test_mp3_without_a_length_is_read_to_the_end(tmp_path: Path, loud_first: bool) -> None:
    loud, silent = noise(4, amplitude=0.3), np.zeros(4 * RATE, np.float32)
    content = untagged(np.concatenate([loud, silent, loud[:RATE]] if loud_first else [silent, loud, loud[:RATE]]))
    (tmp_path / "x.mp3").write_bytes(content)
    estimate = soundfile.info(tmp_path / "x.mp3").frames
    read = length(tmp_path / "x.mp3", content)
    assert 0 <= read - 9 * RATE < 4 * 576  # the encoder fills up its first and last frames
    assert estimate < 4 * RATE if loud_first else estimate > 16 * RATE


def test_mp3_that_ends_within_a_frame_gives_a_warning(tmp_path: Path) -> None:
    content = untagged(noise(2))
    whole = length(tmp_path / "x.mp3", content)
    assert length_with_warning(tmp_path / "x.mp3", content[:-10], "last MP3 frame is not whole") == whole - 576


@pytest.mark.parametrize("claimed", [1, 20])
def test_mp3_tag_with_too_few_frames_gives_a_warning(tmp_path: Path, claimed: int) -> None:
    content = encoded(noise(3), "MP3")
    at = content.index(b"Xing" if b"Xing" in content[:100] else b"Info") + 8
    read = length_with_warning(
        tmp_path / "x.mp3", with_field(content, at, struct.pack(">I", claimed)), f"claims {claimed} frames"
    )
    assert 0 <= read - 3 * RATE < 4 * 576


def test_mp3_tag_with_too_many_frames_is_refused_as_truncated(tmp_path: Path) -> None:
    content = encoded(noise(3), "MP3")
    path = tmp_path / "x.mp3"
    assert "is truncated" in refusal(path, content[: len(content) // 2])
    with pytest.warns(UserWarning, match="its header claims 48000 frames"):
        assert len(read_audio_file(path, duration=1.0)) == RATE


# Sizes in headers


def size_field(kind: str, content: bytes) -> tuple[int, str, int]:
    """Position and format of the size field, and the bytes that it counts besides the audio."""
    if kind == "AU":
        return 8, ">I", 0
    if kind == "RF64":
        return content.index(b"ds64") + 16, "<q", 0
    at = content.rindex(b"SSND" if kind == "AIFF" else b"data")
    return {"WAV": (at + 4, "<I", 0), "AIFF": (at + 4, ">I", 8), "CAF": (at + 4, ">q", 4), "W64": (at + 16, "<q", 24)}[
        kind
    ]


def with_size(kind: str, content: bytes, size: int) -> bytes:
    at, form, _ = size_field(kind, content)
    return with_field(content, at, struct.pack(form, size))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        *(("WAV", size) for size in (0, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0x7FFFFFFF - 36, 0xFFFFFFFF)),
        *(("WAV", size) for size in (0xFFFFFF00, 0xFFFFFFFE, 0xFFFFFFFF - 36)),
        *(("AU", size) for size in (0, 0x7FFFFFFF, 0xFFFFFFF0, 0xFFFFFFFF)),
        *(("AIFF", size) for size in (0, 8, 0x7F000008, 0xFFFFFFFF)),
        ("CAF", -1),
        *(("W64", size) for size in (0, 24, -1, 2**63 - 1)),
        *(("RF64", size) for size in (0, -1)),
    ],
)
def test_unknown_size_means_reading_to_the_end(tmp_path: Path, kind: str, size: int) -> None:
    assert length(tmp_path / "x", with_size(kind, encoded(noise(1), kind), size)) == RATE


@pytest.mark.parametrize("subtype", ["PCM_24", "FLOAT", "ULAW", "IMA_ADPCM", "GSM610"])
def test_unknown_size_of_other_encodings_means_reading_to_the_end(tmp_path: Path, subtype: str) -> None:
    content = encoded(noise(1), "WAV", subtype)
    whole = length(tmp_path / "x.wav", content)
    assert length(tmp_path / "x.wav", with_size("WAV", content, 0)) == whole >= RATE


@pytest.mark.parametrize("kind", ["WAV", "AU", "AIFF", "CAF", "W64", "RF64"])
def test_too_small_a_size_gives_a_warning_and_all_is_read(tmp_path: Path, kind: str) -> None:
    content = encoded(noise(1), kind)
    half = with_size(kind, content, RATE + size_field(kind, content)[2])
    assert length_with_warning(tmp_path / "x", half, "claims 16000 bytes of audio, and 32000 are there") == RATE


@pytest.mark.parametrize("kind", ["WAV", "AU", "AIFF", "CAF", "W64", "RF64"])
def test_too_large_a_size_is_refused(tmp_path: Path, kind: str) -> None:
    large = with_size(kind, encoded(noise(1), kind), 10**6)
    assert "is truncated (32000 of" in refusal(tmp_path / "x", large)


@pytest.mark.parametrize(
    ("kind", "chunk"),
    [
        ("WAV", b"LIST" + struct.pack("<I", 400) + b"\x55" * 400),
        ("WAV", b"TAG" + b"\x55" * 125),
        ("WAV", bytes(1_000)),
        ("AIFF", b"ANNO" + struct.pack(">I", 400) + b"\x55" * 400),
        ("CAF", b"info" + struct.pack(">q", 400) + b"\x55" * 400),
        ("W64", b"levl" + bytes.fromhex("f3acd3118cd100c04f8edb8a") + struct.pack("<q", 424) + b"\x55" * 400),
        ("FLAC", b"TAG" + b"\x55" * 125),
        ("OGG", b"TAG" + b"\x55" * 125),
        ("MP3", b"TAG" + b"\x55" * 125),
    ],
)
def test_chunks_after_the_audio_are_not_read_as_audio(tmp_path: Path, kind: str, chunk: bytes) -> None:
    assert length(tmp_path / "x", encoded(noise(1), kind) + chunk) == RATE


def test_nist_sample_counts_are_checked(tmp_path: Path) -> None:
    content = encoded(noise(1), "NIST")
    at = content.index(b"sample_count -i 16000") + len(b"sample_count -i ")
    assert length(tmp_path / "x.sph", content) == RATE
    assert length_with_warning(tmp_path / "x.sph", with_field(content, at, b"08000"), "claims 16000 bytes") == RATE
    assert "is truncated (32000 of 64000" in refusal(tmp_path / "x.sph", with_field(content, at, b"32000"))


# FLAC


def flac_claiming(content: bytes, frames: int) -> bytes:
    fields = int.from_bytes(content[18:26], "big") >> 36 << 36 | frames
    return with_field(content, 18, fields.to_bytes(8, "big"))


def test_flac_without_a_length_is_read_to_the_end(tmp_path: Path) -> None:
    assert length(tmp_path / "x.flac", flac_claiming(encoded(noise(3), "FLAC"), 0)) == 3 * RATE


@pytest.mark.parametrize("claimed", [1, 4_096, 20_000, 47_999])
def test_flac_header_with_too_few_frames_gives_a_warning(tmp_path: Path, claimed: int) -> None:
    content = flac_claiming(encoded(noise(3), "FLAC"), claimed)
    expected = f"its header claims {claimed} frames, and 48000 are there"
    assert length_with_warning(tmp_path / "x.flac", content, expected) == 3 * RATE


def test_flac_header_with_too_many_frames_is_refused(tmp_path: Path) -> None:
    content = flac_claiming(encoded(noise(3), "FLAC"), 48_001)
    assert "is truncated (48000 of 48001 frames" in refusal(tmp_path / "x.flac", content)


# Formats that cannot be checked


@pytest.mark.parametrize(("kind", "subtype"), [("VOC", None), ("MAT4", None), ("CAF", "ALAC_16"), ("AIFF", "GSM610")])
def test_formats_whose_length_cannot_be_checked_are_refused(tmp_path: Path, kind: str, subtype: str | None) -> None:
    assert "whose length cannot be checked" in refusal(tmp_path / "x", encoded(noise(1), kind, subtype))
