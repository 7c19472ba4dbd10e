"""The fixtures `eta_regression` and `diagnosis_regression`: a comparison with a baseline beside the test."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from lsm_probe.diagnosis.diagnosis import Diagnosis
from lsm_probe.errors import InputError
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.regression.kinds import accept, check
from lsm_probe.runner.result import write_json


@dataclass(frozen=True)
class EtaRegression:
    """Compares eta curves and diagnoses with baselines, as the fixtures of pytest-regressions compare their data.

    A baseline is `<test file>/<test>.json` beside the test file, a plain `result.json` or `diagnosis.json`. The first
    run writes it and fails, so that a person must look at the baseline. `--eta-regen` rewrites baselines that no longer
    match, and also fails.

    Attributes:
        folder: where the baselines are.
        test: name of the test.
        scratch: folder where the current result is kept, to be inspected after a failure.
        regenerate: `--eta-regen`.
    """

    folder: Path
    test: str
    scratch: Path
    regenerate: bool

    def check(
        self,
        result: AttentionResult | Diagnosis | str | Path,
        basename: str | None = None,
        tolerance: float | None = None,
        two_sided: bool = False,
    ) -> None:
        """Fails the test if there is a regression, or if the two cannot be compared.

        Eta must not fall by more than `tolerance` in any layer. In a diagnosis, no verdict must become worse, and D_i
        and the share of responses in the requested format must not fall by more than `tolerance`.

        Args:
            result: a result of the attention probe or a diagnosis, or the folder or JSON file it was saved to.
            basename: name of the baseline, without `.json`; by default the test's. Give one to check several curves.
            tolerance: by default 0.02 for eta and 0.05 for a diagnosis.
            two_sided: a rise counts as much as a fall.
        """
        __tracebackhide__ = True
        name = re.sub(r"\W", "_", self.test) if basename is None else basename
        baseline = self.folder / f"{name}.json"
        current = self.scratch / f"{name}.obtained.json"
        if isinstance(result, AttentionResult | Diagnosis):
            write_json(current, result.to_dict())
        else:
            current = Path(result)
        if failure := self._failure(baseline, current, tolerance, two_sided):
            pytest.fail(failure, pytrace=False)

    def _failure(self, baseline: Path, current: Path, tolerance: float | None, two_sided: bool) -> str | None:
        """Why the test fails, or None."""
        try:
            if not baseline.exists():
                return f"no baseline yet, written: {accept(current, baseline)}"
            found = check(baseline, current, tolerance=tolerance, two_sided=two_sided)
            if not found.regressed:
                return None
            reason = "\n".join([found.text(), *(f"note: {note}" for note in found.notes)])
        except InputError as error:
            reason = str(error).replace("--update", "--eta-regen")
        if self.regenerate:
            try:
                return f"{reason}\n--eta-regen: baseline rewritten: {accept(current, baseline)}"
            except InputError as error:
                return str(error)
        return f"{reason}\nbaseline: {baseline}\ncurrent: {current}"
