"""Writing files so that nothing is ever half-written: beside first, then renamed."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsm_probe.errors import InputError


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


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Gives an empty folder beside `path` that becomes `path` when the block ends well; after an error it is gone.

    Raises:
        InputError: `path` is a file, or a folder that is not empty.
        OSError: the disk is full, or `path` cannot be written; also where a library said so in words of its own.
    """
    path = Path(path).resolve()  # what a link points to is replaced, not the link
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: choose another folder")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path} holds files already: choose another folder")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True) as beside:
        temporary = Path(beside, path.name)  # the outer folder is for its owner alone, this one for whom it may concern
        temporary.mkdir()
        with _system_errors(path):
            yield temporary
        try:
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise InputError(f"{path} holds files already, written meanwhile: choose another folder") from error
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Raises OSError where libraries written in Rust (safetensors, tokenizers) only say `(os error 28)`."""
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error
