"""The pytest plugin. Every pytest run of an environment imports it, so slow imports wait until a fixture is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lsm_probe.regression.fixture import EtaRegression


def pytest_addoption(parser: pytest.Parser) -> None:
    # Not pytest-regressions' --force-regen: two plugins that define the same option would stop pytest.
    parser.getgroup("lsm-probe").addoption(
        "--eta-regen",
        action="store_true",
        help="Rewrite baselines of eta_regression and diagnosis_regression that no longer hold; the test still fails.",
    )


@pytest.fixture
def eta_regression(request: pytest.FixtureRequest, tmp_path: Path) -> EtaRegression:
    """Compares an eta curve with a baseline kept beside the test: `eta_regression.check(result, tolerance=0.02)`."""
    from lsm_probe.regression.fixture import EtaRegression

    return EtaRegression(
        request.path.with_suffix(""), request.node.name, tmp_path, regenerate=request.config.getoption("--eta-regen")
    )


@pytest.fixture
def diagnosis_regression(eta_regression: EtaRegression) -> EtaRegression:
    """Compares a diagnosis with a baseline kept beside the test: `diagnosis_regression.check(diagnosis)`."""
    return eta_regression
