"""What the command line says of itself: help, choices and mistakes in options."""

from collections.abc import Iterator
from importlib import import_module
from typing import get_args

import pytest
import typer

from lsm_probe.cli import app
from lsm_probe.reports.paper_figures import PAPER_FIGURES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("attention",), "missing option '--ckpt'; see lsm-probe attention --help"),
        (("attention", "--foo"), "no such option: --foo"),
        (("attention", "--ckpt", "x", "--limit", "0"), "invalid value for '--limit'"),
        (("nonsense",), "no such command 'nonsense'; see lsm-probe --help"),
        (("data", "librispeech"), "missing option '--root'; see lsm-probe data librispeech --help"),
    ],
)
def test_mistakes_are_one_line(arguments, message, lsm_probe_command):
    code, stdout, stderr = lsm_probe_command(*arguments)
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert stderr.startswith(f"error: {message}")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("sensitivity", ("D_i", "--instructions", "--pool", "--sources", "sensitivity_tokens.csv")),
        ("importance", ("--masks", "--ablate", "--write-lr-schedule", "--scratch", "importance.png", "masks.npz")),
        ("augment", ("lsm-probe augment --data",)),
    ],
)
def test_help_names_what_is_written_or_gives_examples(lsm_probe_command, command, words):
    code, stdout, _ = lsm_probe_command(command, "--help")
    assert code == 0
    assert all(word in stdout for word in words)


@pytest.mark.parametrize("arguments", [(), ("data",)])
def test_without_a_command_the_help_is_printed(arguments, lsm_probe_command):
    code, stdout, stderr = lsm_probe_command(*arguments)
    assert (code, stderr) == (2, "")
    assert "Usage: lsm-probe" in stdout


def commands(group: typer.core.TyperGroup, *above: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    for name, command in group.commands.items():
        yield " ".join([*above, name]), command
        if isinstance(command, typer.core.TyperGroup):
            yield from commands(command, *above, name)


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_the_first_line_of_help_stands_alone(name):
    first, _, rest = COMMANDS[name].help.strip().partition("\n")
    assert len(first) <= 80
    assert first.endswith((".", "?"))
    assert not rest or rest.startswith("\n")


def test_choices_are_shown_and_completed(lsm_probe_command, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "120")
    assert "<punctuation|finished|all>" in lsm_probe_command("augment", "--help")[1]
    assert "[emotion|transcription]" in lsm_probe_command("data", "meld", "--help")[1]
    completed = {"figure figure": "figure3", "augment --keep p": "punctuation", "data meld --task e": "emotion"}
    for words, expected in completed.items():
        with monkeypatch.context() as shell:
            shell.setenv("_LSM_PROBE_COMPLETE", "complete_bash")
            shell.setenv("COMP_WORDS", f"lsm-probe {words}")
            shell.setenv("COMP_CWORD", str(len(words.split())))
            code, stdout, _ = lsm_probe_command()
        assert (code, expected in stdout.splitlines()) == (0, True)


def test_the_names_of_figures_are_those_that_can_be_drawn():
    assert list(PAPER_FIGURES) == list(get_args(import_module("lsm_probe.cli.figure").Name))
