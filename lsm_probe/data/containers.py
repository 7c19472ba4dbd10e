"""The streams of a sound file, and the amount of audio in each, independent of its header.

libsndfile stops at the length that a header gives, and at the end of the first of several streams. This module reads
the bytes instead: it follows chunks, Ogg pages and MPEG frames to the end of the file. Nothing is decoded.
"""

import io
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from mmap import mmap
from typing import NamedTuple

from lsm_probe.errors import InputError

# Sizes that programs write into the header of a stream whose length they do not know: 0, -1, and these or a little
# less or more (sox 0x7FFFF000 and 0x7F000008, arecord 0x80000000, ffmpeg 0xFFFFFFFF; some take the header off).
_UNKNOWN_SIZES = (0x7F00_0000, 2**31, 2**32, 2**63, 2**64)
_NEAR = 2**12

_NIST = b"NIST_1A"
_BEGINNINGS = {
    b"RIFF": rb"....WAVE(fmt |JUNK|bext|LIST|fact)",
    b"FORM": rb"....AIF[FC](COMM|FVER)",
    b"fLaC": rb"[\x00\x80]\x00\x00\x22",
    b"OggS": rb"\x00\x02\x00{8}",
    _NIST: rb"\n   1024\n",
}
"""First bytes of a file format -> the bytes that follow. Together they are too long to occur in audio by chance."""


@dataclass(frozen=True)
class Stream:
    """One logical stream of a file."""

    # The parts that libsndfile reads, in order: ranges of the file, and bytes that replace a wrong header.
    pieces: tuple[range | bytes, ...]
    # Number of frames in the stream, if its bytes tell; None if libsndfile's own number can be trusted.
    frames: int | None = None
    # For a FLAC, the pieces without a length in the header, to read to the end; else empty.
    without_length: tuple[range | bytes, ...] = ()
    is_untagged_mp3: bool = False  # libsndfile estimates the length from the number of bytes, so that is set too large
    conflict: str = ""  # disagreement of header and content; empty if they agree


class View(io.RawIOBase):
    """Pieces of a file as one file, which claims to be `surplus` bytes longer than it is."""

    def __init__(self, raw: mmap | bytes, pieces: tuple[range | bytes, ...], surplus: int = 0):
        self._raw, self._pieces = raw, pieces
        self._size = sum(len(piece) for piece in pieces)
        self._surplus, self._position = surplus, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._size + self._surplus)[whence]
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        filled = 0  # filled across the pieces, because libsndfile treats a short read as the end
        while filled < len(buffer) and (found := self._at(self._position, len(buffer) - filled)):
            buffer[filled : filled + len(found)] = found
            filled += len(found)
            self._position += len(found)
        return filled

    def _at(self, position: int, count: int) -> bytes:
        for piece in self._pieces:
            if position < len(piece):
                part = piece[position : position + count]
                return self._raw[part.start : part.stop] if isinstance(part, range) else part
            position -= len(piece)
        # mpg123 first looks for an ID3v1 tag in the last 128 bytes.
        return bytes(min(count, self._surplus - position)) if self._surplus - 128 <= position < self._surplus else b""


def find_streams(raw: mmap | bytes) -> list[Stream]:
    """The streams of a sound file in their order. A file of an unknown kind is one stream, left to libsndfile.

    Raises:
        InputError: the file is cut short, or it holds streams that cannot be read one after another.
    """
    begin = _after_id3(raw, 0)
    _refuse_other_kinds(raw, begin)
    if raw[begin : begin + 4] == b"OggS":
        return _ogg(raw, begin)
    if raw[begin : begin + 4] == b"fLaC":
        return _flac(raw)
    if raw[begin : begin + 7] == b"NIST_1A":
        return _nist(raw, begin)
    for kind in _KINDS:
        if raw[begin : begin + len(kind.magic)] == kind.magic:
            return _sized(raw, begin, kind)
    return _mpeg(raw, begin)


def _refuse_other_kinds(raw: mmap | bytes, begin: int) -> None:
    """Refuses a file that contains the start of another file, which would be left out or read as noise.

    A second NIST file is also refused, because the reader of NIST files does not look for one.
    """
    for magic, rest in _BEGINNINGS.items():
        if raw[begin : begin + len(magic)] == magic and magic != _NIST:
            continue
        position = raw.find(magic, begin + 1)
        while position >= 0:
            if re.match(rest, raw[position + len(magic) : position + len(magic) + 16], re.DOTALL):
                raise InputError(
                    f"holds a second sound file ({magic.decode()} at byte {position}), which cannot be read with the "
                    "first; split it"
                )
            position = raw.find(magic, position + 1)


