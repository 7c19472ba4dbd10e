"""Output folders: one writer at a time, one config for all that is in them."""

import errno
import os
import re
import stat
from pathlib import Path

import pytest
import yaml

from lsm_probe.errors import InputError
from lsm_probe.files import check_can_write, plain_name, replacing
from lsm_probe.folders import alone_in, work_folder

CONFIG = {"command": "test", "seed": 1, "names": ["a", "ü"]}


def enter(out: Path, config: dict[str, object], *, resume: bool) -> None:
    with work_folder(out, config, resume=resume):
        pass


def test_the_config_is_written_and_read_back(tmp_path: Path) -> None:
    enter(tmp_path / "new" / "out", CONFIG, resume=False)
    assert yaml.safe_load((tmp_path / "new" / "out" / "config.yaml").read_text(encoding="utf-8")) == CONFIG


def test_the_same_config_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    enter(tmp_path, {**CONFIG, "speeds": (1.0, 2.0)}, resume=False)
    enter(tmp_path, {**CONFIG, "speeds": (1.0, 2.0)}, resume=True)
    with pytest.raises(InputError, match=r"other settings or data \(extra, seed\)"):
        enter(tmp_path, {**CONFIG, "speeds": (1.0, 2.0), "seed": 2, "extra": 1}, resume=True)


def test_a_folder_that_holds_something_needs_resume(tmp_path: Path) -> None:
    enter(tmp_path, CONFIG, resume=False)
    with pytest.raises(InputError, match="continue with --resume"):
        enter(tmp_path, CONFIG, resume=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="holds files already: choose another folder"):
        enter(tmp_path / "other", CONFIG, resume=False)


def test_a_growing_list_may_get_entries_at_its_end(tmp_path: Path) -> None:
    def enter_with(names: list[str]) -> None:
        with work_folder(tmp_path, {**CONFIG, "names": names}, resume=True, growing=["names"]):
            pass

    enter_with(["a"])
    enter_with(["a", "b"])
    for other in (["a"], ["b", "a"], ["c", "b"]):
        with pytest.raises(InputError, match=r"other settings or data \(names\)"):
            enter_with(other)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["names"] == ["a", "b"]


def test_resume_of_nothing_begins(tmp_path: Path) -> None:
    enter(tmp_path / "out", CONFIG, resume=True)
    assert (tmp_path / "out" / "config.yaml").exists()


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with work_folder(tmp_path, CONFIG, resume=False):
        with pytest.raises(InputError, match="another process is writing"):
            enter(tmp_path, CONFIG, resume=True)
        with pytest.raises(InputError, match="another process is writing"), alone_in(tmp_path):
            pass
    enter(tmp_path, CONFIG, resume=True)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_written_to_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="has no file locks, so a second process"):
        enter(tmp_path / "out", CONFIG, resume=False)
    assert (tmp_path / "out" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("file/out", "is a file, not a folder"),
        ("x" * 256, "File name too long"),
        ("new/" + "x" * 256 + "/out", "File name too long"),
        ("/proc/out", "cannot be written to"),
        ("file", "is a file: name a folder"),
        ("/dev/null", "is a device, pipe or socket: name a folder"),
        ("link", "is a broken symbolic link: remove it"),
        ("~/out", "~ is not read as the home folder here"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("link").symlink_to("nowhere")
    with pytest.raises(InputError, match=f"--out .*{re.escape(message)}"):
        check_can_write("--out", Path(place), folder=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_what_can_be_written_leaves_no_trace_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    longest = "x" * 250 + ".html"
    check_can_write("--out", Path("new/folder", longest))
    check_can_write("--out", Path(), folder=True)
    assert list(tmp_path.iterdir()) == []
    with replacing(longest) as temporary:
        temporary.touch()
    assert [path.name for path in tmp_path.iterdir()] == [longest]
    with pytest.raises(InputError, match="is a folder: name a file"):
        check_can_write("--out", tmp_path)


def test_a_plain_name_keeps_the_letters_of_all_scripts() -> None:
    assert plain_name("模型 一/नमूना") == "模型-一-नमूना"
    assert plain_name("Cafe\N{COMBINING ACUTE ACCENT}") == "Café"
    long = [plain_name("é" * 200 + end) for end in "ab"]
    assert len(set(long)) == 2
    assert max(len(name.encode()) for name in long) <= 200


@pytest.mark.parametrize("damage", ["", "- a list", "{", "\x00"])
def test_a_damaged_config_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "config.yaml").write_text(damage)
    with pytest.raises(InputError, match=r"config\.yaml"):
        enter(tmp_path, CONFIG, resume=True)


def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be made a folder"):
        enter(tmp_path / "file", CONFIG, resume=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(InputError, match="cannot be written to"):
        enter(tmp_path, CONFIG, resume=False)


def test_resume_never_goes_into_a_folder_that_was_not_begun_here(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="holds files already: choose another folder"):
        enter(tmp_path, CONFIG, resume=True)
    # Hidden: what a kill at the very beginning leaves.
    (tmp_path / "notes.txt").rename(tmp_path / ".config.1234.yaml")
    enter(tmp_path, CONFIG, resume=True)


def test_work_that_cannot_go_on_says_its_config_when_it_is_done(tmp_path: Path) -> None:
    def fail() -> None:
        with work_folder(tmp_path, CONFIG, resume=None):
            raise InputError("bad data")

    with pytest.raises(InputError, match="bad data"):
        fail()
    with work_folder(tmp_path, CONFIG, resume=None):
        assert not (tmp_path / "config.yaml").exists()
    assert (tmp_path / "config.yaml").exists()
    with (
        pytest.raises(InputError, match="holds files already: choose another folder"),
        work_folder(tmp_path, CONFIG, resume=None),
    ):
        pass
