"""The report: results of probes, evaluations and timelines as one HTML page to send to a colleague."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lsm_probe.diagnosis.rules import LIMITS
from lsm_probe.diagnosis.verdict import Evidence, Verdict
from lsm_probe.errors import InputError
from lsm_probe.files import replacing
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.reports import curves, tables
from lsm_probe.reports.collection import Results, StoredTimeline, measurements
from lsm_probe.reports.conventions import READ, choices, comparisons, eta_warnings
from lsm_probe.reports.guide import what_to_look_at
from lsm_probe.reports.verdicts import find_verdicts
from lsm_probe.runner.checkpoint_styles import shared_styles
from lsm_probe.runner.page import Section
from lsm_probe.runner.style import own_settings
from lsm_probe.runner.tables import precision_notes

LARGEST = 5_000_000
"""Largest size of a page in bytes. Timelines, then samples, are left out if they would exceed it."""
_SAMPLES = 100
"""Largest number of samples that are shown one by one."""
_DECISIVE = 5
"""Largest number of values in a row of the verdict table."""
_WITH_RESPONSES = ("attention", "evaluate", "sensitivity", "knockout")
"""Measurements that can provide the responses to show; the first available one is used."""
_LONGEST = 2_000
"""Number of characters of a response that are shown."""


@dataclass(frozen=True)
class ShownSamples:
    """Samples and timelines that the page has room for, and how many were left out.

    Attributes:
        samples: instruction, transcript, response by checkpoint and lines of eta, one dictionary each.
        names: the checkpoints of the responses.
        same: whether all checkpoints have the same responses: the reference, or given ones.
    """

    samples: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    same: bool = False
    samples_left_out: int = 0
    timelines: list[StoredTimeline] = field(default_factory=list)
    timelines_left_out: int = 0


@own_settings()
def report_page(results: Results, verdicts: Sequence[Verdict] | None = None) -> str:
    """The page: self-contained, readable without JavaScript, below `LARGEST`.

    Args:
        results: what it shows.
        verdicts: about checkpoints among the results; by default those of [`find_verdicts`].

    Raises:
        InputError: it would be larger without any timeline or sample.
    """
    with shared_styles(results.checkpoints()) as styles:
        verdicts = find_verdicts(results) if verdicts is None else verdicts
        shown_sections = sections(results)
        first = next((group[0] for _, group in results.measured()), None)
        content: dict[str, Any] = {
            "title": "Speech anchor bias",
            "about": f"{first.data.name}, {first.counted}" if first else f"{len(results.timelines)} timelines",
            "verdicts": verdicts,
            "limits": LIMITS,
            "keys": {each.checkpoint: curves.key(styles[each.checkpoint]) for each in verdicts},
            "value_of": tables.evidence_value,
            "decisive": {each.checkpoint: decisive(each) for each in verdicts},
            "links": what_to_look_at(verdicts, _anchors(results, verdicts, shown_sections)),
            "chart": None,
            "chart_data": None,
            "choices": {name: choices(name) for name in READ},
            "geometry": curves,
            "warnings": eta_warnings(results.attention) if results.attention else [],
            "sections": shown_sections,
            "missing": [each.name for name, each in measurements().items() if not results.groups[name]],
            "provenance": [tables.checkpoints_table(results), tables.measurements_table(results)],
        }
        if results.attention:
            chart = curves.chart(results.attention)
            stored = "|".join(getattr(results.attention[0].conventions, name) for name in READ)
            shared = {"x": chart["x"], "readings": chart["readings"], "stored": stored}
            content |= {"chart": chart, "chart_data": shared, "stored": stored}
            content["layers_table"] = tables.layers_table(results.attention)
        return _fitted(results, content)


def save_report(results: Results, path: Path, verdicts: Sequence[Verdict] | None = None) -> None:
    """Writes the page; see [`report_page`]."""
    page = report_page(results, verdicts)
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode())


def sections(results: Results) -> list[Section]:
    """What there is to show, in the order of the page."""
    found = []
    for measurement, group in results.measured():
        own = measurement.make_sections(group, results)
        found += [replace(each, notes=[*each.notes, *precision_notes(group)]) for each in own[:1]] + own[1:]
    if results.attention:
        found.append(_conventions_section(results.attention))
    return found


def decisive(verdict: Verdict) -> list[Evidence]:
    """The numbers that a verdict is shown with: the first that speak for it. `cannot tell` is shown with its reason."""
    if verdict.verdict == "cannot tell":
        return []
    return [each for each in verdict.evidence if each.side == "for"][:_DECISIVE]


def _conventions_section(attention: Sequence[AttentionResult]) -> Section:
    alone = all(pair.reference is None for pair in comparisons(attention))
    reference = (
        "0.5 (balanced)" if alone else "η of its reference (the text LLM at the same source length, if measured)"
    )
    intro = (
        f"This table shows whether η of each checkpoint differs from {reference}. All rows evaluate the same "
        "measurement, under different conventions. A difference that appears in all rows does not depend on them. "
        "heads: norm of the sum over heads, or mean of the norms of single heads. segment: mean or sum over the tokens "
        "of a segment. aggregate: mean over samples of the ratio, or ratio of the means. span: the instruction alone, "
        "or with the template around it."
    )
    return Section("conventions", "η under other conventions", intro, tables=[tables.conventions_table(attention)])


def _anchors(results: Results, verdicts: Sequence[Verdict], shown: Sequence[Section]) -> set[str]:
    """Ids of what the page has."""
    found = {section.anchor for section in shown} | {f"verdict-{i}" for i in range(len(verdicts))}
    with_responses = any(results.groups[name] for name in _WITH_RESPONSES)
    return found | ({"eta"} if results.attention else set()) | ({"samples"} if with_responses else set())


def _fitted(results: Results, content: dict[str, Any]) -> str:
    """The page with as many timelines and samples as it has room for."""
    environment = Environment(
        loader=PackageLoader("lsm_probe", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("report.html.j2")
    shown = _shown_samples(results)
    while len((page := template.render(shown=shown, **content)).encode()) > LARGEST:
        if shown.timelines:
            left_out = shown.timelines_left_out + 1
            shown = replace(shown, timelines=shown.timelines[:-1], timelines_left_out=left_out)
        elif shown.samples:
            keep = len(shown.samples) // 2
            left_out = shown.samples_left_out + len(shown.samples) - keep
            shown = replace(shown, samples=shown.samples[:keep], samples_left_out=left_out)
        else:
            raise InputError(
                f"the report would be {len(page.encode()) / 1e6:.1f} MB large, above the limit of {LARGEST / 1e6:.0f} "
                "MB: give fewer checkpoints"
            )
    return page


def _shown_samples(results: Results) -> ShownSamples:
    """Samples of the first probe that has responses, with each checkpoint's response side by side."""
    group: list[Any] = next((g for name in _WITH_RESPONSES if (g := results.groups[name])), [])
    measured = [result for result in group if not result.is_control]
    if not measured:
        return ShownSamples(timelines=list(results.timelines))
    by_id = [{sample["id"]: sample for sample in result.samples} for result in measured]
    ids = list(dict.fromkeys(sample for result in measured for sample in result.ids))
    layers = max(result.n_layers for result in results.attention) if results.attention else 0
    paths = [
        dict(zip(result.ids, curves.sample_paths(result, layers), strict=True)) if results.attention else {}
        for result in measured
    ]
    samples = []
    for sample_id in ids[:_SAMPLES]:
        found = [known.get(sample_id) for known in by_id]
        one = next(sample for sample in found if sample is not None)
        samples.append(
            {
                "id": sample_id,
                "instruction": one["instruction"],
                "text": one.get("text"),
                "reference": one.get("reference"),
                # Without the thinking, if there is an answer.
                "responses": [s and str(s.get("answer") or s["response"])[:_LONGEST] for s in found],
                "lines": [known.get(sample_id) for known in paths],
            }
        )
    return ShownSamples(
        samples=samples,
        names=[result.name for result in measured],
        same=all(len(set(sample["responses"])) == 1 for sample in samples),
        samples_left_out=len(ids) - len(samples),
        timelines=list(results.timelines),
    )
