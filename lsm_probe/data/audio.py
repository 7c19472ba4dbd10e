"""Sound files as mono float32 at one sampling rate, read to the end of their bytes whatever the header says."""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile
import soxr

from lsm_probe.data.audio_bytes import AudioBytes
from lsm_probe.data.containers import Stream, View, find_streams
from lsm_probe.errors import InputError
from lsm_probe.files import regular_file_bytes
from lsm_probe.waveform import check_scale

MAX_SECONDS = 3_600
SILENCE_PEAK = 1e-4
LOWEST_RATE, HIGHEST_RATE = 1_000, 384_000
RATE = 16_000
"""Sampling rate in Hz to which all audio is converted."""

# The densest legal encoding is FLAC's: a constant block of 65,535 samples in a frame of 10 bytes or a little
# more. Opus (120 ms in 2 bytes), Vorbis and MP3 stay below; uncompressed files cannot claim more than they hold.
_MOST_FRAMES, _IN_BYTES = 65_535, 10

# Number of values decoded at a time, over all channels: 4 MiB of float32.
_BLOCK_VALUES = 2**20

# Manifests give seconds to the millisecond, so a section may end this much after its file.
_ROUNDING_SECONDS = 1e-3

# Formats of libsndfile whose length can be checked against the bytes.
_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "MP3")
_UNCHECKED = re.compile("ALAC|DWVW|AIFF GSM")

# libsndfile's number of frames if the header gives none.
_UNKNOWN = 2**63 - 1

# Maximum number of frames that are decoded to find a length: a day at 16 kHz.
_MOST_COUNTED = MAX_SECONDS * HIGHEST_RATE

# Bytes added to the claimed length of an MP3 without a length: more than any section needs.
_SURPLUS = 2**31


class HasAudio(Protocol):
    """The fields of a sample that describe its audio."""

    id: str
    audio: Path | AudioBytes | None
    start: float
    duration: float | None


def read_audio(sample: HasAudio) -> np.ndarray:
    """Reads the section of a sample's audio; see `read_audio_file`.

    Returns:
        float32 `[n_samples]`, mono, nominally within [-1, 1].

    Raises:
        InputError: The sample has no audio or it cannot be used; names the sample and the file.
    """
    if sample.audio is None:
        raise InputError(f"sample {sample.id!r}: has no audio; add 'audio' to it")
    return _read(sample.audio, sample.start, sample.duration, f"sample {sample.id!r}: ")


def read_audio_file(path: str | Path | AudioBytes, start: float = 0.0, duration: float | None = None) -> np.ndarray:
    """Reads a section of a sound file, averages its channels and resamples it to 16 kHz (soxr, HQ).

    Args:
        path: WAV, RF64, W64, AIFF, AU, CAF, NIST SPHERE, FLAC, Ogg (Vorbis, Opus) or MP3; 1 to 384 kHz, any number of
            channels. Several streams in one file are read one after another. The file may be in memory.
        start: Where the section begins, seconds.
        duration: Its length, seconds; None reads to the end.

    Returns:
        float32 `[n_samples]`, mono, nominally within [-1, 1].

    Raises:
        InputError: The file is missing, not regular, empty, not audio, cut short, or claims more audio than
            its bytes can hold; its streams overlap or differ in rate, or its kind does not let their length be
            checked; the section is empty, lies outside the file (by more than 1 ms, which is rounding) or exceeds
            `MAX_SECONDS`; a sample is NaN, infinite or above `lsm_probe.waveform.MAX_PEAK`. Decoding goes by
            blocks, so a refused file never takes more memory than its section's result. A WAV, AIFF or Ogg that is
            cut short is refused whole; of a FLAC or MP3 the part before the cut can be read.

    Warns:
        UserWarning: The peak lies below `SILENCE_PEAK`; or header and content disagree about the length, in which case
            the available content is read.
    """
    return _read(_source(path), start, duration, "")