def _after_id3(raw: mmap | bytes, start: int) -> int:
    """The end of an ID3v2 tag at `start`; `start` itself if there is none."""
    while raw[start : start + 3] == b"ID3" and start + 10 <= len(raw):
        a, b, c, d = (byte & 0x7F for byte in raw[start + 6 : start + 10])
        start += 10 + (a << 21 | b << 14 | c << 7 | d)
    return start


# Files with one size field before the audio


class _Data(NamedTuple):
    """The audio of a file that stores it in one piece, and the size field with its length."""

    start: int
    claimed: int
    size_at: int
    size_format: str
    extra: int = 0  # bytes other than audio that the size includes


@dataclass(frozen=True)
class _Au:
    """A header of at least three numbers, followed by the audio."""

    magic: bytes
    order: str

    def data(self, raw: mmap | bytes, begin: int) -> _Data:
        """The audio of the file at `begin`."""
        start, claimed = struct.unpack(self.order + "II", raw[begin + 4 : begin + 12].ljust(8, b"\xff"))
        return _Data(begin + start, claimed, begin + 8, self.order + "I")

    def end(self, raw: mmap | bytes, position: int) -> int | None:
        """The end of the file, if its audio ends at `position`; None if more audio follows."""
        if raw[position : position + len(self.magic)] == self.magic:
            return position
        return len(raw) if _is_filling(raw, position) else None


@dataclass(frozen=True)
class _Layout:
    """A file made of chunks: a name, a size, and as many bytes."""

    magic: bytes  # the first bytes of the file
    first: int  # start of its first chunk
    name: bytes  # of the chunk that holds the audio
    size: str  # format of a chunk's size, as of `struct`
    before: int = 0  # bytes before the audio in its chunk
    is_inclusive: bool = False  # the size includes name and size
    align: int = 2  # chunks begin at multiples of this

    def data(self, raw: mmap | bytes, begin: int) -> _Data:
        long_size = None
        for name, size_at, start, size in self._chunks(raw, begin, begin + self.first):
            if name == b"ds64":
                long_size = start + 8
            if name != self.name:
                continue
            field = self.size
            if self.magic == b"RF64" and size == 2**32 - 1 and long_size is not None:
                size_at, field = long_size, "<Q"
                size = struct.unpack(field, raw[long_size : long_size + 8])[0]
            extra = self.before + (self._header if self.is_inclusive else 0)
            return _Data(start + self.before, size - self.before, size_at, field, extra)
        raise InputError(f"has no '{self.name[:4].decode()}' chunk, which would hold the audio; replace the file")

    def end(self, raw: mmap | bytes, position: int) -> int | None:
        if (end := self._end_of_chunks(raw, position)) is not None:
            return end
        return self._end_of_chunks(raw, position + -position % self.align)

    @property
    def _header(self) -> int:
        return len(self.name) + struct.calcsize(self.size)

    def _chunks(self, raw: mmap | bytes, begin: int, position: int) -> Iterator[tuple[bytes, int, int, int]]:
        """Name, position of the size, first byte and size of each chunk of the file at `begin`."""
        while position + self._header <= len(raw):
            size_at, start = position + len(self.name), position + self._header
            size = struct.unpack(self.size, raw[size_at:start])[0] - (self._header if self.is_inclusive else 0)
            yield raw[position:size_at], size_at, start, size
            if size < 0:
                return
            position = start + size + -(start + size - begin) % self.align

    def _end_of_chunks(self, raw: mmap | bytes, first: int) -> int | None:
        """The end of the chunks from here on, at the next file or at the end of this one; None if there is no chunk
        here."""
        for name, size_at, start, size in self._chunks(raw, first, first):
            position = size_at - len(name)
            if raw[position : position + len(self.magic)] == self.magic:
                return position
            if _is_filling(raw, position):
                break
            if not re.fullmatch(rb"[ -~]{4}", name[:4]) or not 0 <= size <= len(raw) - start:
                return None if position == first else len(raw)
            if name == self.name:
                raise InputError("holds audio in several chunks, of which only one would be read; re-encode it")
        return len(raw)


