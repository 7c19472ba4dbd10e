"""The tables of the report: numbers with their intervals, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.metrics import Score
from lsm_probe.evaluation.mmlu import CHANCE, GROUPS
from lsm_probe.evaluation.tables import agreements, reference_llm, speeds
from lsm_probe.evaluation.text_ability_result import AVERAGE, Number, TextAbilityResult
from lsm_probe.probes.alignment.result import AlignmentResult
from lsm_probe.probes.attention.controls import is_control
from lsm_probe.probes.attention.result import SEGMENTS, AttentionResult
from lsm_probe.probes.importance.result import ImportanceResult
from lsm_probe.probes.knockout.result import SEGMENTS as CUT
from lsm_probe.probes.knockout.result import KnockoutResult
from lsm_probe.probes.sensitivity.result import SensitivityResult
from lsm_probe.reports.collection import KINDS, Results
from lsm_probe.reports.curves import SIGNS, differing, reference_of
from lsm_probe.reports.finding import READ, Finding, last_group_eta, last_layers, shown, sides
from lsm_probe.runner.result import ProbeResult, thinking_summary

NONE = "–"
_HEADS = 3
"""Heads of each checkpoint that are named."""


@dataclass(frozen=True)
class Table:
    """A table as HTML shows it: the first column heads the rows.

    Attributes:
        caption: what it shows.
        columns: heads of the columns.
        rows: cells as text.
        note: below it.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def tokens_table(attention: Sequence[AttentionResult]) -> Table:
    """Token counts, eta under both segment conventions, and that of what each checkpoint is held against."""
    measured = [result for result in attention if not is_control(result)]
    rows = []
    for result in measured:
        reference = reference_of(attention, result)
        both = [NONE] * 4
        if reference is not None:
            marks = differing(result, reference) if reference.n_layers == result.n_layers else None
            layers = [NONE] * 2 if marks is None else [_layers(marks, side) for side in (-1, 1)]
            both = [*_by_segment(reference), *layers]
        counts = [_counts(result, segment) for segment in ("source", "instruction")]
        rows.append([result.name, *counts, *_by_segment(result), *both])
    first, last = last_layers(attention[0])
    where = f"layers {first}–{last}" if len({r.n_layers for r in attention}) == 1 else "the last sixth of the layers"
    other = "text LLM at that length" if any(r.checkpoint["source"] == "text" for r in measured) else "the first"
    columns = ["", "source", "instruction", "η, mean", "η, sum"]
    columns += [f"{other}, mean", f"{other}, sum", "lower in layers", "higher in layers"]
    return Table(
        f"Tokens (mean and range), and η in {where} by mean and by sum over a segment's tokens",
        columns,
        rows,
        "Lower, higher: layers where η differs from that of the text LLM at that length (without one: of the first "
        "checkpoint), p < 0.05 by sign permutation over paired utterances, corrected for the number of layers. With "
        "five utterances or fewer none can be found.",
    )


def layers_table(attention: Sequence[AttentionResult]) -> Table:
    """Eta by layer, marked where it differs."""
    layers = max(result.n_layers for result in attention)
    columns = []
    for result in attention:
        eta, reference = result.eta(), reference_of(attention, result)
        marks = [0] * result.n_layers if reference is None else differing(result, reference)
        cells = [
            f"{eta.mean[i]:.2f} [{eta.ci_low[i]:.2f}, {eta.ci_high[i]:.2f}]{SIGNS[marks[i]]}"
            for i in range(result.n_layers)
        ]
        columns.append(cells + [NONE] * (layers - len(cells)))
    rows = [[str(layer), *cells] for layer, cells in enumerate(zip(*columns, strict=True))]
    note = "▼ lower, ▲ higher than what it is held against, p < 0.05 corrected for the number of layers."
    return Table("η by layer", ["layer", *(r.name for r in attention)], rows, note)


def conventions_table(finding: Finding) -> Table:
    """Whether the finding survives the other conventions."""
    claimed = any(sides(change) != "open" for change in finding.readings[0].changes)
    words = {"holds": "holds", "open": "not shown", "reversed": "reversed"}
    note = "holds: all that the sentence claims lies on the same side of 0 with its interval; reversed: some of it on "
    note += "the other side; not shown: else."
    if not claimed:
        words = {"holds": "none shown either", "open": "a difference"}
        note = "The sentence claims no difference: held counts the rows that show none either (every interval holds 0)."
    signs = {"below": " ▼", "above": " ▲", "open": ""}
    rows = [
        [
            *(reading.conventions[name] for name in READ),
            shown(reading.eta),
            *(shown(change) + signs[sides(change)] for change in reading.changes),
            words[reading.verdict],
        ]
        for reading in finding.readings
    ]
    against = [f"minus {comparison.described.removesuffix(',')}" for comparison in finding.comparisons]
    return Table(
        f"η of {finding.comparisons[0].subject.name} in the last group of layers under every convention",
        [*READ, "η", *against, "the finding"],
        rows,
        f"The sentence reads the first row. It {'holds' if claimed else 'held'} {_by_choice(finding)}. {note}",
    )


