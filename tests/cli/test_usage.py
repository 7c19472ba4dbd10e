"""What the command line says of itself: help, choices and mistakes in options."""

import pytest


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


@pytest.mark.parametrize("arguments", [(), ("data",)])
def test_without_a_command_the_help_is_printed(arguments, lsm_probe_command):
    code, stdout, stderr = lsm_probe_command(*arguments)
    assert (code, stderr) == (2, "")
    assert "Usage: lsm-probe" in stdout
