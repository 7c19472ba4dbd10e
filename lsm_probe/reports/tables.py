"""The tables of the report: numbers with their intervals, as text."""

from __future__ import annotations

from collections.abc import Sequence

from lsm_probe.diagnosis.verdict import Evidence
from lsm_probe.probes.attention.reference import differing, reference_of
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.reports.collection import Results
from lsm_probe.reports.conventions import READ, all_conventions, comparisons, sides
from lsm_probe.reports.curves import SIGNS
from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.runner.result import MeasurementResult
from lsm_probe.runner.tables import NONE, Table, shown


def evidence_value(evidence: Evidence) -> str:
    """`0.45 [0.28, 0.74] nats per token`."""
    return " ".join(filter(None, (evidence.shown, evidence.unit))) if evidence.shown else "undefined"


def layers_table(attention: Sequence[AttentionResult]) -> Table:
    """Eta by layer, marked where it differs."""
    layers = max(result.n_layers for result in attention)
    columns = []
    for result in attention:
        eta, reference = result.eta(), reference_of(attention, result)
        marks = [0] * result.n_layers if reference is None else differing(result, reference)
        cells = [f"{shown(eta.at(i))}{SIGNS[marks[i]]}" for i in range(result.n_layers)]
        columns.append(cells + [NONE] * (layers - len(cells)))
    rows = [[str(layer), *cells] for layer, cells in enumerate(zip(*columns, strict=True))]
    note = "▼ lower, ▲ higher than the reference (p < 0.05, corrected for the number of layers)."
    return Table("η by layer", ["layer", *(r.name for r in attention)], rows, note)


def conventions_table(attention: Sequence[AttentionResult]) -> Table:
    """By how much eta of each checkpoint differs from its reference under every convention."""
    pairs, signs = comparisons(attention), {"below": " ▼", "above": " ▲", "open": ""}
    rows = []
    for choice in all_conventions(attention):
        changes = [pair.change(**choice) for pair in pairs]
        rows.append([*(choice[name] for name in READ), *(shown(change) + signs[sides(change)] for change in changes)])
    return Table(
        "η minus η of the reference, in the last sixth of the layers, under each combination of conventions",
        [*READ, *(pair.title for pair in pairs)],
        rows,
        "The first row uses the conventions of these results. ▼ or ▲: the whole 95 % interval over paired utterances "
        "is below or above 0.",
        text_columns=len(READ),
    )


def checkpoints_table(results: Results) -> Table:
    """Who was measured: names, weights, template."""
    rows: dict[str, list[str]] = {}
    everywhere = [result.checkpoint for group in results.groups.values() for result in group]
    everywhere += [timeline.checkpoint for timeline in results.timelines]
    for checkpoint in everywhere:
        if checkpoint.control or checkpoint.name in rows:
            continue
        kind = [part for part in (checkpoint.model.model_type, checkpoint.model.revision) if part]
        rows[checkpoint.name] = [
            checkpoint.name,
            ", ".join(results.full_names[checkpoint.name]),
            " ".join(kind),
            ", ".join(filter(None, (checkpoint.source, checkpoint.template, checkpoint.dtype, checkpoint.quantised))),
            _hashes(checkpoint),
        ]
    columns = ["", "name or path", "model type", "source, template, dtype", "weights, sha256"]
    return Table("Checkpoints", columns, list(rows.values()))


def measurements_table(results: Results) -> Table:
    """On what, how and with what: a row for each probe, since its results share data and conventions."""
    rows = []
    groups = [*results.groups.items(), ("sensitivity, own responses", results.own_words)]
    for name, group in ((name, group) for name, group in groups if group):
        first = group[0]
        counts = {len(result.samples) for result in group}
        left_out = [
            f"{result.name}: {reason} ({len(ids)})"
            for result in group
            for reason, ids in result.excluded.items()
            if ids
        ]
        conventions = first.conventions.to_dict().items()
        versions = {f"{package} {number}" for result in group for package, number in result.versions.items()}
        rows.append(
            [
                name.replace("_", " "),
                f"{first.data.name}, sha256 {first.data.sha256[:16]}",
                "–".join(str(count) for count in sorted({min(counts), max(counts)})),
                "; ".join(left_out) or "none",
                ", ".join(f"{k} {v}" for k, v in conventions if not isinstance(v, dict) and v not in ("", None)),
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


def _hashes(checkpoint: CheckpointIdentity) -> str:
    """Of the weights, sixteen digits each; of a model put together for the occasion those of its parts."""
    model = checkpoint.model
    parts = [("", model), ("encoder ", model.encoder), ("llm ", model.llm), ("transcriber ", model.transcriber)]
    found = [(label, digest) for label, part in parts if part for digest in (part.weights_sha256 or {}).values()]
    if model.training:
        found.append(("training ", model.training.sha256))
    return ", ".join(f"{label}{digest[:16]}" for label, digest in found) or NONE


def _self_check(group: Sequence[MeasurementResult]) -> str:
    """The worst of a group, and what it may be."""
    checks = [getattr(result, "self_check", None) or {} for result in group]
    found = [(check.get("worst", check.get("mean")), check.get("worst_bound", check.get("bound"))) for check in checks]
    known = [(reached, bound) for reached, bound in found if reached is not None and bound is not None]
    return "{:.0e} (bound {:.0e})".format(*max(known)) if known else NONE
