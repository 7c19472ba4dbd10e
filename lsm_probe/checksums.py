"""Checksums of a checkpoint folder.

They are written last, so a folder that has them is complete. Later damage to a file is detected.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lsm_probe.errors import InputError
from lsm_probe.files import replacing, sync

CHECKSUMS = "checksums.json"
_TORCH_INDEX = ".metadata"  # index of a sharded checkpoint; torch reads it although its name marks it as hidden
_UNVERIFIED = f"or delete {CHECKSUMS} to load the folder unverified"
_WAY_OUT = f"take it from a good copy, {_UNVERIFIED}"


def write_checksums(folder: Path) -> None:
    """Writes size and sha256 of every file below `folder` into its `checksums.json`.

    All files are on the disk before `checksums.json` appears. Hidden files and `README.md`, which people write by
    hand, are left out, because loading reads neither.

    Raises:
        InputError: the folder holds links or other entries that are not regular files.
    """
    files = {}
    for name in sorted(name for name in _entries(folder) if not _is_free(name)):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            raise InputError(f"{path} is not a regular file: replace it with the file itself")
        sync(path)
        files[name] = {"size": path.stat().st_size, "sha256": file_sha256(path)}
    for parent in sorted({parent for name in files for parent in Path(name).parents}):
        sync(folder / parent)
    with replacing(folder / CHECKSUMS) as temporary:
        temporary.write_text(json.dumps({"files": files}, indent=2) + "\n", encoding="utf-8")
        sync(temporary)
    sync(folder)


def is_complete(folder: Path) -> bool:
    """Whether the folder was written completely; [`verify`] checks that its files have not changed since."""
    return os.path.lexists(folder / CHECKSUMS)


def verify(folder: Path) -> bool:
    """Returns whether the folder has checksums; if it has, every file is checked against them.

    Raises:
        InputError: a file is missing, changed, not listed, or a link out of the folder; or `checksums.json` itself is
            damaged or lists files outside the folder.
    """
    if not is_complete(folder):
        return False
    listed = read_checksums(folder)
    present = set(_entries(folder))
    for name in sorted(present - listed.keys()):
        if not _is_free(name):
            raise InputError(f"{folder / name} is not listed in {CHECKSUMS}: remove it, {_UNVERIFIED}")
    for name in listed:
        if name not in present:
            raise InputError(f"{folder / name} is missing: {_WAY_OUT}")
        path = _own_file(folder, name)
        if (size := path.stat().st_size) != listed[name]["size"]:
            raise InputError(f"{path} has {size:,} bytes instead of {listed[name]['size']:,}: {_WAY_OUT}")
    for name in listed:
        if file_sha256(folder / name) != listed[name]["sha256"]:
            raise InputError(f"{folder / name} is damaged or was changed (its sha256 differs): {_WAY_OUT}")
    return True


def read_checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Reads `checksums.json`: the `size` and `sha256` of each file by its name, sorted by name.

    Raises:
        InputError: it is damaged, or names files outside the folder.
    """
    path = _own_file(folder, CHECKSUMS)
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"].items()
        listed = {name: {"size": int(file["size"]), "sha256": str(file["sha256"])} for name, file in files}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {_WAY_OUT}") from error
    for name in listed:
        if leads_outside(name):
            raise InputError(f"{path} lists {name!r}, which is outside the folder: do not use this checkpoint")
    return dict(sorted(listed.items()))


def leads_outside(name: str) -> bool:
    """Whether a file name that was read from another file of a folder may point outside that folder."""
    return bool(Path(name).anchor) or ".." in Path(name).parts


def _own_file(folder: Path, name: str) -> Path:
    """The path of a regular file, checked to be inside the folder and not a link out of it."""
    path = folder / name
    try:
        fault = "" if path.resolve().is_relative_to(folder.resolve()) else "is a link out of the folder"
    except (OSError, RuntimeError):  # links in a circle
        fault = "cannot be followed"
    if not fault and not path.is_file():
        fault = "is not a regular file"
    if fault:
        raise InputError(f"{path} {fault}: replace it with the file itself")
    return path


def _entries(folder: Path) -> Iterator[str]:
    """Names, relative to the folder, of all files and links below it; links are not followed."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if Path(root, name).is_symlink()]
        yield from (Path(root, name).relative_to(folder).as_posix() for name in (*files, *links))


def _is_free(name: str) -> bool:
    """Whether a file may be added, removed or changed freely, because loading does not read it."""
    *_, last = parts = name.split("/")
    hidden = any(part.startswith(".") and part != _TORCH_INDEX for part in parts)
    return name == CHECKSUMS or last == "README.md" or hidden


def file_sha256(path: Path) -> str:
    """sha256 (hexadecimal) of a file's bytes.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
