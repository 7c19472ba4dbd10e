"""The demo's steps: command lines that this version takes, run in order, resumed where they stopped."""

import json
import shlex

import pytest

from lsm_probe.cli import story


@pytest.fixture
def ran(monkeypatch):
    """The commands that a demo runs, each of which makes what it is for; `codes` are their exit codes."""
    commands, codes = [], {}

    def run(arguments):
        commands.append(arguments[0])
        return codes.get(arguments[0], 0)

    monkeypatch.setattr(story, "_run", run)
    return commands, codes


STEPS = story.story(steps=3, limit=5)


@pytest.mark.parametrize("step", STEPS, ids=[step.command.split()[0] for step in STEPS])
def test_every_step_is_a_command_of_this_version(step, parsed, tmp_path):
    assert parsed(shlex.split(step.command.replace("OUT", str(tmp_path))))


def test_steps_tell_what_they_run_and_end_with_the_page(ran, lsm_probe_command, tmp_path):
    code, out, _ = lsm_probe_command("demo", "--out", tmp_path / "demo", "--steps", 3, "--limit", 5)
    assert code == 0
    assert ran[0] == [step.command.split()[0] for step in STEPS]
    assert out.count("$ lsm-probe ") == len(STEPS)
    assert f"The page to read: {tmp_path / 'demo' / 'report.html'}" in out


def test_a_regression_found_by_the_check_is_part_of_the_story_and_a_failure_is_not(ran, lsm_probe_command, tmp_path):
    commands, codes = ran
    codes["check"] = 1
    assert lsm_probe_command("demo", "--out", tmp_path / "demo")[0] == 0
    codes["attention"] = 1
    commands.clear()
    assert lsm_probe_command("demo", "--out", tmp_path / "other")[0] == 1
    assert commands[-1] == "attention"


def test_what_is_done_is_passed_over(ran, lsm_probe_command, tmp_path):
    (tmp_path / "demo" / "repaired" / "model").mkdir(parents=True)
    (tmp_path / "demo" / "commands").mkdir()
    (tmp_path / "demo" / "commands" / "test.transcription.jsonl").touch()
    code, _, err = lsm_probe_command("demo", "--out", tmp_path / "demo")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds files already: go on with --resume, or choose another folder" in err
    assert lsm_probe_command("demo", "--out", tmp_path / "demo", "--resume")[0] == 0
    assert "data" not in ran[0]
    assert "train" not in ran[0]
    assert ran[0].count("attention") == 1


@pytest.mark.real
def test_it_tells_the_whole_story(lsm_probe_command, tmp_path):
    out = tmp_path / "demo"
    code, told, _ = lsm_probe_command("demo", "--steps", 2, "--limit", 6, "--out", out)
    assert code == 0
    assert "instruction proportion" in told
    assert f"The page to read: {out / 'report.html'}" in told
    page = (out / "report.html").read_text()
    assert "looks least at the instruction" in page
    assert "was not measured" not in page  # whether its subject listens
    guarded = json.loads((out / "attention" / "comparison.json").read_text())["pairs"]
    assert {"builtin:vanilla_asr", "builtin:self_powered"} < {pair["second"] for pair in guarded}
    assert any(pair["same_lengths"] for pair in guarded)  # the control
