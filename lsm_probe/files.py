"""Write files so that they are never incomplete: to a temporary path first, which is then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsm_probe.errors import InputError

_LONGEST_NAME = 200
"""Bytes. It leaves room for the longer names of temporary files and folders."""
_SYSTEMS_LONGEST_NAME = 255
NOT_HOME = "~ is not read as the home folder here"
"""Only the shell expands `~`."""


def plain_name(name: str) -> str:
    """Turns any text into a name for a file, folder, id or split; see [`short_enough`].

    Letters, accents and digits of any script stay (NFC), as do `.`, `_` and `-`. Each run of other characters becomes
    one `-`.
    """
    kept = (c if c in "._-" or unicodedata.category(c)[0] in "LMN" else " " for c in unicodedata.normalize("NFC", name))
    return short_enough(re.sub(" +", "-", "".join(kept)).strip(".") or "data")


def short_enough(name: str) -> str:
    """A name of at most 200 bytes in UTF-8: a longer one is cut and ends in a hash of the whole name."""
    content = name.encode()
    if len(content) <= _LONGEST_NAME:
        return name
    return f"{content[: _LONGEST_NAME - 9].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:8]}"


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, with its suffix, that is renamed to `path` if the block succeeds.

    After an error, the old file is unchanged and the temporary file is deleted.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:12]}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_is_empty(path: Path) -> None:
    """Refuses a path that is not a folder, or a folder that holds files. The path need not exist.

    Raises:
        InputError: `path` is a file, or a folder that is not empty.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file: choose another folder")
    if path.is_dir() and any(path.iterdir()):
        raise InputError(f"{path} holds files already: choose another folder")


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Gives an empty folder beside `path` that is renamed to `path` if the block succeeds, and deleted if not.

    Raises:
        InputError: `path` is a file, or a folder that is not empty.
        OSError: the disk is full, or `path` cannot be written; also where a library raised another exception for it.
    """
    path = Path(path).resolve()  # replaces the target of a link, not the link
    check_is_empty(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent, ignore_cleanup_errors=True) as beside:
        temporary = Path(beside, path.name)  # only the owner can read the outer folder; this one gets usual permissions
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


def check_can_write(what: str, path: Path, *, folder: bool = False) -> None:
    """Checks, before any work, that a file or files in a folder can be written later; leaves no file behind.

    Args:
        what: names the path in the message, such as the option it was given with.
        path: neither it nor the folders above it need to exist.
        folder: whether the path is for a folder.

    Raises:
        InputError: it cannot be written.
    """
    try:
        if path.parts[:1] and path.parts[0].startswith("~"):
            raise InputError(f"{what} {path}: {NOT_HOME}; write the path in full")
        if path.is_symlink() and not path.exists():
            raise InputError(f"{what} {path} is a broken symbolic link: remove it or choose another path")
        if path.exists() and not (path.is_dir() if folder else path.is_file()):
            kind = "folder" if path.is_dir() else "file" if path.is_file() else "device, pipe or socket"
            raise InputError(f"{what} {path} is a {kind}: name a {'folder' if folder else 'file'}")
        there = path.absolute()
        while not there.is_dir():
            if len(os.fsencode(there.name)) > _SYSTEMS_LONGEST_NAME:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            if there.exists() and there != path.absolute():
                raise OSError(errno.ENOTDIR, f"{there} is a file, not a folder")
            there = there.parent
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise InputError(f"{what} {path} cannot be written to ({error.strerror}): choose another path") from None


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says that the disk, or the user's quota, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def sync(path: Path) -> None:
    """Waits until a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _system_errors(path: Path) -> Iterator[None]:
    """Raises OSError where libraries written in Rust (safetensors, tokenizers) only write `(os error 28)`."""
    try:
        yield
    except Exception as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        number = int(found[1])
        raise OSError(number, os.strerror(number), str(path)) from error


def regular_file_bytes(path: Path) -> int:
    """Size of a regular file in bytes. It uses only `stat`: reading a fifo or a device could block or never end.

    Raises:
        InputError: `path` does not exist, cannot be looked at, or is not a regular file.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        home = any(part.startswith("~") for part in path.parts)
        advice = f"{NOT_HOME}, write the path in full" if home else "check the path"
        raise InputError(f"{path} does not exist; {advice}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    except ValueError as error:  # a NUL character, or half a surrogate pair
        raise InputError(f"{str(path)!r} is not a path ({error}); check it") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path} is a directory; name a file")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a pipe, socket or device; name a regular file")
    return status.st_size
