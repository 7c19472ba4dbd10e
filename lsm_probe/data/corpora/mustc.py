"""MuST-C: `<pair>/data/<part>/txt/<part>.{yaml,en,de}`, line by line for the same segments of `wav/*.wav`.

The YAML is read a line at a time, as the corpus writes it (`- {duration: 3.5, offset: 16.1, ..., wav: ted_1.wav}`):
so train's 230,000 segments take 9 s and no memory; as one document they take 30 s and 1.5 GB.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import yaml
from pydantic import BaseModel

from lsm_probe.data.corpora.tables import Wanted, inside, lines_of, parsed
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError
from lsm_probe.languages import require_language

_PAIR = re.compile(r"([a-z]{2})-([a-z]{2}(?:-[a-z]+)?)")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Segment(BaseModel):
    wav: str
    offset: float
    duration: float


def read_mustc(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """A split "en-de.tst-COMMON" for each pair of languages and part that is there."""
    parts = [path for path in sorted(root.glob("*/data/*")) if _PAIR.fullmatch(path.parents[1].name) and path.is_dir()]
    if not parts:
        raise InputError(f"{root} holds no <pair>/data/<part>, for example en-de/data/tst-COMMON; check --root")
    for part in parts:
        if wanted(f"{part.parents[1].name}.{part.name}"):
            with problems.catching():
                yield from _part(part, problems)


def _part(part: Path, problems: Problems) -> Iterator[Utterance]:
    pair = part.parents[1].name
    source, target = pair.split("-", 1)
    spoken, written = (require_language(code, f"{part}: ") for code in (source, target))
    files = [part / "txt" / f"{part.name}.{ending}" for ending in ("yaml", source, target)]
    lengths = [sum(1 for _ in lines_of(path, blank=True)) for path in files]
    if len(set(lengths)) > 1:
        counts = ", ".join(f"{path} has {length} lines" for path, length in zip(files, lengths, strict=True))
        raise InputError(f"{counts}; they must have as many, so unpack the corpus again")
    seen: Counter[str] = Counter()
    for (where, line), (_, text), (_, translation) in zip(*(lines_of(p, blank=True) for p in files), strict=True):
        with problems.catching(where):
            segment = _segment(line)
            name = Path(segment.wav).stem
            number, seen[name] = seen[name], seen[name] + 1
            yield Utterance(
                f"{name}-seg-{number}",
                f"{pair}.{part.name}",
                text,
                audio=inside(part / "wav", segment.wav),
                start=segment.offset,
                duration=segment.duration,
                language=spoken.code,
                target_language=written.name,
                answers={"translation": translation},
            )


def _segment(line: str) -> _Segment:
    try:
        entry = yaml.load(line, _Loader)  # safe: a SafeLoader builds plain values only
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"is not YAML ({' '.join(str(error).split())}); check the file") from None
    if not isinstance(entry, list) or len(entry) != 1:
        raise InputError("is not one segment '- {duration: ..., offset: ..., wav: ...}'; check the file")
    return parsed(_Segment, entry[0])