def heads_table(attention: Sequence[AttentionResult]) -> Table:
    """The heads with the lowest eta among those that carry at least an even share of their layer."""
    rows = []
    for result in (r for r in attention if not is_control(r)):
        frame = result.head_frame()
        found = frame[frame["share"] >= 1 / frame["head"].nunique()].nsmallest(_HEADS, "eta")
        rows += [
            [
                result.name,
                f"{row['layer']}.{row['head']}",
                f"{row['eta']:.2f} [{row['ci_low']:.2f}, {row['ci_high']:.2f}]",
                f"{100 * row['share']:.0f} %",
            ]
            for row in found.to_dict("records")
        ]
    caption = "Lowest η of heads that carry an even share of their layer or more"
    return Table(caption, ["", "layer.head", "η", "share of its layer"], rows)


def sensitivity_table(results: Sequence[SensitivityResult]) -> Table:
    rows = []
    for result in results:
        eta = result.info_eta()
        rows.append(
            [result.name, shown(result.instruction()), shown(result.source()), NONE if eta is None else shown(eta)]
        )
    unit = f"nats per {results[0].conventions.per}"
    columns = ["", f"D of the instruction, {unit}", f"D of the source, {unit}", "info-η"]
    return Table(f"What instruction and source are worth to {spoken_by(results)}", columns, rows, _whose(results))


def spoken_by(results: Sequence[SensitivityResult]) -> str:
    """Whose words a group of results is measured on."""
    if all(result.of_own_words for result in results):
        return "each checkpoint's own response"
    alike = all(result.responses() == results[0].responses() for result in results)
    return "the same response" if alike else "the response"


def knockout_table(results: Sequence[KnockoutResult]) -> Table:
    rows = []
    for result in results:
        falls = [result.fall_in_all_layers(segment) for segment in CUT]
        eta = result.causal_eta()
        worst = [int(result.falls(segment).mean.argmax()) for segment in CUT]
        known = int(np.isfinite(eta.mean).sum())
        rows.append(
            [
                result.name,
                *map(shown, falls),
                *(f"{layer} ({shown(_at(result.falls(s), layer))})" for layer, s in zip(worst, CUT, strict=True)),
                f"{np.nanmean(eta.mean):.2f} (of {known} of {result.n_layers} layers)" if known else NONE,
            ]
        )
    columns = [
        "",
        "without the instruction",
        "without the source",
        "worst window, instruction",
        "worst window, source",
        "causal η, mean where both matter",
    ]
    note = f"{_whose(results)} causal η: the instruction's part of both losses, in the layers where both are above 0."
    return Table("What the response loses, nats per token: cut off in all layers, and in windows", columns, rows, note)


def alignment_table(results: Sequence[AlignmentResult]) -> Table:
    """Numbers of the last state, and where retrieval is best."""
    names = {
        "paired_cosine": "cosine, own",
        "cosine_gap": "above another's",
        "cka": "CKA",
        "retrieval": "R@1",
        "centroid_distance": "distance of centres",
    }
    rows = []
    for result in results:
        curves, p = result.curves(), result.mmd()["p_value"][-1]
        best = int(np.nanargmax(curves["retrieval"].mean))
        rows.append(
            [
                result.name,
                *(shown(_at(curves[name], -1)) for name in names),
                f"{p:.3f}",
                f"{curves['retrieval'].mean[best]:.2f} in state {result.layers[best]}",
            ]
        )
    note = f"R@1 by lot: {results[0].chance():.2f}. MMD p below 0.05: the two sets can be told apart."
    columns = ["", *names.values(), "MMD p", "best R@1"]
    return Table(f"Speech and its transcript at the last state ({results[0].state()})", columns, rows, note)


