"""CoVoST 2, inside the Common Voice 4.0 folder it translates: `clips/*.mp3`, and the official tables.

Either the tables that the official `get_covost_splits.py` writes, `covost_v2.en_de.<part>.tsv` (columns `path`,
`sentence`, `translation`), or the released one, `covost_v2.en_de.tsv` (`path`, `translation`, `split`), which we join
with `validated.tsv` as that script does: part "train_covost" counts as train. Its "dev_covost" and "test_covost" belong
to no official part; here they keep their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lsm_probe.data.corpora.tables import TABS, Wanted, inside, rows_of
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError
from lsm_probe.languages import require_language

_TABLE = re.compile(r"covost_v2\.([A-Za-z-]+_[A-Za-z-]+)(?:\.(train|dev|test))?\.tsv")
_DIALECT = TABS | {"escapechar": "\\"}
_PARTS = {part: part for part in ("train", "dev", "test", "dev_covost", "test_covost")} | {"train_covost": "train"}
# Translators left this word in place of a translation where the sentence should go.
_REMOVED = re.compile(r"\W*REMOVE\W*")


def read_covost2(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """A split "en_de.test" for each pair of languages and part."""
    tables: dict[str, dict[str | None, Path]] = {}
    for path in sorted(root.glob("covost_v2.*.tsv")):
        if match := _TABLE.fullmatch(path.name):
            tables.setdefault(match[1], {})[match[2]] = path
    if not tables:
        raise InputError(f"{root} holds no covost_v2.<from>_<to>.tsv; check --root")
    for pair, parts in tables.items():
        source, target = pair.split("_")
        released = parts.pop(None, None)
        if parts or released is None:
            rows = _split_rows(pair, parts, problems, wanted)
        else:
            rows = _joined_rows(pair, released, root / "validated.tsv", problems, wanted)
        spoken, written = (require_language(code, f"{root}, pair {pair}: ") for code in (source, target))
        for where, split, row in rows:
            with problems.catching(where):
                clip, translation = inside(root / "clips", row["path"]), row["translation"]
                if _REMOVED.fullmatch(translation):
                    raise InputError(
                        "the translation is REMOVE, the translators' mark for unusable rows; leave the row out"
                    )
                yield Utterance(
                    clip.stem,
                    split,
                    row["sentence"],
                    audio=clip,
                    language=spoken.code,
                    target_language=written.name,
                    answers={"translation": translation},
                )


Rows = Iterator[tuple[str, str, dict[str, str]]]


def _split_rows(pair: str, parts: dict[str | None, Path], problems: Problems, wanted: Wanted) -> Rows:
    """(place, split, row) of the tables that the official script wrote."""
    for part, path in parts.items():
        split = f"{pair}.{part}"
        if wanted(split):
            for where, row in rows_of(path, ["path", "sentence", "translation"], problems, **_DIALECT):
                yield where, split, row


def _joined_rows(pair: str, released: Path, validated: Path, problems: Problems, wanted: Wanted) -> Rows:
    """The same, of the released table joined with the sentences; in the order of the latter, as official."""
    rows: dict[str, tuple[str, str, dict[str, str]]] = {}
    for where, row in rows_of(released, ["path", "translation", "split"], problems, **_DIALECT):
        if row["split"] not in _PARTS:
            problems.add(where, f"split {row['split']!r} is none of {', '.join(_PARTS)}; correct the row")
        elif row["path"] in rows:
            problems.add(where, f"clip {row['path']!r} occurs twice in the table; keep one row")
        elif wanted(split := f"{pair}.{_PARTS[row['split']]}"):
            rows[row["path"]] = where, split, row
    for _, sentence in rows_of(validated, ["path", "sentence"], problems, **_DIALECT):
        if found := rows.pop(sentence["path"], None):
            where, split, row = found
            yield where, split, row | {"sentence": sentence["sentence"]}
    for where, _, row in rows.values():
        problems.add(where, f"clip {row['path']!r} is not in {validated}; give the folder of Common Voice 4.0")
