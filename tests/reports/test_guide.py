"""The links lead to sections that exist, and follow from the verdicts."""

from lsm_probe.diagnosis.verdict import Evidence, Verdict
from lsm_probe.reports.guide import MOST, what_to_look_at

ANCHORS = {
    "samples",
    "knockout",
    "eta",
    "heads",
    "alignment",
    "sensitivity",
    "evaluation",
    *(f"verdict-{i}" for i in range(9)),
}


def verdict(name, said, *sides):
    evidence = [
        Evidence(key="k", label="D_i", value=0.1, ci_low=0.0, ci_high=0.2, unit="", n_utterances=6, compared_with="",
                 side=side, text="")
        for side in sides
    ]  # fmt: skip
    return Verdict(checkpoint=name, verdict=said, reason="", evidence=evidence)


def test_a_biased_checkpoint_leads_to_its_responses_and_to_the_layers_that_read_the_speech():
    links = what_to_look_at([verdict("mine", "ignores the instruction (speech anchor bias)")], ANCHORS)
    assert [link.anchor for link in links] == ["samples", "knockout", "eta", "heads"]
    assert links[1].reason == "In which layers the response of mine needs the speech, and in which the instruction."


def test_links_lead_only_to_what_the_report_has():
    biased = verdict("mine", "ignores the instruction (speech anchor bias)")
    assert [link.anchor for link in what_to_look_at([biased], {"eta"})] == ["eta"]


def test_evidence_against_a_verdict_comes_first_and_no_section_is_named_twice():
    verdicts = [
        verdict("a", "follows the instruction"),
        verdict("b", "in between", "for", "against", "against"),
        verdict("c", "does not use the speech"),
        verdict("d", "ignores the instruction (speech anchor bias)"),
    ]
    links = what_to_look_at(verdicts, ANCHORS)
    assert (links[0].anchor, links[0].title) == ("verdict-1", "Evidence about b")
    assert links[0].reason == "2 numbers contradict the verdict “in between”."
    anchors = [link.anchor for link in links]
    assert len(anchors) == len(set(anchors)) == MOST


def test_the_link_for_cannot_tell_leads_to_what_is_missing():
    (link,) = what_to_look_at([verdict(name, "cannot tell") for name in "abcde"], ANCHORS)
    assert link.anchor == "verdict-0"
    assert link.reason == "What is missing for a verdict about a, b, c and 2 more."
