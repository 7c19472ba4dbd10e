"""Sound files as mono float32 at one sampling rate. A header's claims are checked before a frame is read."""

import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import soundfile
import soxr

from lsm_probe.data.sample import Sample, one_line, regular_file_bytes
from lsm_probe.errors import InputError

MAX_SECONDS = 3_600
SILENCE_PEAK = 1e-4
LOWEST_RATE, HIGHEST_RATE = 1_000, 384_000

# The densest legal encoding is FLAC's: a constant block of 65,535 samples in a frame of 10 bytes or a little
# more. Opus (120 ms in 2 bytes), Vorbis and MP3 stay below; uncompressed files are cut to their size by
# libsndfile itself.
_MOST_FRAMES, _IN_BYTES = 65_535, 10

# Values decoded at a time, over all channels: 4 MiB of float32.
_BLOCK_VALUES = 2**20

# Manifests give seconds to the millisecond, so a section may seem to end this much after its file.
_ROUNDING_SECONDS = 1e-3

# libsndfile silently shortens a file whose data chunk is cut: only its log tells what the header claimed.
_DATA_CHUNK = re.compile(r"^\s*(?:data|SSND|BODY|Data size)\s*:\s*(\d+)(?: \(should be (\d+)\))?", re.M | re.I)
_CUT_OGG = "lacks an end-of-stream bit"
# Sizes that ffmpeg and sox write into the header of a WAV they stream: "unknown", not a claim.
_STREAMED_SIZES = {0xFFFFFFFF, 0x7FFFF000}


def read_audio(sample: Sample, *, sampling_rate: int = 16_000) -> np.ndarray:
    """Reads the section of a sample's audio; see `read_audio_file`.

    Returns:
        float32 `[n_samples]`, mono, nominally within [-1, 1].

    Raises:
        InputError: The sample has no audio or it cannot be used; names the sample and the file.
    """
    if sample.audio is None:
        raise InputError(f"sample {sample.id!r}: has no audio; add 'audio' to it")
    return _read(sample.audio, sample.start, sample.duration, sampling_rate, f"sample {sample.id!r}: ")


def read_audio_file(
    path: str | Path, start: float = 0.0, duration: float | None = None, sampling_rate: int = 16_000
) -> np.ndarray:
    """Reads a section of a sound file, averages its channels and resamples it (soxr, HQ).

    Args:
        path: Anything libsndfile reads (WAV, FLAC, Ogg, MP3, ...), 1 to 384 kHz, any number of channels.
        start: Where the section begins, seconds.
        duration: Its length, seconds; None reads to the end.
        sampling_rate: Of the result, Hz.

    Returns:
        float32 `[n_samples]`, mono, nominally within [-1, 1].

    Raises:
        InputError: The file is missing, not regular, empty, not audio, cut short, or claims more audio than
            its bytes can hold; the section is empty, lies outside the file (by more than 1 ms, which is
            rounding) or exceeds `MAX_SECONDS`; a sample is NaN or infinite. Decoding goes by blocks, so a
            refused file never takes more memory than its section's result. A WAV, AIFF or Ogg that is cut
            short is refused whole; of a FLAC or MP3 the part before the cut can be read.

    Warns:
        UserWarning: The peak lies below `SILENCE_PEAK`.
    """
    return _read(Path(path), start, duration, sampling_rate, "")


def check_audio_file(path: str | Path, start: float = 0.0, duration: float | None = None) -> float:
    """Checks what can be known of a section of a sound file from its header alone, without decoding a frame.

    Returns:
        Length of the section, seconds.

    Raises:
        InputError: The file is missing, not regular, empty or not audio, its header cannot be true, or the section
            does not lie in it; as `read_audio_file`. Damage further on shows only when it is read.
    """
    path = Path(path)
    with _reported(path, "") as file:
        first, stop = _section(file, start, duration)
        return (stop - first) / file.samplerate


class _Sequential(soundfile.SoundFile):
    """Reads on without the seek that soundfile adds after each read: in MP3 it alters the samples."""

    def seekable(self) -> bool:
        return False


def _read(path: Path, start: float, duration: float | None, sampling_rate: int, who: str) -> np.ndarray:
    where = f"{who}{path}"
    with _reported(path, who) as file:
        first, stop = _section(file, start, duration)
        audio = _resample(_mono_blocks(file, first, stop), file.samplerate, sampling_rate)
    if not audio.size:
        raise InputError(one_line(f"{where}: the section is too short for one sample; lengthen it"))
    peak = float(np.abs(audio).max())
    if not math.isfinite(peak):  # finite samples near float32's limit that the resampler drove over it
        raise InputError(one_line(f"{where}: holds samples beyond float32; rescale the file"))
    if peak < SILENCE_PEAK:
        warnings.warn(one_line(f"{where}: is silent (peak {peak:.1e})"), stacklevel=3)
    return audio


