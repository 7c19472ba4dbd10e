"""The simulated device as a fixture: `tests` is not a package to import from."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
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


@pytest.fixture(scope="session")
def assert_close():
    """`assert_close(found, expected)`: to within 1e-6 of the largest number; what holds no numbers is the same."""

    def check(found, expected):
        if not np.issubdtype(np.asarray(expected).dtype, np.floating):
            np.testing.assert_array_equal(found, expected)
            return
        scale = np.nanmax(np.abs(expected), initial=0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * scale)

    return check
