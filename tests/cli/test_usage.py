"""Help, choices, and errors in options."""

import inspect
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from typing import get_args

import pytest
import typer

from lsm_probe.cli import app
from lsm_probe.cli.help import summary
from lsm_probe.cli.options import POOLS, PRESETS, TEMPLATES
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
def test_invalid_arguments_are_reported_in_one_line(arguments, message, lsm_probe_command):
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
def test_help_names_written_files_or_gives_examples(lsm_probe_command, command, words):
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


PROGRAM = typer.main.get_command(app)
COMMANDS = dict(commands(PROGRAM))


def examples(command: typer.core.TyperCommand) -> list[list[str]]:
    """The arguments of each `lsm-probe` command in the examples of a command's help."""
    lines = inspect.cleandoc(command.help).replace("\\\n", " ").splitlines()
    shown = [shlex.split(line) for line in lines if line.startswith("    ")]
    return [words[1 + max(map(words.index, {"lsm-probe", "lsm_probe"} & {*words})) :] for words in shown]


@pytest.fixture
def help_of(capsys, monkeypatch):
    """`help_of(*command)`: what `--help` prints on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")

    def printed(*command):
        PROGRAM.main([*command, "--help"], prog_name="lsm-probe", standalone_mode=False)
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_terminal(name, help_of):
    text = help_of(*name.split())
    assert text.count("\n") < 60
    assert "[required]" in text or " [OPTIONS]" in text
    assert not re.search(r"<\w+", text), "the name of a type stands for a value"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_one_line(name):
    assert len(summary(COMMANDS[name].help)) <= 80
    assert summary(COMMANDS[name].help).endswith(".")


def test_each_command_has_one_line_in_the_list(help_of):
    lines = [line.rstrip() for line in help_of().splitlines()]
    assert len(lines) < 60
    for title in ("Diagnose", "Measure", "Report", "Make data", "Train", "Evaluate"):
        assert title in lines
    for name in COMMANDS:
        if " " not in name:
            (line,) = [line for line in lines if line.startswith(f"  {name} ")]
            assert line.endswith(summary(COMMANDS[name].help))


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_help_are_valid_commands(name, parsed, help_of):
    found = examples(COMMANDS[name])
    assert found or isinstance(COMMANDS[name], typer.core.TyperGroup)
    for words in found:
        parsed(words)  # raises where a command or an option does not exist
    printed = help_of(*name.split()).splitlines()
    for line in inspect.cleandoc(COMMANDS[name].help).splitlines():
        assert not line.startswith("    ") or line in printed


def test_choices_are_shown_and_completed(lsm_probe_command, help_of, monkeypatch):
    assert "[punctuation (default), finished, all]" in " ".join(help_of("augment").split())
    assert "[choices: emotion, transcription; default: emotion]" in " ".join(help_of("data", "meld").split())
    for names in (TEMPLATES, POOLS):
        assert ", ".join(names) in " ".join(help_of().split())
    completed = {
        "figure figure": "figure3",
        "augment --keep p": "punctuation",
        "data meld --task e": "emotion",
        "attention --template v": "vicuna",
        "train mini": "mini/commands",
        "atten": "attention",
    }
    for words, expected in completed.items():
        with monkeypatch.context() as shell:
            shell.setenv("_LSM_PROBE_COMPLETE", "complete_bash")
            shell.setenv("COMP_WORDS", f"lsm-probe {words}")
            shell.setenv("COMP_CWORD", str(len(words.split())))
            code, stdout, _ = lsm_probe_command()
        assert (code, expected in stdout.splitlines()) == (0, True)


def test_help_lists_the_existing_presets_templates_and_pools():
    pytest.importorskip("torch")
    config, templates = (import_module(f"lsm_probe.{name}") for name in ("training.config", "models.templates"))
    assert config.presets() == PRESETS
    assert [name for name in TEMPLATES if name not in templates.TEMPLATES] == []
    assert all(import_module("lsm_probe.data.pools").read_pool(name).tasks for name in POOLS)


def test_the_command_offers_exactly_the_existing_figures():
    assert list(PAPER_FIGURES) == list(get_args(import_module("lsm_probe.cli.figure").Name))
