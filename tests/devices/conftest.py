"""The simulated device as a fixture: `tests` is no package to import from."""

import importlib.util
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def simulated_device():
    """`with simulated_device("cuda", count=2, bfloat16=True) as device:`; see `simulated.py`."""
    name = "simulated_device_of_the_tests"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("simulated.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name].simulated_device
