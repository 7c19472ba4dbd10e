"""Recommended sections of a report, with reasons: links chosen by the verdicts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from lsm_probe.diagnosis.verdict import Verdict

MOST = 6
"""Largest number of links shown."""
_MOST_NAMES = 3


@dataclass(frozen=True)
class Link:
    """A link to a section.

    Attributes:
        anchor: id of the section.
        title: text of the link.
        reason: one sentence on why this section matters.
    """

    anchor: str
    title: str
    reason: str


def what_to_look_at(verdicts: Sequence[Verdict], anchors: Collection[str]) -> list[Link]:
    """The links that follow from the verdicts, the most important first.

    Args:
        verdicts: of all checkpoints; the evidence of number i has the anchor `verdict-i`.
        anchors: ids of the sections that the report has.
    """
    links = {link.anchor: link for link in reversed([*_links(verdicts)]) if link.anchor in anchors}
    return list(reversed(links.values()))[:MOST]


def _links(verdicts: Sequence[Verdict]) -> Iterator[Link]:
    for i, each in enumerate(verdicts):
        if each.against:
            n = len(each.against)
            numbers = "1 number contradicts" if n == 1 else f"{n} numbers contradict"
            reason = f"{numbers} the verdict “{each.verdict}”."
            yield Link(f"verdict-{i}", f"Evidence about {each.checkpoint}", reason)
    if biased := _with_verdict(verdicts, "ignores the instruction (speech anchor bias)"):
        yield Link("samples", "Samples", f"The responses of {biased}, next to the instructions.")
        yield Link(
            "knockout",
            "Knockout",
            f"In which layers the response of {biased} needs the speech, and in which the instruction.",
        )
        yield Link("eta", "η by layer", f"In which layers the instruction gets less attention in {biased}.")
        yield Link("heads", "Single heads", f"Which attention heads of {biased} attend to the speech.")
    if without_speech := _with_verdict(verdicts, "does not use the speech"):
        reason = f"Whether the hidden states of {without_speech} for speech resemble those for its transcript."
        yield Link("alignment", "Alignment", reason)
        reason = f"How little the responses of {without_speech} depend on the speech (D_s)."
        yield Link("sensitivity", "Sensitivity", reason)
    if between := _with_verdict(verdicts, "in between"):
        reason = f"How much the responses of {between} depend on the instruction (D_i) and on the speech (D_s)."
        yield Link("sensitivity", "Sensitivity", reason)
        yield Link("samples", "Samples", f"Which instructions {between} followed, and which it did not follow.")
    if following := _with_verdict(verdicts, "follows the instruction"):
        yield Link("evaluation", "Evaluation", f"Whether the answers of {following} are also correct.")
        reason = f"How much the responses of {following} depend on the instruction (D_i) and on the speech (D_s)."
        yield Link("sensitivity", "Sensitivity", reason)
    if unknown := _with_verdict(verdicts, "cannot tell"):
        first = next(i for i, each in enumerate(verdicts) if each.verdict == "cannot tell")
        yield Link(f"verdict-{first}", "Evidence", f"What is missing for a verdict about {unknown}.")


def _with_verdict(verdicts: Sequence[Verdict], verdict: str) -> str:
    """Names of the checkpoints with this verdict; empty if there are none."""
    names = [each.checkpoint for each in verdicts if each.verdict == verdict]
    if len(names) > _MOST_NAMES:
        return f"{', '.join(names[:_MOST_NAMES])} and {len(names) - _MOST_NAMES} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
