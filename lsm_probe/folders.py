"""Output folders that one process at a time writes, and in which an interrupted run can be resumed."""

from __future__ import annotations

import errno
import json
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import filelock
import yaml

from lsm_probe.errors import InputError
from lsm_probe.files import replacing

CONFIG = "config.yaml"
_LOCK = ".lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Error numbers of file systems without locks, such as some network file systems, when a lock is requested."""


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Makes the folder and keeps other processes from writing to it. If it is new and stays empty, it is deleted.

    Raises:
        InputError: the folder cannot be made or written to, or another process holds it.
    """
    try:
        made = not out.exists()
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {out} cannot be made a folder: {error.strerror}") from error
    lock = filelock.FileLock(out / _LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(f"another process is writing to {out}: wait for it or choose another --out") from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise InputError(f"--out {out} cannot be written to: {error.strerror}") from error
        warnings.warn(
            f"the file system of {out} has no file locks, so a second process writing there is not detected: run one "
            "command at a time in this folder",
            stacklevel=4,
        )
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # it has been deleted already
                if [entry.name for entry in out.iterdir()] == [_LOCK]:
                    shutil.rmtree(out)
        lock.release()


@contextmanager
def work_folder(
    out: Path, config: dict[str, Any], *, resume: bool | None, growing: Sequence[str] = ()
) -> Iterator[None]:
    """A folder that is filled piece by piece; it never mixes pieces of different configs.

    `config.yaml` is written on entry, or at the end for work that cannot be resumed. `resume` keeps existing files.

    Args:
        out: the folder.
        config: all settings that decide what is written, as plain values.
        resume: continue in a folder that was started with this config; None for work that cannot be resumed.
        growing: settings that are lists, and may have more entries at the end than when the folder was started.

    Raises:
        InputError: the folder cannot be used, holds files (without `resume`), or was started with another config or
            none.
    """
    config = json.loads(json.dumps(config))  # as YAML returns it: no tuples
    with alone_in(out):
        path = out / CONFIG
        begun = path.exists()
        # Hidden files are the lock and unfinished files of a killed process.
        if not (resume and begun) and any(not entry.name.startswith(".") for entry in out.iterdir()):
            way_out = "continue with --resume, or " if begun and resume is not None else ""
            raise InputError(f"--out {out} holds files already: {way_out}choose another folder")
        earlier = _read_config(path) if begun else {}
        if begun and (changed := _changed(earlier, config, growing)):
            raise InputError(
                f"{out} was started with other settings or data ({', '.join(changed)}): use those again, or choose "
                "another --out"
            )
        if resume is None:
            yield
        if earlier != config:
            with replacing(path) as temporary:
                temporary.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
        if resume is not None:
            yield


def _read_config(path: Path) -> dict[str, Any]:
    try:
        earlier = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: choose another --out") from error
    if not isinstance(earlier, dict):
        raise InputError(f"{path} was not written by this command: choose another --out")
    return earlier


def _changed(earlier: dict[str, Any], config: dict[str, Any], growing: Sequence[str]) -> list[str]:
    """Names of the settings that differ; entries added at the end of a list of `growing` are no difference."""
    changed = {key for key in earlier.keys() | config.keys() if earlier.get(key) != config.get(key)}
    for key in changed & set(growing):
        before = earlier.get(key)
        if isinstance(before, list) and config[key][: len(before)] == before:
            changed.remove(key)
    return sorted(changed)
