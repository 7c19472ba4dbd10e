"""Common Voice, release 4.0 and later: `clips/*.mp3`, and a table for each part with columns `path` and `sentence`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lsm_probe.data.corpora.tables import TABS, Wanted, inside, rows_of_parts
from lsm_probe.data.problems import Problems
from lsm_probe.data.utterance import Utterance
from lsm_probe.errors import InputError
from lsm_probe.languages import require_language

_PARTS = ("train", "dev", "test", "validated", "other", "invalidated")
_CODE = re.compile(r"[a-z]{2,3}(-[A-Za-z]+)*")


def read_common_voice(root: Path, problems: Problems, wanted: Wanted) -> Iterator[Utterance]:
    """A split for each table. "validated" holds train, dev and test again, "invalidated" what listeners refused."""
    code = root.resolve().name
    if not _CODE.fullmatch(code):
        raise InputError(
            f"--root {root} does not have the name of a language; give the language folder of the release, such as 'en'"
        )
    language = require_language(code, f"--root {root}: ").code
    tables = {part: f"{part}.tsv" for part in _PARTS}
    for part, where, row in rows_of_parts(root, tables, ["path", "sentence"], problems, wanted, **TABS):
        with problems.catching(where):
            clip = inside(root / "clips", row["path"])
            yield Utterance(clip.stem, part, row["sentence"], audio=clip, language=language)
