"""Single files from a checkpoint's folder or from the model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers.utils import cached_file

_NO_ERRORS: dict[str, Any] = {
    f"_raise_exceptions_for_{case}": False for case in ("missing_entries", "connection_errors", "gated_repo")
}


def find_file(name: str | Path, file: str) -> Path | None:
    """The path of a file in a folder or of a hub name, downloaded if necessary; None if it is missing or unreachable.

    Args:
        name: folder or hub name; a missing one is refused later, when the model is loaded.
        file: name of the file.
    """
    try:
        found = cached_file(str(name), file, **_NO_ERRORS)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)
