"""Output folders: one writer at a time, one config for all that is in them."""

import os
import stat
from pathlib import Path

import pytest
import yaml

from lsm_probe.errors import InputError
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
    with pytest.raises(InputError, match="go on with --resume"):
        enter(tmp_path, CONFIG, resume=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(InputError, match="holds files already: choose another folder"):
        enter(tmp_path / "other", CONFIG, resume=False)


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