def check_audio_file(path: str | Path | AudioBytes, start: float = 0.0, duration: float | None = None) -> float:
    """Checks a section of a sound file as `read_audio_file` does, except for the samples themselves.

    Nothing is decoded, except for a FLAC whose header gives no length or a wrong one.

    Returns:
        Length of the section, seconds.

    Raises:
        InputError: As `read_audio_file`. Damage within the audio, and its amplitude, show only when it is read.

    Warns:
        UserWarning: The header and the content disagree about the length.
    """
    with _section(_source(path), start, duration, "") as (sound, first, stop):
        return (stop - first) / sound.rate


def _source(audio: str | Path | AudioBytes) -> Path | AudioBytes:
    return audio if isinstance(audio, AudioBytes) else Path(audio)


class _Sequential(soundfile.SoundFile):
    """Continues reading without soundfile's seek after each read, which alters samples in MP3."""

    def seekable(self) -> bool:
        return False


@dataclass(frozen=True)
class _Part:
    """A stream of a file, with its checked header."""

    stream: Stream
    rate: int  # Hz
    frames: int  # according to the header, if plausible
    held: int  # how many of these exist
    can_seek: bool  # whether a seek leads to the same samples as reading from the start

    @property
    def conflict(self) -> str:
        """The disagreement between header and content; empty if they agree."""
        if self.held < self.frames:
            return f"its header claims {self.frames} frames, and {self.held} are there"
        return self.stream.conflict


@dataclass(frozen=True)
class _Sound:
    """A sound file and its streams, which are read one after another."""

    source: Path | AudioBytes
    raw: mmap | bytes
    parts: tuple[_Part, ...]

    @property
    def rate(self) -> int:
        return self.parts[0].rate

    @property
    def frames(self) -> int:
        return sum(part.frames for part in self.parts)


def _read(source: Path | AudioBytes, start: float, duration: float | None, who: str) -> np.ndarray:
    where = f"{who}{source}"
    with _section(source, start, duration, who) as (sound, first, stop):
        audio = _resample(_mono_blocks(sound, first, stop), sound.rate)
    if not audio.size:
        raise InputError(f"{where}: the section is too short for one sample; lengthen it")
    peak = float(np.abs(audio).max())
    if peak < SILENCE_PEAK:
        warnings.warn(f"{where}: is silent (peak {peak:.1e})", stacklevel=3)
    return audio


@contextmanager
def _section(
    source: Path | AudioBytes, start: float, duration: float | None, who: str
) -> Iterator[tuple[_Sound, int, int]]:
    """The opened file, with the section's first frame and the one after its last.

    Errors of the file inside the block become one line that names it.
    """
    where = f"{who}{source}"
    try:
        file_bytes = len(source) if isinstance(source, AudioBytes) else regular_file_bytes(source)
    except InputError as error:
        raise InputError(f"{who}{error}") from None
    try:
        if file_bytes == 0:
            raise InputError("is empty (0 bytes); replace the file")
        parts = _find_parts(source, _state(source))
        with _opened(source) as raw:
            sound = _Sound(source, raw, parts)
            first, stop = _bounds(sound, start, duration)
            for conflict in {part.conflict for part in parts if part.conflict}:
                warnings.warn(f"{where}: {conflict}; the audio that is there is used", stacklevel=4)
            yield sound, first, stop
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip().rstrip(".")
        raise InputError(f"{where}: cannot be decoded ({reason}); replace the file") from None
    except OSError as error:
        raise InputError(f"{where}: cannot be read ({error.strerror}); check the permissions of the file") from None


@contextmanager
def _opened(source: Path | AudioBytes) -> Iterator[mmap | bytes]:
    if isinstance(source, AudioBytes):
        yield source.read()
        return
    with source.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as raw:
        yield raw


def _state(source: Path | AudioBytes) -> object:
    """Values that change when a file changes."""
    if isinstance(source, AudioBytes):
        return None
    status = source.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(16)  # because manifests name many sections of one file
