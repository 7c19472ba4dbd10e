"""The report: results of probes, evaluations and timelines as one HTML page to send to a colleague."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from lsm_probe.errors import InputError
from lsm_probe.files import replacing
from lsm_probe.probes.attention.controls import is_control
from lsm_probe.reports import curves, tables
from lsm_probe.reports.collection import KINDS, Results, StoredTimeline
from lsm_probe.reports.finding import READ, Finding, find_in
from lsm_probe.reports.pictures import Picture, picture
from lsm_probe.reports.tables import Table
from lsm_probe.runner.style import own_settings

LARGEST = 5_000_000
"""Bytes of a page. Timelines, then samples, are left out where they would make it larger."""
_SAMPLES = 100
"""Most samples to look at one by one."""
_LONGEST = 2_000
"""Characters of a response that are shown."""
_PALETTE = (
    "#0173b2",
    "#de8f05",
    "#029e73",
    "#d55e00",
    "#cc78bc",
    "#ca9161",
    "#fbafe4",
    "#949494",
    "#ece133",
    "#56b4e9",
)
"""seaborn's `colorblind`, as in the figures."""


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: its id.
        title: its head.
        intro: how to read it.
        pictures: figures.
        tables: numbers.
    """

    anchor: str
    title: str
    intro: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Look:
    """Samples and timelines that the page has room for.

    Attributes:
        samples: instruction, transcript, response by checkpoint and lines of eta, one dictionary each.
        names: the checkpoints of the responses.
        same: whether all checkpoints have the same responses: the reference, or given ones.
        samples_left_out: how many are not there.
        timelines: pages of single utterances.
        timelines_left_out: how many are not there.
    """

    samples: list[dict[str, Any]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    same: bool = False
    samples_left_out: int = 0
    timelines: list[StoredTimeline] = field(default_factory=list)
    timelines_left_out: int = 0


@own_settings()
def report_page(results: Results) -> str:
    """The page: self-contained, readable without JavaScript, below `LARGEST`.

    Raises:
        InputError: it would be larger without any timeline or sample.
    """
    finding = find_in(results)
    content: dict[str, Any] = {
        "title": "Speech anchor bias",
        "finding": finding,
        "about": _about(results),
        "palette": _PALETTE,
        "chart": None,
        "chart_data": None,
        "choices": {name: curves.choices(name) for name in READ},
        "geometry": curves,
        "warnings": _warnings(results, finding),
        "sections": sections(results, finding),
        "missing": [probe.replace("_", "-") for probe in KINDS if not results.of(probe)],
        "provenance": [tables.checkpoints_table(results), tables.measurements_table(results)],
    }
    if results.attention:
        chart = curves.chart(results.attention)
        stored = "|".join(getattr(results.attention[0].conventions, name) for name in READ)
        shared = {"x": chart["x"], "readings": chart["readings"], "stored": stored}
        content |= {"chart": chart, "chart_data": shared, "stored": stored}
        content["layers_table"] = tables.layers_table(results.attention)
    return _fitted(results, content)


def save_report(results: Results, path: Path) -> None:
    """Writes the page."""
    page = report_page(results)
    with replacing(path) as temporary:
        temporary.write_bytes(page.encode())


def sections(results: Results, finding: Finding | None) -> list[Section]:
    """What there is to show, in the order of the page."""
    parts: list[tuple[Sequence[Any], Callable[[], Section]]] = [
        (results.attention, lambda: _lengths(results)),
        (results.attention, lambda: _conventions(finding)),
        (results.attention, lambda: _heads(results)),
        (results.sensitivity, lambda: _sensitivity(results)),
        (results.knockout, lambda: _knockout(results)),
        (results.alignment, lambda: _alignment(results)),
        (results.importance, lambda: _importance(results)),
        (results.evaluation, lambda: _evaluation(results)),
        (results.text_ability, lambda: _text_ability(results)),
    ]
    return [make() for there, make in parts if there]


def _fitted(results: Results, content: dict[str, Any]) -> str:
    """Rendered with as many timelines and samples as there is room for."""
    look = _look(results)
    while len((page := _render(look, content)).encode()) > LARGEST:
        if look.timelines:
            look = Look(
                **{**vars(look), "timelines": look.timelines[:-1], "timelines_left_out": look.timelines_left_out + 1}
            )
        elif look.samples:
            keep = len(look.samples) // 2
            left_out = look.samples_left_out + len(look.samples) - keep
            look = Look(**{**vars(look), "samples": look.samples[:keep], "samples_left_out": left_out})
        else:
            raise InputError(
                f"the report would have {len(page.encode()) / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}: report fewer "
                "checkpoints at a time"
            )
    return page


def _render(look: Look, content: dict[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("lsm_probe", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(look=look, **content)


def _look(results: Results) -> Look:
    """Samples of the first probe that has responses, with each checkpoint's response side by side."""
    group: list[Any] = next(
        (g for p in ("attention", "evaluation", "sensitivity", "knockout") if (g := results.of(p))), []
    )
    measured = [result for result in group if not is_control(result)]
    if not measured:
        return Look(timelines=list(results.timelines))
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
                "responses": [None if sample is None else _answer(sample)[:_LONGEST] for sample in found],
                "lines": [known.get(sample_id) for known in paths],
            }
        )
    return Look(
        samples=samples,
        names=[result.name for result in measured],
        same=all(len(set(sample["responses"])) == 1 for sample in samples),
        samples_left_out=len(ids) - len(samples),
        timelines=list(results.timelines),
    )


def _answer(sample: Mapping[str, Any]) -> str:
    """The response without its thinking, if there is an answer."""
    return str(sample.get("answer") or sample["response"])