def importance_table(results: Sequence[ImportanceResult]) -> Table:
    rows = []
    for result in results:
        share, shift = result.share_by_layer(), None
        if result is not results[0] and result.ids == results[0].ids:
            shift = results[0].differences(result)["shift"]
        peak = int(share.mean.argmax())
        divergence = shift["jensen_shannon"] if shift is not None else None
        rows.append(
            [
                result.name,
                f"{peak} ({_percent(share, peak)})",
                NONE if divergence is None else _curve(divergence, 3),
                NONE if shift is None else _curve(shift["rank_correlation"], 2),
            ]
        )
    columns = ["", "peak layer (its share)", "Jensen–Shannon divergence", "rank correlation"]
    return Table(f"Importance by layer; shift against {results[0].name}", columns, rows)


def evaluation_table(results: Sequence[EvaluationResult]) -> Table:
    """A row for each task and metric."""
    llm, alike = reference_llm(results), agreements(results)
    rows: list[list[str]] = []
    for task in results[0].tasks:
        found = [result.scores().get(task.name, {}) for result in results]
        names = list(dict.fromkeys(name for scores in found for name in scores))
        first = len(rows)
        rows += [["", _words(name), *(_score(scores.get(name)) for scores in found)] for name in names]
        if alike and llm is not None:
            cells = [_score(alike.get(result.name, {}).get(task.name)) for result in results]
            rows.append(["", f"same answer as {llm.name}", *cells])
        rows[first][0] = task.title
    if any(following := [result.following() for result in results]):
        rows.append(["mean of tasks", "asked-for form", *map(_score, following)])
    rows.append(["", "seconds per sample", *(f"{result.seconds.mean():.2f}" for result in results)])
    if speed := speeds(results):
        cells = [f"{speed[r.name].mean:.2f}" if r.name in speed else NONE for r in results]
        rows.append(["", "times as fast as the cascade", *cells])
    note = "Per cent, 95 % intervals over utterances. Word error rates: less is better."
    return Table("What the responses are worth", ["", "", *(r.name for r in results)], rows, note)


def text_ability_table(results: Sequence[TextAbilityResult]) -> Table:
    mmlu, texts = any(r.accuracies for r in results), any(r.nats for r in results)
    names = [*GROUPS, AVERAGE] if mmlu else []
    columns = ["", *(_words(name) for name in names), *(["nats per token", "perplexity"] if texts else [])]
    rows = []
    for result in results:
        numbers = [_number(result.accuracies.get(name), 1) for name in names]
        numbers += [_number(result.nats, 3), _number(result.perplexity, 2)] if texts else []
        rows.append([result.name, *numbers])
    note = f"MMLU accuracy in per cent; guessing gives {CHANCE:g} %." if mmlu else ""
    return Table("What is left of text ability", columns, rows, note)


def checkpoints_table(results: Results) -> Table:
    """Who was measured: names, weights, template."""
    rows: dict[str, list[str]] = {}
    everywhere = [result.checkpoint for probe in KINDS for result in results.of(probe)]
    everywhere += [{**timeline.summary["checkpoint"], "name": timeline.checkpoint} for timeline in results.timelines]
    for checkpoint in everywhere:
        name = str(checkpoint["name"])
        if "control" in checkpoint or name in rows:
            continue
        kind = [str(checkpoint[key]) for key in ("model_type", "revision") if checkpoint.get(key)]
        reads = [str(checkpoint[key]) for key in ("source", "template", "dtype") if checkpoint.get(key)]
        rows[name] = [name, ", ".join(results.full_names[name]), " ".join(kind), ", ".join(reads), _hashes(checkpoint)]
    columns = ["", "measured as", "kind", "source, template, dtype", "weights, sha256"]
    return Table("Checkpoints", columns, list(rows.values()))


def measurements_table(results: Results) -> Table:
    """On what, how and with what: a row for each probe, since its results share data and conventions."""
    rows = []
    groups = [(probe, results.of(probe)) for probe in KINDS] + [("sensitivity, own words", results.own_words)]
    for probe, group in ((probe, group) for probe, group in groups if group):
        first = group[0]
        counts = {len(result.samples) for result in group}
        left_out = [
            f"{result.name}: {reason} ({len(ids)})"
            for result in group
            for reason, ids in result.excluded.items()
            if ids
        ]
        versions = {f"{name} {number}" for result in group for name, number in result.versions.items()}
        rows.append(
            [
                _words(probe),
                f"{first.data['name']}, sha256 {str(first.data['sha256'])[:16]}",
                "–".join(str(count) for count in sorted({min(counts), max(counts)})),
                "; ".join(left_out) or "none",
                _choices(first),
                _self_check(group),
                ", ".join(sorted(versions)),
                ", ".join(sorted({str(result.seed) for result in group})),
            ]
        )
    for timeline in results.timelines:
        about = timeline.summary
        versions = {f"{name} {number}" for name, number in about["versions"].items()}
        sample = str(about["sample"]["id"])
        rows.append(["timeline", sample, "1", "none", "", NONE, ", ".join(sorted(versions)), NONE])
    columns = ["", "data", "samples", "left out", "conventions", "self-check", "versions", "seed"]
    return Table("Measurements", columns, rows)


