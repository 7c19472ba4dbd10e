"""The user's cache, with one folder for each asset. A folder is complete or absent, and is built only once."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lsm_probe.assets.pins import Asset
from lsm_probe.errors import InputError
from lsm_probe.folders import NO_LOCKS

SEAL = "asset.json"


def cache_root() -> Path:
    """Where converted assets live: `$LSM_PROBE_CACHE`, else `lsm-probe` in the user's cache folder.

    Raises:
        InputError: neither LSM_PROBE_CACHE, XDG_CACHE_HOME nor a home folder gives a path.
    """
    chosen, base = os.environ.get("LSM_PROBE_CACHE"), os.environ.get("XDG_CACHE_HOME")
    if not chosen and base and Path(base).is_absolute():
        return Path(base) / "lsm-probe"
    try:
        return Path(chosen).expanduser().absolute() if chosen else Path.home() / ".cache" / "lsm-probe"
    except RuntimeError:  # HOME is not set, and the system does not know this user, as in many containers
        raise InputError(
            "the cache folder of the embedded models cannot be found, because this user has no home folder: set "
            "LSM_PROBE_CACHE to an absolute path that can be written"
        ) from None


def obtain(asset: Asset, build: Callable[[Path, Path], None]) -> Path:
    """The asset's folder, which is built first if it is missing, damaged or made from another pin.

    `build(scratch, target)` fills the empty folder `target`, and may use `scratch`, which is deleted. No process sees
    an incomplete `target`: it is made beside the final folder and renamed when complete. Processes that ask for the
    same asset at the same time wait for the first one.

    Raises:
        InputError: the asset cannot be obtained, or the cache cannot be written.
    """
    folder = cache_root() / asset.name
    if is_ready(folder, asset):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder, asset):
            if not is_ready(folder, asset):  # another process may have built it meanwhile
                _build_beside(folder, asset, build)
    except OSError as error:
        if error.strerror is None:  # transformers raises OSError for its own errors
            raise
        raise _unusable(folder, asset, error.strerror) from error
    return folder


def is_ready(folder: Path, asset: Asset) -> bool:
    """Whether `folder` is complete, undamaged and made from this pin and converter version; takes milliseconds."""
    try:
        seal = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        return seal["pin"] == _pin(asset) and all(_unchanged(folder / f["name"], f) for f in seal["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unusable(folder: Path, asset: Asset, reason: str) -> InputError:
    return InputError(
        f"cannot prepare {asset.title} in {folder.parent}: {reason}; "
        "make room there or set LSM_PROBE_CACHE to a folder that can be written"
    )


def _pin(asset: Asset) -> dict[str, Any]:
    pin: dict[str, Any] = json.loads(json.dumps(asdict(asset)))
    # These do not change what is in the folder.
    del pin["title"], pin["way_out"], pin["room_megabytes"]
    return pin


def _unchanged(path: Path, recorded: dict[str, Any]) -> bool:
    # A cache that was copied has new times but the same bytes.
    stat = path.stat()
    same_time = stat.st_mtime_ns == recorded["mtime_ns"]
    return stat.st_size == recorded["size"] and (same_time or sha256(path) == recorded["sha256"])


@contextmanager
def _alone(folder: Path, asset: Asset) -> Iterator[None]:
    from filelock import FileLock, Timeout

    from lsm_probe.assets.notice import tell

    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        with tell(f"waiting for another process that is preparing {asset.title}"):
            lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        # Without a lock, two processes may both build it; each renames its folder only when complete.
    try:
        yield
    finally:
        lock.release()


def _build_beside(folder: Path, asset: Asset, build: Callable[[Path, Path], None]) -> None:
    prefix = f".{folder.name}.building-"
    # Left by a killed process: we hold the lock, so no other process is writing there.
    for stale in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    # Checked first, because the libraries that write the weights report a full disk in different ways.
    if shutil.disk_usage(folder.parent).free < asset.room_megabytes * 1_000_000:
        raise _unusable(folder, asset, f"needs {asset.room_megabytes} MB of free disk")
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        scratch, target = Path(temporary, "scratch"), Path(temporary, "target")
        scratch.mkdir()
        target.mkdir()
        build(scratch, target)
        _seal(target, asset)
        if os.path.lexists(folder):
            folder.rename(Path(temporary, "replaced"))
        target.rename(folder)


def _seal(target: Path, asset: Asset) -> None:
    files = []
    for path in sorted(p for p in target.rglob("*") if p.is_file()):
        # safetensors writes files that only the owner can read, but a cache may be shared.
        path.chmod(0o644)
        stat = path.stat()
        name = path.relative_to(target).as_posix()
        files.append({"name": name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256(path)})
    text = json.dumps({"pin": _pin(asset), "files": files}, indent=2) + "\n"
    (target / SEAL).write_text(text, encoding="utf-8")