def _find_parts(source: Path | AudioBytes, _state: object) -> tuple[_Part, ...]:
    """The streams of a file, with checked headers. They are read again when the file's state changes."""
    with _opened(source) as raw:
        parts = tuple(_look_at(source, raw, stream) for stream in find_streams(raw))
    rates = sorted({part.rate for part in parts})
    if len(rates) > 1:
        raise InputError(f"holds streams of different rates ({', '.join(map(str, rates))} Hz); re-encode it")
    if not any(part.frames for part in parts):
        raise InputError("holds no audio (0 frames); replace the file")
    return parts


def _look_at(source: Path | AudioBytes, raw: mmap | bytes, stream: Stream) -> _Part:
    with _open(source, raw, stream) as file:
        rate, frames = file.samplerate, int(file.frames)
        if stream.is_untagged_mp3 and stream.frames is not None:
            frames = stream.frames
        if file.format == "MP3" and stream.frames == 0:
            raise InputError("holds no MPEG frames that can be counted (free format?); re-encode it")
        _check_header(file, frames, sum(len(piece) for piece in stream.pieces))
        # After a seek, MP3 and Opus give other samples for a while, and formats such as GSM cannot seek at all.
        can_seek = file.format != "MP3" and file.subtype != "OPUS" and soundfile.SoundFile.seekable(file)
    held = frames if stream.frames is None else stream.frames
    whole = replace(stream, pieces=stream.without_length)
    if whole.pieces and not _ends_after(source, raw, whole, frames):
        held = _count(source, raw, whole, frames)
        if frames == _UNKNOWN:
            return _Part(whole, rate, held, held, can_seek=False)
        if held > frames:
            whole = replace(whole, conflict=f"its header claims {frames} frames, and {held} are there")
            return _Part(whole, rate, held, held, can_seek=False)
    return _Part(stream, rate, frames, held, can_seek)


def _open(source: Path | AudioBytes, raw: mmap | bytes, stream: Stream) -> _Sequential:
    try:
        if isinstance(source, Path) and stream.pieces == (range(len(raw)),) and not stream.is_untagged_mp3:
            # Absolute, because libsndfile treats the name "-" as standard input.
            return _Sequential(str(source.absolute()))
        return _Sequential(View(raw, stream.pieces, _SURPLUS if stream.is_untagged_mp3 else 0))
    except (TypeError, ValueError):  # soundfile asks for rate and channels if the name ends in ".raw"
        raise InputError("has no header with its format; convert it to WAV or FLAC") from None


def _check_header(file: _Sequential, frames: int, size: int) -> None:
    """Refuses, before decoding, a header that cannot be true or cannot be checked."""
    kind = f"{file.format} {file.subtype}"
    if file.format not in _FORMATS or _UNCHECKED.search(kind):
        raise InputError(f"is of a kind ({kind}) whose length cannot be checked; convert it to WAV or FLAC")
    if frames != _UNKNOWN and frames * _IN_BYTES > size * _MOST_FRAMES:
        raise InputError(f"claims {frames} frames, more than its {size} bytes can hold; replace or re-encode it")
    if "lacks an end-of-stream bit" in file.extra_info:
        raise InputError("is truncated (the end of its Ogg stream is missing); replace or re-encode it")
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise InputError(f"is sampled at {file.samplerate} Hz, outside {LOWEST_RATE} to {HIGHEST_RATE}; convert it")


def _ends_after(source: Path | AudioBytes, raw: mmap | bytes, whole: Stream, frames: int) -> bool:
    """Whether a FLAC ends after this many frames, when read without the length in its header."""
    if frames == _UNKNOWN:
        return False
    with _open(source, raw, whole) as file, suppress(soundfile.LibsndfileError):
        file.seek(frames - 1)
        return len(file.read(2)) == 1
    return False


