"""Sensitivity, as `lsm-probe sensitivity` prints it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.runner.tables import NONE, Table, whose, with_interval


def sensitivity_table(results: Sequence[SensitivityResult]) -> Table:
    """D_i, D_s and info-eta: a row for each checkpoint and unit."""
    rows = []
    for result in results:
        for per in ("token", "response"):
            read = result.with_conventions(per=per)
            most = "/".join(dict.fromkeys(f"{ceiling:.2f}" for ceiling in read.ceilings()))
            info_eta = read.info_eta()
            numbers = (with_interval(read.instruction()), with_interval(read.source()), most)
            rows.append([result.name, per, *numbers, NONE if info_eta is None else with_interval(info_eta)])
    return Table(
        "what the response depends on: nats that the own instruction (D_i) and source (D_s) add",
        ["checkpoint", "per", "D_i", "D_s", "most", "info-η"],
        rows,
        "95 % interval over utterances; most: log of the pool's size; – where D_i or D_s may be 0",
        text_columns=2,
    )


def sensitivity_note(result: SensitivityResult) -> str:
    check = result.self_check
    pools = " and ".join(f"{round(float(np.exp(most)), 1):g}" for most in result.ceilings())
    pool = f"pools of {pools} ({result.conventions.pool}, sources)"
    return (
        f"{pool}; responses: {whose(result)}; scored to {check['mean']:.0e} nats a token (bound {check['bound']:.0e})"
    )