def _by_segment(result: AttentionResult) -> list[str]:
    return [shown(last_group_eta(result.with_conventions(segment=segment))) for segment in ("mean", "sum")]


def _by_choice(finding: Finding) -> str:
    """How often the finding holds by each value of each convention."""
    parts = []
    for name in READ:
        values = dict.fromkeys(reading.conventions[name] for reading in finding.readings)
        counts = []
        for value in values:
            own = [reading.verdict for reading in finding.readings if reading.conventions[name] == value]
            counts.append(f"{value} {own.count('holds')} of {len(own)}")
        parts.append(f"by {name}: {', '.join(counts)}")
    return "; ".join(parts)


def _counts(result: AttentionResult, segment: str) -> str:
    counts = result.tokens[:, SEGMENTS.index(segment)]
    low, high = int(counts.min()), int(counts.max())
    return f"{counts.mean():.1f}" + (f" ({low}–{high})" if low < high else "")


def _layers(differs: Sequence[int], side: int) -> str:
    """`3–7, 9`."""
    runs: list[list[int]] = []
    for layer in (i for i, own in enumerate(differs) if own == side):
        if runs and runs[-1][1] == layer - 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs) or "none"


def _at(found: Any, place: int) -> Any:
    return type(found)(found.mean[place], found.ci_low[place], found.ci_high[place])


def _percent(found: Any, place: int) -> str:
    mean, low, high = (100 * float(end[place]) for end in (found.mean, found.ci_low, found.ci_high))
    return f"{mean:.1f} %" + (f" [{low:.1f}, {high:.1f}]" if np.isfinite(low) else "")


def _curve(found: Any, digits: int) -> str:
    """A stored number, with its interval where it has one."""
    if not isinstance(found, dict):
        return f"{found:.{digits}f}"
    return f"{found['mean']:.{digits}f} [{found['ci_low']:.{digits}f}, {found['ci_high']:.{digits}f}]".replace("-", "−")


def _score(score: Score | None) -> str:
    return NONE if score is None else f"{score.value:.1f} [{score.ci_low:.1f}, {score.ci_high:.1f}]"


def _number(number: Number | None, digits: int) -> str:
    return NONE if number is None else shown(number.curve, digits)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _whose(results: Sequence[ProbeResult]) -> str:
    """Whose responses were measured, and on how many samples."""
    found = []
    for result in results:
        whose = {"generated": "its own responses", "reference": "reference responses"}[result.conventions.response]
        whose = "given responses" if "responses" in result.checkpoint else whose
        if thinking := thinking_summary(result.samples):
            part = result.checkpoint.get("response_part", "all")
            whose += f", of which {thinking['responses']} begin with thinking (measured: {part})"
        found.append(f"{result.name}: {result.counted}, {whose}")
    return "; ".join(found) + "."


def _hashes(checkpoint: dict[str, Any]) -> str:
    """Of the weights, sixteen digits each; of a model put together for the occasion those of its parts."""
    parts = [("", checkpoint)] + [
        (f"{part} ", checkpoint.get(part) or {}) for part in ("encoder", "llm", "transcriber")
    ]
    found = [(label, digest) for label, part in parts for digest in (part.get("weights_sha256") or {}).values()]
    if trained := (checkpoint.get("training") or {}).get("sha256"):  # what was trained of a built-in model
        found.append(("training ", trained))
    return ", ".join(f"{label}{str(digest)[:16]}" for label, digest in found) or NONE


def _choices(result: ProbeResult) -> str:
    choices = result.conventions.to_dict()
    return ", ".join(f"{k} {v}" for k, v in choices.items() if not isinstance(v, dict) and v not in ("", None))


def _self_check(group: Sequence[ProbeResult]) -> str:
    """The worst of a group, and what it may be."""
    checks = [getattr(result, "self_check", None) or {} for result in group]
    found = [(check.get("worst", check.get("mean")), check.get("worst_bound", check.get("bound"))) for check in checks]
    known = [(reached, bound) for reached, bound in found if reached is not None and bound is not None]
    return "{:.0e} (bound {:.0e})".format(*max(known)) if known else NONE