def _count(source: Path | AudioBytes, raw: mmap | bytes, whole: Stream, claimed: int) -> int:
    """Frames of a FLAC by decoding it."""
    position = 0
    with _open(source, raw, whole) as file:
        block_frames = max(1, _BLOCK_VALUES // file.channels)
        while position <= _MOST_COUNTED:
            before_claim = claimed - position
            try:
                read = len(file.read(min(block_frames, before_claim) if before_claim > 0 else block_frames))
            except soundfile.LibsndfileError:
                if position > claimed or claimed == _UNKNOWN:
                    raise
                return position
            if not read:
                return position
            position += read
    raise InputError("has no correct length in its header, and is too long to count its frames; re-encode it")


def _bounds(sound: _Sound, start: float, duration: float | None) -> tuple[int, int]:
    """First frame and the one after the last. Comparisons are written so that NaN fails them."""
    rate, length = sound.rate, sound.frames / sound.rate
    if not 0 <= start < length:
        raise InputError(f"start is {start} s, outside the file's {length:.3f} s; fix 'start'")
    if duration is not None and not duration > 0:
        raise InputError(f"duration is {duration} s; it must be above 0")
    end = length if duration is None else start + duration
    if not end <= length + _ROUNDING_SECONDS:
        raise InputError(f"the section ends at {end:.3f} s, after the file's {length:.3f} s; fix 'duration'")
    first, stop = round(start * rate), min(round(end * rate), sound.frames)
    if stop <= first:
        raise InputError(f"the section is shorter than one frame at {rate} Hz; fix 'duration'")
    if stop - first > MAX_SECONDS * rate:
        seconds = (stop - first) / rate
        raise InputError(f"covers {seconds:.0f} s, and the limit is {MAX_SECONDS} s; set 'start' and 'duration'")
    for part, _, last in _shares(sound, first, stop):
        if last > part.held:
            raise InputError(f"is truncated ({part.held} of {part.frames} frames are there); replace the file")
    return first, stop


def _shares(sound: _Sound, first: int, stop: int) -> Iterator[tuple[_Part, int, int]]:
    """The streams that contain frames [first, stop) of the file, each with its own part of these frames."""
    begin = 0
    for part in sound.parts:
        share = max(first - begin, 0), min(stop - begin, part.frames)
        if share[0] < share[1]:
            yield part, *share
        begin += part.frames


def _mono_blocks(sound: _Sound, first: int, stop: int) -> Iterator[np.ndarray]:
    """The mean over channels of frames [first, stop), in float32 blocks `[n_frames]`."""
    for part, own_first, own_stop in _shares(sound, first, stop):
        with _open(sound.source, sound.raw, part.stream) as file:
            for block in _blocks(file, part, own_first, own_stop):
                check_scale(block)
                yield block.mean(axis=1)


def _blocks(file: _Sequential, part: _Part, first: int, stop: int) -> Iterator[np.ndarray]:
    """Frames [first, stop) of a stream. If seeking is not exact, all frames before them are decoded too, so that a
    section always equals the slice of the whole."""
    position = file.seek(first) if part.can_seek else 0
    block_frames = max(1, _BLOCK_VALUES // file.channels)
    while position < stop:
        wanted = (stop if position >= first else first) - position
        block = file.read(min(wanted, block_frames), dtype="float32", always_2d=True)
        if not len(block):
            raise InputError(f"is truncated ({position} of {part.frames} frames are there); replace the file")
        if position >= first:
            yield block
        position += len(block)
    if part.stream.is_untagged_mp3 and stop == part.frames and len(file.read(1)):
        raise InputError(f"holds more audio than its {part.frames} frames; re-encode it")


def _resample(blocks: Iterable[np.ndarray], rate: int) -> np.ndarray:
    if rate == RATE:
        return np.concatenate(list(blocks))
    stream = soxr.ResampleStream(rate, RATE, 1, dtype="float32", quality="HQ")
    chunks = [stream.resample_chunk(block) for block in blocks]
    chunks.append(stream.resample_chunk(np.empty(0, np.float32), last=True))
    return np.concatenate(chunks)
