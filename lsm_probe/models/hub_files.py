"""Single files of a checkpoint's folder, or of its name on the model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import cached_file

_NO_ERRORS: dict[str, Any] = {
    f"_raise_exceptions_for_{case}": False for case in ("missing_entries", "connection_errors", "gated_repo")
}


def find_file(name: str | Path, file: str) -> Path | None:
    """Where a file of a folder or hub name is, downloaded if need be; None if there is none, or not within reach.

    Args:
        name: folder or hub name; one that does not exist is refused where the model is loaded.
        file: name of the file.
    """
    try:
        found = cached_file(str(name), file, **_NO_ERRORS)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)
