"""The pytest plugin. Every pytest run of an environment imports it: whatever is heavy waits for the fixture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lsm_probe.regression.fixture import EtaRegression


def pytest_addoption(parser: pytest.Parser) -> None:
    # Not pytest-regressions' --force-regen: whichever of the two plugins comes second would end pytest.
    parser.getgroup("lsm-probe").addoption(
        "--eta-regen",
        action="store_true",
        help="Rewrite baselines of eta_regression that no longer hold (the test fails all the same).",
    )


@pytest.fixture
def eta_regression(request: pytest.FixtureRequest, tmp_path: Path) -> EtaRegression:
    """Holds an eta curve against a baseline kept beside the test: `eta_regression.check(result, tolerance=0.02)`."""
    from lsm_probe.regression.fixture import EtaRegression

    return EtaRegression(
        request.path.with_suffix(""), request.node.name, tmp_path, regenerate=request.config.getoption("--eta-regen")
    )