@contextmanager
def _reported(path: Path, who: str) -> Iterator[_Sequential]:
    """The file, open, its header checked; what goes wrong with it in the block becomes one line that names it."""
    try:
        file_bytes = regular_file_bytes(path)
    except InputError as error:
        raise InputError(one_line(f"{who}{error}")) from None
    where = f"{who}{path}"
    try:
        with _open(path, file_bytes) as file:
            _check_header(file, file_bytes)
            yield file
    except InputError as error:
        raise InputError(one_line(f"{where}: {error}")) from None
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip().rstrip(".")
        raise InputError(one_line(f"{where}: cannot be decoded ({reason}); replace the file")) from None


def _open(path: Path, file_bytes: int) -> _Sequential:
    if file_bytes == 0:
        raise InputError("is empty (0 bytes); replace the file")
    try:
        # Absolute, since libsndfile takes the name "-" for standard input.
        return _Sequential(str(path.absolute()))
    except (TypeError, ValueError):  # soundfile asks for rate and channels where the name ends in ".raw"
        raise InputError("has no header that tells its format; convert it to WAV or FLAC") from None


def _check_header(file: _Sequential, file_bytes: int) -> None:
    """Refuses, before anything is decoded, a header that cannot be true."""
    if file.frames * _IN_BYTES > file_bytes * _MOST_FRAMES:
        raise InputError(
            f"claims {file.frames} frames, more than its {file_bytes} bytes can hold; replace or re-encode it"
        )
    for chunk in _DATA_CHUNK.finditer(file.extra_info):
        claimed, held = int(chunk[1]), int(chunk[2] or file_bytes)
        if claimed > held and claimed not in _STREAMED_SIZES:
            raise InputError(f"is truncated ({held} of {claimed} bytes of audio are there); replace the file")
    if _CUT_OGG in file.extra_info:
        raise InputError("is truncated (the end of its Ogg stream is missing); replace or re-encode it")
    if file.frames <= 0:
        raise InputError("holds no audio (0 frames); replace the file")
    if not LOWEST_RATE <= file.samplerate <= HIGHEST_RATE:
        raise InputError(f"is sampled at {file.samplerate} Hz, outside {LOWEST_RATE} to {HIGHEST_RATE}; convert it")


def _section(file: _Sequential, start: float, duration: float | None) -> tuple[int, int]:
    """First frame and the one after the last. Comparisons are written so that NaN fails them."""
    length = file.frames / file.samplerate
    if not 0 <= start < length:
        raise InputError(f"start is {start} s, outside the file's {length:.3f} s; mend 'start'")
    if duration is not None and not duration > 0:
        raise InputError(f"duration is {duration} s; it must be above 0")
    end = length if duration is None else start + duration
    if not end <= length + _ROUNDING_SECONDS:
        raise InputError(f"the section ends at {end:.3f} s, after the file's {length:.3f} s; mend 'duration'")
    first, stop = round(start * file.samplerate), min(round(end * file.samplerate), file.frames)
    if stop <= first:
        raise InputError(f"the section is shorter than one frame at {file.samplerate} Hz; mend 'duration'")
    if stop - first > MAX_SECONDS * file.samplerate:
        seconds = (stop - first) / file.samplerate
        raise InputError(f"asks for {seconds:.0f} s, the limit is {MAX_SECONDS} s; set 'start' and 'duration'")
    return first, stop


def _mono_blocks(file: _Sequential, first: int, stop: int) -> Iterator[np.ndarray]:
    """The mean over channels of frames [first, stop), in float32 blocks `[n_frames]`."""
    # After a seek MP3 and Opus give other samples for a while, and GSM and the like cannot seek at all: there
    # we decode up to the section, so that a section is always the slice of the whole.
    exact = file.format != "MP3" and file.subtype != "OPUS"
    seekable = exact and soundfile.SoundFile.seekable(file)
    position = file.seek(first) if seekable else 0
    block_frames = max(1, _BLOCK_VALUES // file.channels)
    while position < stop:
        wanted = (stop if position >= first else first) - position
        block = file.read(min(wanted, block_frames), dtype="float32", always_2d=True)
        if not len(block):
            if position > first and stop - position <= _estimate_error(file):
                return
            raise InputError(f"is truncated ({position} of {file.frames} frames are there); replace the file")
        if position >= first:
            if not np.isfinite(block).all():
                raise InputError("holds NaN or infinite samples; replace or repair the file")
            # Summed in float64: two channels near float32's limit must not overflow.
            yield block.mean(axis=1, dtype=np.float64).astype(np.float32)
        position += len(block)


def _estimate_error(file: _Sequential) -> int:
    """Frames that may be missing at the end of a whole file.

    None, but for MP3: without a Xing tag its length is an estimate from the bit rate, up to 0.5 % too high in
    files of 11 s (measured), besides the delay of encoder and decoder.
    """
    return max(4 * 1_152, file.frames // 50) if file.format == "MP3" else 0


def _resample(blocks: Iterable[np.ndarray], rate: int, sampling_rate: int) -> np.ndarray:
    if rate == sampling_rate:
        return np.concatenate(list(blocks))
    stream = soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32", quality="HQ")
    chunks = [stream.resample_chunk(block) for block in blocks]
    chunks.append(stream.resample_chunk(np.empty(0, np.float32), last=True))
    return np.concatenate(chunks)
