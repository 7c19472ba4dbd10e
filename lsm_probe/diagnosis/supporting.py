"""Numbers that support a verdict but never decide it.

They are sensitivity on the base LLM's responses, knockout, eta and alignment.
"""

from __future__ import annotations

from lsm_probe.diagnosis.evidence import (
    BETWEEN,
    FOLLOWS,
    IGNORES,
    NO_VERDICT,
    Finding,
    Values,
    Verdicts,
    as_text,
    number,
)
from lsm_probe.diagnosis.measured import MeasuredCheckpoint
from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.runner.result import layer_groups


def supporting(measured: MeasuredCheckpoint) -> list[Finding]:
    """Findings that are never decisive: sensitivity on the base LLM's responses, knockout, eta, alignment."""
    found = [*_base_words(measured.base_words), *_knockout(measured), _eta(measured), _alignment(measured)]
    return [each for each in found if each is not None]


def _base_words(result: SensitivityResult | None) -> list[Finding]:
    if result is None:
        return []
    findings = []
    parts = (("instruction", "D_i", result.instruction()), ("source", "D_s", result.source()))
    for which, letter, found in parts:
        evidence = number(
            result, found, f"{which}_sensitivity_base_words", f"{letter}, base LLM's responses", "nats per token",
            f"the ceiling of {as_text(result.ceilings()[which == 'source'])}",
            f"How much the {which} raises the log-probability of the base LLM's responses to the transcript. Below 0, "
            "it lowers the log-probability.",
        )  # fmt: skip
        supports: Verdicts = frozenset({FOLLOWS}) if found.ci_low > 0 else NO_VERDICT
        contradicts: Verdicts = frozenset({FOLLOWS}) if found.ci_high < 0 else NO_VERDICT
        findings.append(Finding(evidence, supports, contradicts))
    return findings


def _knockout(measured: MeasuredCheckpoint) -> list[Finding]:
    result = measured.knockout
    if result is None:
        return []
    findings = []
    sides: dict[Segment, Verdicts] = {
        Segment.INSTRUCTION: frozenset({FOLLOWS}),
        Segment.SOURCE: frozenset({FOLLOWS, IGNORES, BETWEEN}),
    }
    for segment, verdicts in sides.items():
        found, name = result.fall_in_all_layers(segment), segment.name.lower()
        evidence = number(
            result, found, f"fall_without_{name}", f"fall without the {name}", "nats per token", "0 (no effect)",
            f"How far the log-probability of the response falls if the response cannot attend to the {name} in any "
            "layer. The masked model is out of distribution, so this number never decides a verdict.",
        )  # fmt: skip
        of_own = result.conventions.response == "generated"
        findings.append(Finding(evidence, verdicts if of_own and found.ci_low > 0 else NO_VERDICT))
    return findings


def _eta(measured: MeasuredCheckpoint) -> Finding | None:
    result, control = measured.attention, measured.control
    if result is None:
        return None
    note = "A high eta is no sign of a good model: a model that does not use the speech has a high eta too."
    compared_with = "nothing: the base LLM was not measured at this source length"
    supports = contradicts = NO_VERDICT
    if control is not None and control.n_layers == result.n_layers and set(control.ids) & set(result.ids):
        result, control = result.paired_with(control)
        gap = result.mean(_last_sixth(result) - _last_sixth(control))
        theirs = float(_last_sixth(control).mean())
        compared_with = f"{as_text(theirs)}, from the base LLM reading transcripts at the same length"
        below = gap.ci_high < 0
        where = "below" if below else "above" if gap.ci_low > 0 else "not clearly different from"
        note = f"It is {where} that of the base LLM at the same source length. {note}"
        supports, contradicts = (frozenset({IGNORES}), frozenset({FOLLOWS})) if below else (supports, contradicts)
    evidence = number(
        result, result.mean(_last_sixth(result)), "eta_last_sixth", "eta, last sixth of the layers", "", compared_with,
        f"The instruction's share of the attention to instruction and source; 0.5 is balanced. {note}",
    )  # fmt: skip
    return Finding(evidence, supports, contradicts)


def _last_sixth(result: AttentionResult) -> Values:
    """Eta of each sample, mean over the last sixth of the layers, `[samples]`."""
    instruction, source = result.scores()
    eta: Values = (instruction / (instruction + source))[:, layer_groups(result.n_layers)[-1]].mean(1)
    return eta


def _alignment(measured: MeasuredCheckpoint) -> Finding | None:
    result = measured.alignment
    if result is None:
        return None
    found, chance = result.curves()["retrieval"].at(-1), result.chance()
    evidence = number(
        result, found, "retrieval", "retrieval of the transcript", "", f"{as_text(chance)} by chance",
        "How often the hidden state of the speech in the last layer is nearest to that of its own transcript. It shows "
        "whether the speech is understood, not whether the instruction is followed.",
    )  # fmt: skip
    understood: Verdicts = frozenset({FOLLOWS, IGNORES, BETWEEN}) if found.ci_low > chance else NO_VERDICT
    return Finding(evidence, understood)
