"""Accepting a baseline: only what can be used, whole or not at all."""

import errno
import shutil

import pytest

from lsm_probe.errors import InputError
from lsm_probe.regression.check import check
from lsm_probe.regression.update import accept


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def current(pair, with_eta, scatter):
    return pair(with_eta(scatter(seed=1) - 0.1))[1]


@pytest.mark.parametrize("name", ["eta.json", "eta", "deep/below/eta.json"])
def test_the_first_baseline_is_a_file_or_a_folder_by_its_name(current, tmp_path, name):
    written = accept(current, tmp_path / name)
    assert written == (tmp_path / name if name.endswith(".json") else tmp_path / name / "result.json")
    assert written.read_bytes() == (current / "result.json").read_bytes()
    assert not check(tmp_path / name, current).regressed


def test_a_new_baseline_takes_the_place_of_the_old(pair, current, tmp_path):
    baseline = tmp_path / "baseline"
    assert check(baseline, current).regressed
    accept(current, baseline)
    assert not check(baseline, current).regressed
    assert names(baseline) == ["result.json"]  # the arrays were of the old curve


def test_arrays_are_copied_for_a_paired_check(pair, current, tmp_path):
    baseline = tmp_path / "baseline"
    accept(current, baseline, arrays=True)
    assert names(baseline) == ["arrays.npz", "result.json", "samples.jsonl"]
    assert not check(baseline, current, paired=True).regressed


def test_an_unusable_result_is_not_accepted(pair, current, edit, tmp_path):
    baseline = tmp_path / "baseline"
    before = (baseline / "result.json").read_bytes()
    edit(current, eta__mean=[float("nan")] * 6)
    with pytest.raises(InputError):
        accept(current, baseline)
    assert (baseline / "result.json").read_bytes() == before


def test_arrays_of_another_curve_are_not_accepted(pair, current, edit, tmp_path):
    edit(current, eta__mean=[0.5] * 6)
    with pytest.raises(InputError, match=r"arrays.npz"):
        accept(current, tmp_path / "new", arrays=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("at", ["result.json", "arrays.npz", "samples.jsonl"])
def test_a_full_disk_leaves_the_old_baseline(pair, current, tmp_path, monkeypatch, at, arrays):
    baseline, copy = tmp_path / "baseline", shutil.copyfile
    before = {path.name: path.read_bytes() for path in baseline.iterdir()}

    def full(source, target):
        copy(source, target)
        if source.name == at:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    if at != "result.json" and not arrays:
        accept(current, baseline)
        return
    with pytest.raises(OSError, match="No space"):
        accept(current, baseline, arrays=arrays)
    assert {path.name: path.read_bytes() for path in baseline.iterdir()} == before


def test_the_result_json_is_renamed_last(pair, current, tmp_path, monkeypatch):
    """Killed in between, the arrays are not of the old curve, which a paired check sees."""
    from pathlib import Path

    order, rename = [], Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, to: (order.append(Path(to).name), rename(path, to))[1])
    accept(current, tmp_path / "baseline", arrays=True)
    assert sorted(order[:2]) == ["arrays.npz", "samples.jsonl"]
    assert order[2:] == ["result.json"]


def test_a_result_cannot_be_its_own_baseline(current):
    with pytest.raises(InputError, match="same file"):
        accept(current, current)
    assert (current / "result.json").exists()


def test_a_baseline_that_cannot_be_written_is_reported_in_one_line(current, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        accept(current, tmp_path / "file" / "eta.json")


def test_generated_responses_give_a_warning(current, edit, tmp_path):
    edit(current, conventions__response="generated")
    with pytest.warns(UserWarning, match="--response reference"):
        accept(current, tmp_path / "new.json")


def test_a_symbolic_link_is_kept(pair, current, tmp_path):
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "baseline" / "result.json")
    accept(current, link)
    assert link.is_symlink()
    assert not check(tmp_path / "baseline", current).regressed
