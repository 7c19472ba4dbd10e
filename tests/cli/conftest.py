"""The command line in this process."""

import sys

import pytest

from lsm_probe import cli


@pytest.fixture
def lsm_probe_command(capsys, monkeypatch):
    """`lsm_probe_command(*arguments)` runs `lsm-probe`: exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lsm-probe", *map(str, arguments)])
        with pytest.raises(SystemExit) as info:
            cli.main()
        captured = capsys.readouterr()
        return info.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def data(lsm_probe_command):
    """`data(*arguments)` runs `lsm-probe data`."""
    return lambda *arguments: lsm_probe_command("data", *arguments)
