"""The pytest plugin, in pytest runs of its own."""

import os
import subprocess
import sys

import pytest

pytest_plugins = "pytester"

TEST = """
import pytest
from pathlib import Path
from lsm_probe import AttentionResult

def test_curve(eta_regression):
    eta_regression.check({current})
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """`run(*flags, current=...)` runs a test that checks a result; its baseline is `test_model/test_curve.json`."""
    # Where the package is installed its entry point would register the plugin a second time.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def test(*flags, current, body=TEST):
        pytester.makepyfile(test_model=body.format(current=current))
        return pytester.runpytest_inprocess("-p", "lsm_probe.regression.plugin", *flags)

    return test


@pytest.fixture
def folder(with_eta, scatter, tmp_path):
    """`folder(fall)`: a saved result whose third layer fell by as much."""

    def save(fall=0.0):
        eta = scatter()
        eta[:, 2] -= fall
        return with_eta(eta).save(tmp_path / f"fell-{fall}")

    return save


def test_the_first_run_writes_the_baseline_and_fails(run, folder, pytester):
    current = folder()
    first = run(current=repr(str(current)))
    first.assert_outcomes(failed=1)
    first.stdout.fnmatch_lines(["*no baseline yet, written: *test_model/test_curve.json"])
    written = pytester.path / "test_model" / "test_curve.json"
    assert written.read_bytes() == (current / "result.json").read_bytes()
    run(current=repr(str(current))).assert_outcomes(passed=1)


def test_a_fall_fails_the_test_and_names_the_layer(run, folder):
    run(current=repr(str(folder())))
    failed = run(current=repr(str(folder(0.05))))
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(
        ["*eta fell by 0.050 in layer 2*", "*baseline: *test_curve.json", "*current: *fell-0.05"]
    )
    run(current=repr(str(folder(0.015)))).assert_outcomes(passed=1)


def test_tolerance_and_side_are_arguments(run, folder):
    run(current=repr(str(folder())))
    fell, rose = repr(str(folder(0.05))), repr(str(folder(-0.05)))
    run(current=f"{fell}, tolerance=0.06").assert_outcomes(passed=1)
    run(current=rose).assert_outcomes(passed=1)
    run(current=f"{rose}, two_sided=True").assert_outcomes(failed=1)


def test_regen_rewrites_a_failing_baseline_and_fails(run, folder, pytester):
    run(current=repr(str(folder())))
    baseline = pytester.path / "test_model" / "test_curve.json"
    before = baseline.read_bytes()
    run("--eta-regen", current=repr(str(folder(0.01)))).assert_outcomes(passed=1)
    assert baseline.read_bytes() == before
    fallen = repr(str(folder(0.05)))
    renewed = run("--eta-regen", current=fallen)
    renewed.assert_outcomes(failed=1)
    renewed.stdout.fnmatch_lines(["*--eta-regen: baseline rewritten: *"])
    run(current=fallen).assert_outcomes(passed=1)


def test_regen_replaces_a_baseline_of_other_data_but_accepts_no_unusable_result(run, folder, edit):
    run(current=repr(str(folder())))
    other = edit(folder(0.001), data__sha256="other")
    refused = run(current=repr(str(other)))
    refused.assert_outcomes(failed=1)
    refused.stdout.fnmatch_lines(["*data (sha256) differs*--eta-regen*"])
    run("--eta-regen", current=repr(str(other))).assert_outcomes(failed=1)
    run(current=repr(str(other))).assert_outcomes(passed=1)
    edit(other, eta__mean=[float("nan")] * 6)
    run("--eta-regen", current=repr(str(other))).assert_outcomes(failed=1)
    run(current=repr(str(edit(folder(), data__sha256="other")))).assert_outcomes(passed=1)


def test_a_result_object_is_taken_as_its_folder(run, folder):
    current = folder()
    run(current=repr(str(current)))
    run(current=f"AttentionResult.load({str(current)!r})").assert_outcomes(passed=1)
    failed = run(current=f"AttentionResult.load({str(folder(0.05))!r})")
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(["*current: *test_curve.obtained.json"])


def test_parameters_and_basenames_have_baselines_of_their_own(run, folder, pytester):
    body = """
import pytest

@pytest.mark.parametrize("name", ["a b", "c"])
def test_many(eta_regression, name):
    eta_regression.check({current})

class TestIt:
    def test_named(self, eta_regression):
        eta_regression.check({current}, basename="mine")
"""
    run(current=repr(str(folder())), body=body).assert_outcomes(failed=3)
    names = sorted(path.name for path in (pytester.path / "test_model").iterdir())
    assert names == ["mine.json", "test_many_a_b_.json", "test_many_c_.json"]
    run(current=repr(str(folder())), body=body).assert_outcomes(passed=3)


def test_the_plugin_works_together_with_pytest_regressions(run, folder, pytester):
    """pytest-regressions defines --force-regen and --regen-all; a second option of the same name would stop pytest."""
    pytester.makepyfile(
        stand_in="""
        def pytest_addoption(parser):
            group = parser.getgroup("regressions")
            for name in ("--force-regen", "--regen-all", "--with-test-class-names"):
                group.addoption(name, action="store_true", default=False)
        """
    )
    pytester.syspathinsert()
    run("-p", "stand_in", current=repr(str(folder())))
    run("-p", "stand_in", "--force-regen", current=repr(str(folder()))).assert_outcomes(passed=1)


def test_the_plugin_imports_nothing_heavy_in_other_pytest_runs():
    code = (
        "import sys, pytest, lsm_probe.regression.plugin\n"
        "heavy = {'numpy', 'torch', 'pandas', 'pydantic', 'transformers', 'typer', 'rich'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
