"""What the probes' tables and notes share."""

from __future__ import annotations

from typing import Any

from lsm_probe.probes.result import Curve, ProbeResult


def attention_check(check: dict[str, Any]) -> str:
    """How well the captured attention reproduced the model's own."""
    through = f"through {check['backend']}: " if check.get("backend", "native") != "native" else ""
    reached, bound = check["worst"], check["worst_bound"]
    return f"{through}alpha, v and W_O reproduce the attention output to {reached:.0e} (bound {bound:.0e})"


def whose(result: ProbeResult) -> str:
    """Whose responses were measured."""
    if "responses" in result.checkpoint:
        return "given"
    return "its own" if result.conventions.response == "generated" else "the reference"


def with_interval(curve: Curve) -> str:
    """A number with its interval."""
    return f"{curve.mean:.3f} [{curve.ci_low:.3f}, {curve.ci_high:.3f}]"
