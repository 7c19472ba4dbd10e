"""Names of checkpoints that are folders of this machine, not names on the model hub: is there such a folder?

The hub would say of them that they are no names of its own, or that it cannot be reached.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from lsm_probe.errors import InputError
from lsm_probe.files import NOT_HOME


def require_folder(name: str | Path) -> None:
    """Refuses a name that only a folder can have where there is none. Other names may be the hub's.

    Raises:
        InputError: there is no such folder, it may not be read, or the name is that of a file.
    """
    name = str(name)
    try:
        if Path(name).is_file():
            raise InputError(f"{name} cannot be loaded: it is a file; give the folder that holds it")
        if _is_path(name) and not Path(name).is_dir():
            missing, near = _look_for(name)
            mend = f"did you mean {near}?" if near else "check the path"
            raise InputError(f"{name} cannot be loaded: {missing}; {mend}")
    except OSError as error:
        raise InputError(f"{name} cannot be loaded ({error.strerror}); check the path and its rights") from error


def may_be_the_hubs(name: str) -> bool:
    """Whether a name is looked for on the hub: it is no folder, and might be one of the hub's."""
    return not (name.startswith("builtin:") or " + " in name or _is_path(name) or Path(name).exists())


def before_the_hub(name: str | Path) -> str:
    """What goes before the hub's words about a name: that it is no folder's. Nothing, if it is one's."""
    if Path(name).is_dir():
        return ""
    missing, near = _look_for(str(name))
    return f"{missing}{f' (did you mean {near}?)' if near else ''}, and the model hub does not give it: "


def _is_path(name: str) -> bool:
    """Whether the hub has no names like this: its own are `name` and `owner/name`."""
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1


def _look_for(name: str) -> tuple[str, Path | None]:
    """Which part of a path is not there, and what may have been meant."""
    path = Path(os.path.expanduser(name))  # noqa: PTH111  # Path's own fails where there is no such user
    if path.is_dir():
        return NOT_HOME, path
    missing = next((part for part in (*reversed(path.parents), path) if not part.exists()), path)
    near = _near(missing)
    if near is not None and (near / path.relative_to(missing)).is_dir():
        near = near / path.relative_to(missing)
    return f"there is no folder {missing.name} in {missing.parent.resolve()}", near


def _near(missing: Path) -> Path | None:
    """The folder beside it whose name is most like its own."""
    try:
        beside = sorted(entry.name for entry in missing.parent.iterdir() if entry.is_dir())
    except OSError:
        return None
    found = difflib.get_close_matches(missing.name, beside, n=1)
    return missing.parent / found[0] if found else None
