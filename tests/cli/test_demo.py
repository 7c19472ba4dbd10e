"""The demo's steps: valid commands, run in order, and resumed after an interruption."""

import json
import shlex
from importlib import import_module

import pytest

from lsm_probe import assets
from lsm_probe.errors import CheckFailed, WorkFailed
from lsm_probe.reports import demo
from lsm_probe.reports.demo import FULL, TrainingSize, diagnosis_steps, largest_training, repair_steps


@pytest.fixture
def ran(monkeypatch):
    """The commands that a demo runs, none of which does anything; `failures` are the errors that they raise."""
    commands, failures = [], {}

    def run(context, arguments):
        commands.append(arguments)
        if arguments[0] in failures:
            raise failures[arguments[0]]

    monkeypatch.setattr(import_module("lsm_probe.cli.demo"), "_run_command", run)
    monkeypatch.setattr(assets, "speech_encoder", lambda: None)
    monkeypatch.setattr(assets, "language_model", lambda: None)
    monkeypatch.setattr(demo, "_fitting_size", lambda *_: TrainingSize(7, 4))
    return commands, failures


STEPS = [*diagnosis_steps(5), *repair_steps(TrainingSize(3, 4), 5)]


@pytest.mark.parametrize("step", STEPS, ids=[f"{i}-{step.command.split()[0]}" for i, step in enumerate(STEPS)])
def test_every_step_is_a_valid_command(step, parsed, tmp_path):
    assert parsed(shlex.split(step.command.replace("OUT", str(tmp_path))))


def test_each_step_is_printed_and_run_and_the_report_is_named_at_the_end(ran, lsm_probe_command, tmp_path):
    code, out, _ = lsm_probe_command("demo", "--out", tmp_path / "demo", "--steps", 3, "--utterances", 5)
    assert code == 0
    assert ran[0] == [shlex.split(step.command.replace("OUT", str(tmp_path / "demo"))) for step in STEPS]
    assert out.count("$ lsm-probe ") == len(STEPS)
    assert out.splitlines()[-1].endswith(f"Open {tmp_path / 'demo' / 'diagnosis' / 'report.html'}")


def test_the_first_step_is_a_diagnosis_of_built_in_checkpoints(ran, lsm_probe_command, tmp_path):
    lsm_probe_command("demo", "--out", tmp_path / "demo")
    names = [command[0] for command in ran[0]]
    assert names[0] == "diagnose"
    assert names.index("train") > 1


@pytest.mark.parametrize(
    ("seconds", "each", "size"),
    [
        (400, 1.0, FULL),  # 370 s for 320 samples
        (158, 1.0, TrainingSize(32, 4)),
        (400, 0.3, FULL),
        (40, 10.0, TrainingSize(24, 4)),  # no time is left: the smallest
        (-50, 1.0, TrainingSize(24, 4)),
    ],
)
def test_the_largest_training_within_the_time_limit_is_chosen(seconds, each, size):
    assert largest_training(seconds, each) == size


def test_option_full_trains_for_longer(ran, lsm_probe_command, tmp_path):
    assert lsm_probe_command("demo", "--out", tmp_path / "demo", "--full")[0] == 0
    train = next(command for command in ran[0] if command[0] == "train")
    assert {"max_steps=40", "batch_size=8"} < set(train)


def test_the_demo_continues_only_after_a_failed_check(ran, lsm_probe_command, tmp_path):
    commands, failures = ran
    failures["check"] = CheckFailed()
    assert lsm_probe_command("demo", "--out", tmp_path / "demo")[0] == 0
    failures["train"] = WorkFailed("the loss is not finite")
    commands.clear()
    assert lsm_probe_command("demo", "--out", tmp_path / "other")[0] == 1
    assert commands[-1][0] == "train"


def test_an_interrupted_demo_is_resumed_with_the_same_size(ran, lsm_probe_command, tmp_path):
    out = tmp_path / "demo"
    for made in ("commands/test.transcription.jsonl", "answers/manifest.jsonl", "repaired/config.yaml"):
        (out / made).parent.mkdir(parents=True, exist_ok=True)
        (out / made).touch()
    (out / "repair.json").write_text(json.dumps({"steps": 11, "batch": 2}))
    code, _, err = lsm_probe_command("demo", "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "holds files already: continue with --resume, or choose another folder" in err
    code, told, _ = lsm_probe_command("demo", "--out", out, "--resume", "--steps", 20)
    assert code == 0
    assert "The training keeps the size that the demo was started with: 11 steps of 2 samples" in told
    by_name = {command[0]: command for command in ran[0]}
    assert not {"data", "augment"} & set(by_name)
    assert {"max_steps=11", "batch_size=2", "--resume"} < set(by_name["train"])
    assert "--resume" not in ran[0][0]  # the diagnosis had not begun


@pytest.mark.real
@pytest.mark.usefixtures("quick_voice")
def test_the_demo_runs_and_writes_a_report_of_both_checkpoints(lsm_probe_command, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "PLANNED_SECONDS", 0)  # the smallest training
    monkeypatch.setattr(demo, "_SMALLEST", TrainingSize(2, 2))
    command = import_module("lsm_probe.cli.demo")
    run = command._run_command  # with shorter responses and fewer measurements
    shorter = {"diagnose": ["--max-new-tokens", "6", "--quick"], "data": ["--workers", "1"]}
    monkeypatch.setattr(
        command, "_run_command", lambda context, words: run(context, [*words, *shorter.get(words[0], [])])
    )
    out = tmp_path / "demo"
    code, told, stderr = lsm_probe_command("demo", "--utterances", 2, "--out", out)
    assert code == 0, stderr
    assert "cannot tell" in told  # two utterances are too few for a verdict
    assert "s per sample: the repair takes 2 steps of 2 samples" in told
    page = (out / "diagnosis" / "report.html").read_text()
    for name in ("builtin:vanilla_asr", "builtin:llm", "repaired"):
        assert name in page
    assert json.loads((out / "repaired" / "report.json").read_text())["steps"] == 2
