"""What the probes' tables and notes share."""

from __future__ import annotations

from typing import Any

from lsm_probe.runner.result import Curve, ProbeResult, thinking_summary


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


def thinking_note(result: ProbeResult) -> str | None:
    """How many responses begin with thinking, and what was done with it; None if none does."""
    found = thinking_summary(result.samples)
    if found is None:
        return None
    note = (
        f"{found['responses']} of {len(result.samples)} responses begin with thinking (on average "
        f"{found['thinking_tokens']:.1f} tokens, before {found['answer_tokens']:.1f} of the answer)"
    )
    if found["unfinished"]:
        note += f"; {found['unfinished']} stop before the thinking ends: raise --max-new-tokens"
    if result.PROBE == "evaluate":
        return f"{note}; {_scored_part({task.read for task in result.conventions.tasks})}"
    if "response_part" in result.checkpoint:
        return f"{note}; measured: the {result.checkpoint['response_part']}"
    return f"{note}; all tokens are measured (--response-part answer: the answers alone)"


def _scored_part(settings: set[str]) -> str:
    """Which part of responses with thinking is scored.

    Args:
        settings: the `read` of all tasks.
    """
    if settings == {"all"}:
        return "scores use whole responses, thinking included"
    if "all" in settings:
        return "tasks with `read: all` score whole responses, the others only the text after the thinking"
    return (
        "scores use only the text after the thinking, and a response whose thinking does not end counts as empty "
        "(--read all scores whole responses)"
    )


def with_interval(curve: Curve) -> str:
    """A number with its interval."""
    return f"{curve.mean:.3f} [{curve.ci_low:.3f}, {curve.ci_high:.3f}]"