def _about(results: Results) -> str:
    """Data and number of samples, of the first probe there is."""
    first = next((group[0] for probe in KINDS if (group := results.of(probe))), None)
    if first is None:
        return f"{len(results.timelines)} timelines"
    return f"{first.data['name']}, {first.counted}"


def _warnings(results: Results, finding: Finding | None) -> list[str]:
    """What forbids taking curves bare. Text LLM and speech are not compared bare here, but at one length."""
    found = list(finding.caveats) if finding else []
    said = (
        {frozenset((c.subject.name, c.reference.name)) for c in finding.comparisons if c.reference}
        if finding
        else set()
    )
    speech = [r for r in results.attention if r.checkpoint["source"] == "speech"]
    others = [other for other in speech[1:] if {speech[0].name, other.name} not in said]
    return found + [warning for other in others if (warning := speech[0].warning(other)) is not None]


def _lengths(results: Results) -> Section:
    return Section(
        "tokens",
        "Token counts and the length-matched control",
        "The number of source tokens moves η by itself: as the source gets longer, η by mean rises and η by sum falls. "
        "So a speech checkpoint is held against the text LLM whose transcripts were repeated or cut to as many tokens, "
        "with the same responses at the same positions.",
        tables=[tables.tokens_table(results.attention)],
    )


def _conventions(finding: Finding | None) -> Section:
    assert finding is not None
    return Section(
        "conventions",
        "Other conventions",
        "All of them are read from the same measurement. heads: norm of the sum over heads, or mean of the heads' "
        "norms; segment: mean or sum over a segment's tokens; aggregate: mean over samples of the ratio, or ratio of "
        "the means; span: the instruction alone, or with the template around it.",
        tables=[tables.conventions_table(finding)],
    )


def _heads(results: Results) -> Section:
    from lsm_probe.probes.attention.plot import eta_heads_figure

    measured = [result for result in results.attention if not is_control(result)]
    figure = picture(eta_heads_figure(measured), "heads", "Maps of η by layer and head, one for each checkpoint")
    return Section(
        "heads",
        "Single heads",
        "Red heads look at the source, blue ones at the instruction; the area of a square is the head's share of its "
        "layer.",
        [figure],
        [tables.heads_table(results.attention)],
    )


def _sensitivity(results: Results) -> Section:
    from lsm_probe.probes.sensitivity.plot import sensitivity_figure

    shown = [group for group in (results.sensitivity, results.own_words) if group]
    pictures = []
    for i, group in enumerate(shown):
        whose, figure = tables.spoken_by(group), sensitivity_figure(group)
        figure.suptitle(f"{whose[0].upper()}{whose[1:]}")
        described = f"What instruction and source are worth to {whose}, by checkpoint and along it"
        pictures.append(picture(figure, f"sensitivity-{i}", described))
    return Section(
        "sensitivity",
        "Sensitivity",
        "Without looking at attention: D is how much likelier the response is under its own instruction (its own "
        "source) than under a pool of others. Near 0, it is ignored. info-η is the instruction's part of both. On "
        "shared responses checkpoints can be compared; on its own a checkpoint shows what it goes by.",
        pictures,
        [tables.sensitivity_table(group) for group in shown],
    )


def _knockout(results: Results) -> Section:
    from lsm_probe.probes.knockout.plot import knockout_figure, knockout_heads_figure

    pictures = [
        picture(knockout_figure(results.knockout), "knockout", "What is lost without instruction and source, by layer")
    ]
    if all(result.head_layers for result in results.knockout):
        figure = knockout_heads_figure(results.knockout)
        pictures.append(picture(figure, "knockout-heads", "What is lost without one head's view of each segment"))
    return Section(
        "knockout",
        "Knockout",
        f"The response may not see a segment in {results.knockout[0].conventions.window} neighbouring layers; shown is "
        "what it loses. What other tokens had taken from the segment before still gets through: the instruction "
        "reaches the response through the source tokens, for example.",
        pictures,
        [tables.knockout_table(results.knockout)],
    )


def _alignment(results: Results) -> Section:
    from lsm_probe.probes.alignment.plot import alignment_figure

    figure = alignment_figure(results.alignment)
    segment = results.alignment[0].conventions.segment
    return Section(
        "alignment",
        "Alignment",
        f"Where the states of the {segment} lie for speech and for its transcript: both in one plane by t-SNE, whose "
        "distances mean little, and beside it the numbers by state, which mean something above chance alone.",
        [picture(figure, "alignment", "Speech and transcripts in one plane, and their likeness by state")],
        [tables.alignment_table(results.alignment)],
    )


def _importance(results: Results) -> Section:
    from lsm_probe.probes.importance.plot import importance_figure

    return Section(
        "importance",
        "Importance by layer",
        "How much the loss would change, to first order, if a weight were 0. Shares of all layers, since a model that "
        "answers worse has larger gradients everywhere.",
        [picture(importance_figure(results.importance), "importance", "Importance by layer and by module")],
        [tables.importance_table(results.importance)],
    )


def _evaluation(results: Results) -> Section:
    from lsm_probe.evaluation.plot import evaluation_figure

    figure = evaluation_figure(results.evaluation)
    return Section(
        "evaluation",
        "Evaluation",
        "Greedy responses to tasks. Apart from whether they are right, it is counted whether they have the asked-for "
        "form, which is what speech anchor bias destroys.",
        [picture(figure, "evaluation", "Scores by task and the share of responses in the asked-for form")],
        [tables.evaluation_table(results.evaluation)],
    )


def _text_ability(results: Results) -> Section:
    return Section(
        "text-ability",
        "Text ability",
        "What speech training cost the LLM on text alone.",
        tables=[tables.text_ability_table(results.text_ability)],
    )
