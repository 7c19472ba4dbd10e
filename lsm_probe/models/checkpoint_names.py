"""Checks whether a checkpoint's name is a folder, and explains errors that the model hub would not explain."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from lsm_probe.errors import InputError
from lsm_probe.files import NOT_HOME


def require_folder(name: str | Path) -> None:
    """Refuses a path to a folder that does not exist. Other names may be on the model hub.

    Raises:
        InputError: there is no such folder, it may not be read, or the name is that of a file.
    """
    name = str(name)
    try:
        if Path(name).is_file():
            other = ", and damaged or of a system that cannot be read" if name.endswith((".pt", ".pth")) else ""
            raise InputError(f"{name} cannot be loaded: it is a file{other}; give the folder that holds it")
        if _is_path(name) and not Path(name).is_dir():
            missing, near = _find_missing_part(name)
            advice = f"did you mean {near}?" if near else "check the path"
            raise InputError(f"{name} cannot be loaded: {missing}; {advice}")
    except OSError as error:
        raise InputError(f"{name} cannot be loaded ({error.strerror}); check the path and its permissions") from error


def may_be_on_hub(name: str) -> bool:
    """Whether a name is looked up on the model hub: it is not a folder, and is a possible hub name."""
    return not (name.startswith("builtin:") or " + " in name or _is_path(name) or Path(name).exists())


def explain_missing_folder(name: str | Path) -> str:
    """The start of an error about a name that is not on the hub: no such folder exists. Empty if the folder exists."""
    if Path(name).is_dir():
        return ""
    missing, near = _find_missing_part(str(name))
    return f"{missing}{f' (did you mean {near}?)' if near else ''}, and the model hub does not give it: "


def _is_path(name: str) -> bool:
    """Whether a name can only be a path: names on the hub are `name` and `owner/name`."""
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1


def _find_missing_part(name: str) -> tuple[str, Path | None]:
    """Returns which part of a path is missing, and which folder may have been meant."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111  # Path's own fails where there is no such user
    if path.is_dir():
        return NOT_HOME, path
    missing = next((part for part in (*reversed(path.parents), path) if not part.exists()), path)
    near = _most_similar(missing)
    if near is not None and (near / path.relative_to(missing)).is_dir():
        near = near / path.relative_to(missing)
    return f"there is no folder {missing.name} in {missing.parent.resolve()}", near


def _most_similar(missing: Path) -> Path | None:
    """The folder beside a missing one whose name is most similar."""
    try:
        beside = sorted(entry.name for entry in missing.parent.iterdir() if entry.is_dir())
    except OSError:
        return None
    found = difflib.get_close_matches(missing.name, beside, n=1)
    return missing.parent / found[0] if found else None
