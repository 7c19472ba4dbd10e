"""Writing files so that nothing is ever half-written: beside first, then renamed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def plain_name(name: str) -> str:
    """A file's name as an id or the name of a split: names may hold bytes that are no Unicode text."""
    return re.sub(r"[^\w.-]+", "-", name).strip(".") or "data"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, with its suffix, that becomes `path` when the block ends well.

    After an error the old file stands as it was and the temporary one is gone.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
