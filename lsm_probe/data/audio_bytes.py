"""Audio in memory: the bytes of a sound file, treated like a sound file on disk."""

from __future__ import annotations

import hashlib
import io
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

from lsm_probe.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_SUFFIXES = {b"RIFF": ".wav", b"RF64": ".wav", b"fLaC": ".flac", b"OggS": ".ogg", b"FORM": ".aiff", b"caff": ".caf"}
"""First four bytes -> file suffix. Other formats get `.audio`, because readers only look at the bytes."""


class AudioBytes:
    """The bytes of a sound file in memory. Immutable, equal if the bytes are equal.

    The code that reads files also reads these bytes, with the same checks ([`lsm_probe.data.audio.read_audio`]).
    Results have the same data hash as results on a manifest that names files with the same bytes.

    Args:
        content: anything with the buffer protocol. A `pyarrow.Buffer` into a memory-mapped table stays on the disk
            until it is read.
        name: its name in messages.

    Example:
        >>> AudioBytes.from_waveform(np.zeros(16_000, np.float32), 16_000)
        AudioBytes('waveform', 64,058 bytes)
    """

    def __init__(self, content: Any, name: str = "audio in memory"):
        self.content = content
        self.name = name

    @classmethod
    def from_waveform(cls, waveform: ArrayLike, rate: float, name: str = "waveform") -> Self:
        """Keeps a copy of a waveform as a WAV file in memory, with the same values.

        Args:
            waveform: `[samples]`, `[1, samples]` or `[samples, 1]`; an array, a tensor or a list. Floating-point
                numbers within -1 and 1 are stored as float32, integers of 8, 16 or 32 bits as they are.
            rate: sampling rate, Hz.
            name: its name in messages.

        Raises:
            InputError: there is more than one channel, no sample, a type without a known scale, or a rate that is not a
                whole number above 0. NaN and a wrong scale are found when it is read, as in files.
        """
        import numpy as np
        from scipy.io import wavfile

        from lsm_probe.waveform import as_mono, to_float32

        if np.ndim(waveform) == 0 and np.ndim(rate) > 0:
            raise InputError("the audio is (rate, waveform): give (waveform, rate)")
        if isinstance(rate, bool) or not isinstance(rate, int | float | np.number) or not (rate > 0 and rate % 1 == 0):
            raise InputError(f"the sampling rate is {rate!r}: give a whole number of Hz, such as 16000")
        samples = as_mono(waveform)
        if samples.dtype.newbyteorder("=") not in (np.uint8, np.int16, np.int32):
            samples = to_float32(samples)
        file = io.BytesIO()
        try:
            wavfile.write(file, int(rate), samples)
        except (ValueError, OverflowError) as error:  # values that a WAV file cannot hold
            raise InputError(f"{len(samples)} samples at {rate} Hz cannot be kept in memory ({error})") from None
        return cls(file.getvalue(), name)

    def read(self) -> bytes:
        """The bytes, copied from a buffer of another kind."""
        return self.content if isinstance(self.content, bytes) else bytes(self.content)

    @cached_property
    def sha256(self) -> str:
        """sha256 (hexadecimal) of the bytes, as of a file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def suffix(self) -> str:
        """The suffix of a file that holds the bytes."""
        begin = bytes(memoryview(self.content)[:4])
        return ".mp3" if begin[:3] == b"ID3" or begin[:1] == b"\xff" else _SUFFIXES.get(begin, ".audio")

    def __len__(self) -> int:
        return memoryview(self.content).nbytes

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AudioBytes) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"AudioBytes({self.name!r}, {len(self):,} bytes)"

    def __reduce__(self) -> tuple[Any, ...]:
        return AudioBytes, (self.read(), self.name)
