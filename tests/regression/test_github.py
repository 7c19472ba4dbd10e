"""Workflow commands and the job's summary, as GitHub Actions reads them."""

import re

import pytest

from lsm_probe.errors import InputError
from lsm_probe.regression.check import check
from lsm_probe.regression.github import annotate, annotating, publish

COMMAND = re.compile(r"^::(\w+) file=([^,:]*),title=([^,:]*)::(.*)$")


def decoded(text, *more):
    """As the runner decodes: `%25` last."""
    for code, char in [("%0D", "\r"), ("%0A", "\n"), *more, ("%25", "%")]:
        text = text.replace(code, char)
    return text


@pytest.fixture
def actions(monkeypatch, tmp_path):
    """As inside a job whose repository is `tmp_path`."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    return tmp_path / "summary.md"


@pytest.fixture
def verdict(pair, with_eta, scatter):
    eta = scatter()
    eta[:, 1] -= 0.05
    return check(*pair(with_eta(eta)), paired=True)


def test_a_regression_is_an_error_at_the_baselines_file(actions, verdict, tmp_path, capsys):
    publish(verdict, tmp_path / "baseline")
    out, err = capsys.readouterr()
    level, file, title, message = COMMAND.match(err.strip()).groups()
    assert (level, file, title) == ("error", "baseline/result.json", "eta regressed")
    assert decoded(message) == verdict.text()
    assert not out  # it is the result's


def test_the_summary_holds_the_table(actions, verdict, tmp_path):
    actions.write_text("before\n")
    publish(verdict, tmp_path / "baseline")
    text = actions.read_text()
    assert text.startswith("before\n### ")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows}) == 1
    assert rows[2].startswith("| 1 | ")
    assert rows[2].endswith("| regressed |")


def test_a_curve_that_holds_gives_no_error(actions, pair, capsys, tmp_path):
    publish(check(*pair()), tmp_path / "baseline")
    assert capsys.readouterr().err == ""
    assert "holds" in actions.read_text()


def test_notes_are_warnings(actions, pair, edit, capsys, tmp_path):
    before, now = pair()
    edit(now, checkpoint__dtype="bfloat16")
    publish(check(before, now), before)
    level, _, _, message = COMMAND.match(capsys.readouterr().err.strip()).groups()
    assert level == "warning"
    assert message.startswith("dtypes differ (baseline: float32, current result: bfloat16), ")


def test_an_unusable_result_is_annotated_and_raised(actions, tmp_path, capsys):
    with pytest.raises(InputError), annotating(tmp_path / "eta.json"):
        raise InputError("100 % wrong")
    level, file, title, message = COMMAND.match(capsys.readouterr().err.strip()).groups()
    assert (level, file, title) == ("error", "eta.json", "check unusable")
    assert message == "100 %25 wrong"


def test_special_characters_are_escaped_in_workflow_commands(actions, tmp_path, capsys):
    name, message = "a,b:c%\r\n::x.json", "50 %0A\r\n::error::no"
    annotate("error", message, title="t", file=tmp_path / name)
    (line,) = capsys.readouterr().err.splitlines()
    _, file, _, said = COMMAND.match(line).groups()
    assert decoded(file, ("%3A", ":"), ("%2C", ",")) == name
    assert decoded(said) == message


def test_nothing_is_printed_outside_github_actions(monkeypatch, verdict, tmp_path, capsys):
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    publish(verdict, tmp_path / "baseline")
    assert capsys.readouterr() == ("", "")


def test_a_summary_that_cannot_be_written_does_not_undo_the_verdict(actions, verdict, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    with pytest.warns(UserWarning, match="summary"):
        publish(verdict, tmp_path / "baseline")


def test_a_baseline_outside_the_repository_keeps_its_path(actions, capsys):
    annotate("error", "x", title="t", file="/elsewhere/eta.json")
    assert "file=/elsewhere/eta.json," in capsys.readouterr().err
