"""The command line in this process."""

import pytest


@pytest.fixture
def data(lsm_probe_command):
    """`data(*arguments)` runs `lsm-probe data`."""
    return lambda *arguments: lsm_probe_command("data", *arguments)
