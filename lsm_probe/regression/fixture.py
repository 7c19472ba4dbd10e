"""The `eta_regression` fixture: an eta curve held against a baseline beside the test."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from lsm_probe.errors import InputError
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.regression.check import TOLERANCE, check
from lsm_probe.regression.update import accept
from lsm_probe.runner.result import write_json


@dataclass(frozen=True)
class EtaRegression:
    """Holds eta curves against baselines, as the fixtures of pytest-regressions hold their data.

    A baseline is `<test file>/<test>.json` beside the test file, a plain `result.json`. The first run writes it and
    fails, so that no baseline comes to be unseen; `--eta-regen` rewrites those that do not hold, and fails as well.

    Attributes:
        folder: where the baselines are.
        test: name of the test.
        scratch: where the current curve is kept, to be inspected after a failure.
        regenerate: `--eta-regen`.
    """

    folder: Path
    test: str
    scratch: Path
    regenerate: bool

    def check(
        self,
        result: AttentionResult | str | Path,
        basename: str | None = None,
        tolerance: float = TOLERANCE,
        two_sided: bool = False,
    ) -> None:
        """Fails the test if eta fell by more than `tolerance` in any layer, or the two cannot be compared.

        Args:
            result: a result of the attention probe, or the folder or `result.json` it was saved to.
            basename: name of the baseline, without `.json`; by default the test's. Give one to check several curves.
            tolerance: how far eta may fall, in units of eta (0 ... 1).
            two_sided: a rise counts as much as a fall.
        """
        __tracebackhide__ = True
        name = re.sub(r"\W", "_", self.test) if basename is None else basename
        baseline = self.folder / f"{name}.json"
        current = self.scratch / f"{name}.obtained.json"
        if isinstance(result, AttentionResult):
            write_json(current, result.to_dict())
        else:
            current = Path(result)
        if failure := self._failure(baseline, current, tolerance, two_sided):
            pytest.fail(failure, pytrace=False)

    def _failure(self, baseline: Path, current: Path, tolerance: float, two_sided: bool) -> str | None:
        """Why the test fails, or None."""
        try:
            if not baseline.exists():
                return f"no baseline yet, written: {accept(current, baseline)}"
            verdict = check(baseline, current, tolerance=tolerance, two_sided=two_sided)
            if not verdict.regressed:
                return None
            reason = "\n".join([verdict.text(), *(f"note: {note}" for note in verdict.notes)])
        except InputError as error:
            reason = str(error).replace("--update", "--eta-regen")
        if self.regenerate:
            try:
                return f"{reason}\n--eta-regen: baseline rewritten: {accept(current, baseline)}"
            except InputError as error:
                return str(error)
        return f"{reason}\nbaseline: {baseline}\ncurrent: {current}"
