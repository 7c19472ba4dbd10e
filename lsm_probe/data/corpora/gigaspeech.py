"""GigaSpeech: `GigaSpeech.json`, whose list `audios` names long `.opus` files and their segments.

Text is upper case with tags for punctuation; `A B <COMMA> C <PERIOD>` becomes `A B, C.`. A segment without speech,
tagged for example as silence, music or noise, is not an utterance; a message at the end gives their number.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lsm_probe.data.corpora.tables import Wanted, inside, opened, parsed
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError

_MARKS = {"<COMMA>": ",", "<PERIOD>": ".", "<QUESTIONMARK>": "?", "<EXCLAMATIONPOINT>": "!"}
_MARK = re.compile(rf"\s*({'|'.join(_MARKS)})")
_NO_SPEECH = {"<SIL>", "<MUSIC>", "<NOISE>", "<OTHER>"}
_SUBSET = re.compile(r"\{(\w+)\}")
_CHUNK = 2**20


class _Audio(BaseModel):
    path: str
    segments: list[Any]


class _Segment(BaseModel):
    sid: str
    begin_time: float
    end_time: float
    text_tn: str
    subsets: list[str]


def read_gigaspeech(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """A split for each subset, "XL" to "XS", "DEV" and "TEST"; a segment is in each of its subsets."""
    without_speech = 0
    for number, values in enumerate(_audios(root / "GigaSpeech.json"), start=1):
        where = f"{root / 'GigaSpeech.json'}, audio {number}"
        with problems.catching(where):
            audio = parsed(_Audio, values)
            path = inside(root, audio.path)
            for position, entry in enumerate(audio.segments, start=1):
                with problems.catching(f"{where}, segment {position}"):
                    segment = parsed(_Segment, entry)
                    splits = [split for split in _splits(segment) if wanted(split)]
                    if segment.text_tn.strip() in _NO_SPEECH:
                        without_speech += bool(splits)
                    else:
                        yield from (_utterance(segment, split, path) for split in splits)
    if without_speech:
        tags = ", ".join(sorted(_NO_SPEECH))
        warnings.warn(f"{without_speech} segments of GigaSpeech without speech ({tags}) are left out", stacklevel=2)


def _utterance(segment: _Segment, split: str, path: Path) -> Utterance:
    text = _MARK.sub(lambda tag: _MARKS[tag[1]], segment.text_tn)
    duration = round(segment.end_time - segment.begin_time, 6)
    return Utterance(segment.sid, split, text, audio=path, start=segment.begin_time, duration=duration)


def _splits(segment: _Segment) -> Iterator[str]:
    if not segment.subsets:
        raise InputError("belongs to no subset; check the file")
    for subset in segment.subsets:
        match = _SUBSET.fullmatch(subset)  # splits name files, so a subset must be a plain word
        if match is None:
            raise InputError(f"subset {subset!r} is not of the form {{L}}; correct it")
        yield match[1]


def _audios(path: Path) -> Iterator[object]:
    """The entries of the list `audios`, each parsed on its own: the whole file as objects would take tens of GB."""
    decoder, buffer, position = json.JSONDecoder(), "", 0
    try:
        with opened(path) as file:
            while not (start := re.search(r'"audios"\s*:\s*\[', buffer)):
                if not (more := file.read(_CHUNK)):
                    raise InputError(f"{path} has no list 'audios'; check that it is the corpus's own file")
                buffer += more
            position = start.end()
            while True:
                while position < len(buffer) and buffer[position] in " \t\r\n,":
                    position += 1
                if buffer.startswith("]", position):
                    return
                try:
                    value, position = decoder.raw_decode(buffer, position)
                except json.JSONDecodeError as error:
                    # A value cut off by the chunk fails near the chunk's end; a string is much shorter than a chunk.
                    if len(buffer) - error.pos > _CHUNK or not (more := file.read(_CHUNK)):
                        raise InputError(f"{path} is not JSON ({error.msg}); download the file again") from None
                    buffer, position = buffer[position:] + more, 0
                else:
                    yield value
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); check --root") from None
    except (ValueError, RecursionError):  # a number with thousands of digits, or brackets nested that deeply
        raise InputError(
            f"{path} holds JSON that is nested too deeply or a number that is too long; download the file again"
        ) from None
