"""The command that installs an extra names packages, from the metadata of this package."""

import shlex
from importlib import metadata
from typing import get_args

import pytest
from packaging.requirements import Requirement

from lsm_probe import extras

NAMED = {"speech": "hibari-tts", "voxtral": "mistral-common", "vllm": "vllm", "notebooks": "nbclient"}


@pytest.mark.parametrize("extra", get_args(extras.Extra))
def test_the_command_names_the_packages_of_the_extra(extra):
    pip, install, *packages = shlex.split(extras.install_command(extra))
    assert (pip, install) == ("pip", "install")
    wanted = {
        str(Requirement(line.partition(";")[0]))
        for line in metadata.requires("lsm-probe")
        if (marker := Requirement(line).marker) and marker.evaluate({"extra": extra})
    }
    assert {str(Requirement(package)) for package in packages} == wanted
    assert NAMED.get(extra, "") in " ".join(packages)


def test_without_metadata_the_clone_is_named(monkeypatch):
    def no_metadata(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(extras, "requires", no_metadata)
    assert extras.install_command("speech") == 'pip install ".[speech]" in the clone of lsm-probe'