_W64 = b"riff" + bytes.fromhex("2e91cf11a5d628db04c10000")
_KINDS = (
    _Au(b".snd", ">"),
    _Au(b"dns.", "<"),
    _Layout(b"RIFF", 12, b"data", "<I"),
    _Layout(b"RIFX", 12, b"data", ">I"),
    _Layout(b"RF64", 12, b"data", "<I"),
    _Layout(b"FORM", 12, b"SSND", ">I", before=8),
    _Layout(b"caff", 8, b"data", ">q", before=4, align=1),
    _Layout(_W64, 40, b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a"), "<q", is_inclusive=True, align=8),
)


def _sized(raw: mmap | bytes, begin: int, kind: _Au | _Layout) -> list[Stream]:
    """Consecutive files of one kind; in each, the size of its audio is compared with its bytes."""
    streams: list[Stream] = []
    while begin < len(raw):
        data = kind.data(raw, begin)
        held = len(raw) - data.start
        if held < 0:
            raise InputError("is truncated (its header is not whole); replace the file")
        end = kind.end(raw, data.start + max(data.claimed, 0)) if data.claimed <= held else None
        is_unknown = data.claimed <= 0 or any(abs(data.claimed - size) <= _NEAR for size in _UNKNOWN_SIZES)
        if end is not None:
            # libsndfile treats data after the audio of a W64 as audio.
            stop = data.start + max(data.claimed, 0) if kind.magic == _W64 else end
            streams.append(Stream((range(begin, stop),)))
            begin = end
        elif data.claimed > held and not is_unknown:
            raise InputError(f"is truncated ({held} of {data.claimed} bytes of audio are there); replace the file")
        else:
            conflict = "" if is_unknown else f"its header claims {data.claimed} bytes of audio, and {held} are there"
            streams.append(Stream(_resized(raw, begin, data), conflict=conflict))
            begin = len(raw)
    return streams


def _resized(raw: mmap | bytes, begin: int, data: _Data) -> tuple[range | bytes, ...]:
    """The file from `begin` on, with the actual number of bytes as the size of its audio."""
    width = struct.calcsize(data.size_format)
    size = min(len(raw) - data.start + data.extra, 2 ** (8 * width - 1 + (width == 4)) - 1)
    field = struct.pack(data.size_format, size)
    return range(begin, data.size_at), field, range(data.size_at + width, len(raw))


def _is_filling(raw: mmap | bytes, position: int) -> bool:
    """Whether only an ID3v1 tag, zeros, or less than a chunk's header follows."""
    if len(raw) - position < 8 or (raw[position : position + 3] == b"TAG" and len(raw) - position == 128):
        return True
    return raw[position] == 0 and not any(raw[at : at + 2**20].strip(b"\0") for at in range(position, len(raw), 2**20))


def _nist(raw: mmap | bytes, begin: int) -> list[Stream]:
    """A NIST SPHERE file, which libsndfile reads to its end, whatever number of samples the header gives."""
    header = raw[begin : begin + 1024]
    numbers = [
        re.search(rb"^%s -i (\d+)" % name, header, re.M)
        for name in (b"sample_count", b"channel_count", b"sample_n_bytes")
    ]
    conflict = ""
    if all(numbers):
        claimed, held = math.prod(int(number[1]) for number in numbers if number), len(raw) - begin - len(header)
        if claimed > held:
            raise InputError(f"is truncated ({held} of {claimed} bytes of audio are there); replace the file")
        if claimed < held and not _is_filling(raw, begin + len(header) + claimed):
            conflict = f"its header claims {claimed} bytes of audio, and {held} are there"
    return [Stream((range(len(raw)),), conflict=conflict)]


# FLAC


def _flac(raw: mmap | bytes) -> list[Stream]:
    """A stream from each header on, which is recognised by a mark and the first block's kind and size."""
    heads = [match.start() for match in re.finditer(rb"fLaC[\x00\x80]\x00\x00\x22", raw)]
    if not heads:
        return [Stream((range(len(raw)),))]
    streams = []
    for begin, head, stop in zip([0, *heads[1:]], heads, [*heads[1:], len(raw)], strict=True):
        # The number of frames is the last 36 of 64 bits, the rest of which are rate, channels and width.
        fields = int.from_bytes(raw[head + 18 : head + 26], "big") >> 36 << 36
        without_length = (range(begin, head + 18), fields.to_bytes(8, "big"), range(head + 26, stop))
        streams.append(Stream((range(begin, stop),), without_length=without_length))
    return streams


# Ogg


def _ogg(raw: mmap | bytes, position: int) -> list[Stream]:
    """Chained streams; each begins with a page that is marked so."""
    begins: list[int] = []
    end, is_first_page, last_granule = position, False, 0
    while (position := raw.find(b"OggS", position)) >= 0 and position + 27 <= len(raw):
        flags, granule = struct.unpack("<Bq", raw[position + 5 : position + 14])
        if flags & 2:
            if is_first_page:
                raise InputError(
                    "holds several streams side by side, of which only one would be read; take one out with "
                    "'ffmpeg -i in.ogg -map 0:a:0 -c copy out.ogg'"
                )
            begins.append(position)
            last_granule = 0
        is_first_page = bool(flags & 2)
        if 0 <= granule < last_granule:
            raise InputError(f"has a position that decreases (Ogg page at byte {position}); re-encode it")
        last_granule = max(granule, last_granule)
        table = raw[position + 27 : position + 27 + raw[position + 26]]
        position += 27 + len(table) + sum(table)
        end = min(position, len(raw))
    pairs = zip(begins, [*begins[1:], end], strict=True) if begins else ()
    return [Stream((range(begin, stop),)) for begin, stop in pairs] or [Stream((range(len(raw)),))]


# MPEG audio

_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_BIT_RATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


class _Header(NamedTuple):
    """An MPEG frame's header."""

    kind: tuple[int, int, int, bool]  # version, layer, rate, mono: the same in all frames of a stream
    bytes: int
    samples: int
    tag_at: int  # position of a tag in the frame, if any


@lru_cache(maxsize=2**12)
def _parsed(header: bytes) -> _Header | None:
    if len(header) < 4 or header[0] != 0xFF or header[1] < 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    rate, bits, padding = header[2] >> 2 & 3, header[2] >> 4, header[2] >> 1 & 1
    if version == 1 or layer == 4 or rate == 3 or bits in (0, 15):
        return None
    low, mono = 1 if version == 3 else 2, header[3] >> 6 == 3
    hertz, kilobits = _RATES[version][rate], _BIT_RATES[low, layer][bits - 1]
    kind = (version, layer, hertz, mono)
    if layer == 1:
        return _Header(kind, (12_000 * kilobits // hertz + padding) * 4, 384, 0)
    samples = 576 if layer == 3 and low == 2 else 1_152
    side = (17 if mono else 32) if low == 1 else (9 if mono else 17)
    return _Header(kind, samples * 125 * kilobits // hertz + padding, samples, 4 + side)


@dataclass
class _Run:
    """Consecutive MPEG frames of one kind, perhaps after a tag ("Xing" or "Info") with their number."""

    begin: int
    first: int
    samples: int
    claimed: int | None
    frames: int = 0
    end: int = 0
    is_cut: bool = False


def _mpeg(raw: mmap | bytes, position: int) -> list[Stream]:
    """A stream from each tag on, and from each change of rate or channels on."""
    runs: list[_Run] = []
    begin, last = 0, None
    while (position := _next_frame(raw, position, last)) >= 0:
        header = _parsed(raw[position : position + 4])
        assert header is not None
        tag = raw[position + header.tag_at : position + header.tag_at + 12]
        is_tag = tag[:4] in (b"Xing", b"Info")
        position += header.bytes
        if is_tag or header.kind != last:
            claimed = int.from_bytes(tag[8:]) if is_tag and tag[7] & 1 else None
            runs.append(_Run(begin, position if is_tag else position - header.bytes, header.samples, claimed))
        run = runs[-1]
        if position > len(raw):
            run.is_cut = True
            break
        run.frames += not is_tag
        begin, last = position, header.kind
        run.end = position
    return [_of_run(run) for run in runs if run.frames] or [Stream((range(len(raw)),), frames=0)]


def _of_run(run: _Run) -> Stream:
    frames, whole = run.frames * run.samples, (range(run.begin, run.end),)
    if run.claimed == run.frames:
        return Stream(whole)
    if run.claimed is not None and run.claimed > run.frames + (not run.is_cut):
        return Stream(whole, frames)
    conflict = "its last MP3 frame is not whole" if run.is_cut else ""
    if run.claimed is None:
        return Stream(whole, frames, is_untagged_mp3=True, conflict=conflict)
    if run.claimed < run.frames:
        conflict = f"its header claims {run.claimed} frames of MP3, and {run.frames} are there"
    # Otherwise the tag has counted itself, as some encoders do.
    return Stream((range(run.first, run.end),), frames, is_untagged_mp3=True, conflict=conflict)


def _next_frame(raw: mmap | bytes, position: int, last: object) -> int:
    """The next frame from here on, -1 if there is none.

    A frame directly after one of the same kind is recognised by its own header; any other also needs the next header.
    """
    header = _parsed(raw[position : position + 4])
    if header is not None and header.kind == last:
        return position
    position = _after_id3(raw, position)
    while position >= 0:
        header = _parsed(raw[position : position + 4])
        after = header and _parsed(raw[position + header.bytes : position + header.bytes + 4])
        if header and after and header.kind == after.kind:
            return position
        position = raw.find(b"\xff", position + 1)
    return -1
