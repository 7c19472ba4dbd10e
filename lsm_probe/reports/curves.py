"""The chart of eta by layer: its lines, bands and marks as SVG paths, for every convention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from lsm_probe.probes.attention.reference import differing, reference_of
from lsm_probe.probes.attention.result import SEGMENTS, AttentionResult
from lsm_probe.reports.conventions import READ, choices
from lsm_probe.runner.checkpoint_styles import NEUTRAL, CheckpointStyle, result_styles
from lsm_probe.runner.result import Floats
from lsm_probe.runner.tables import shown

WIDTH, HEIGHT, LEFT, TOP, RIGHT = 720, 300, 44, 12, 12
"""Size and margins of the chart's plane in its own units; the strips of marks are below the plane."""
STRIP = 15
SHAPES = {
    "o": "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0-6 0z",
    "s": "M-2.6-2.6h5.2v5.2h-5.2z",
    "D": "M0-3.6l3.6 3.6l-3.6 3.6l-3.6-3.6z",
    "^": "M0-3.4l3.4 6h-6.8z",
    "v": "M0 3.4l3.4-6h-6.8z",
    "P": "M-1.2-3.4h2.4v2.2h2.2v2.4h-2.2v2.2h-2.4v-2.2h-2.2v-2.4h2.2z",
    "X": "M-3-3l6 6M3-3l-6 6",
    "<": "M-3.4 0l6-3.4v6.8z",
    ">": "M3.4 0l-6-3.4v6.8z",
    "*": "M0-4l1 2.8h3l-2.4 1.8 1 2.9-2.6-1.8-2.6 1.8 1-2.9-2.4-1.8h3z",
}
"""Matplotlib's markers as SVG paths, so that the chart and the figures use the same markers."""
SIGNS = {-1: " ▼", 0: "", 1: " ▲"}
"""Signs for a value below, not shown to differ, and above."""
_TRIANGLES = {-1: "l4-6h-8z", 1: "l4 6h-8z"}
"""SVG paths of triangles that point to the side where eta lies."""


@dataclass(frozen=True)
class Key:
    """Colour, shape and line of a checkpoint on the page.

    Attributes:
        color: for CSS.
        shape: its marker as an SVG path; None for a control.
        dashed: whether it is a control.
    """

    color: str
    shape: str | None
    dashed: bool = False


@dataclass(frozen=True)
class Line(Key):
    """A checkpoint in the chart; a control has the colour of the checkpoint whose source lengths it uses.

    Attributes:
        name: its name.
        about: samples and source tokens.
        against: name of the result that its layers are compared with, if any.
    """

    name: str = ""
    about: str = ""
    against: str | None = None


def key(style: CheckpointStyle) -> Key:
    """How the page shows a checkpoint of this style. The base LLM has the page's text colour."""
    return Key("var(--text)" if style == NEUTRAL else style.color, SHAPES[style.marker])


def chart(attention: Sequence[AttentionResult]) -> dict[str, Any]:
    """Everything that the page's chart shows, ready for JSON.

    `readings` holds, by the values of `READ` joined with `|`, for each line: `line`, `band` and `marks` (SVG paths),
    and `read`: by layer eta with its interval, and ▼ or ▲ if it is below or above its reference.
    """
    layers = max(result.n_layers for result in attention)
    lines = _lines(attention)
    marked = [line for line in lines if line.against is not None]
    return {
        "layers": layers,
        "lines": lines,
        "marked": marked,
        "x": [round(_x(layer, layers), 1) for layer in range(layers)],
        "readings": {
            "|".join(choice): [
                _drawn(attention, lines, i, dict(zip(READ, choice, strict=True)), layers) for i in range(len(lines))
            ]
            for choice in product(*(choices(name) for name in READ))
        },
    }


def sample_paths(result: AttentionResult, layers: int) -> list[str]:
    """The line of eta for each single sample, under the result's conventions."""
    instruction, source = result.scores()
    return [_path(values, layers) for values in instruction / (instruction + source)]


def height(marked: int) -> int:
    """Height of the whole chart with this number of strips of marks."""
    return TOP + HEIGHT + 34 + STRIP * marked + (8 if marked else 0)


def _lines(attention: Sequence[AttentionResult]) -> list[Line]:
    measured = [r for r in attention if not r.is_control]
    lines = []
    for result, style in zip(attention, result_styles(attention), strict=True):
        control = result.is_control
        served = [r.name for r in measured if result.name in [c.name for c in r.find_controls(attention).values()]]
        tokens = result.tokens[:, SEGMENTS.index("source")].mean()
        kind = "speech" if result.checkpoint.source == "speech" else "transcript"
        lengths = f", as long as those of {', '.join(served)}" if len(served) > 1 else ""
        against = reference_of(attention, result)
        lines.append(
            Line(
                color=key(style).color,
                shape=None if control else key(style).shape,
                dashed=control,
                name=result.name,
                about=f"{len(result.samples)} samples, {tokens:.1f} {kind} tokens{lengths}",
                against=None if against is None or against.n_layers != result.n_layers else against.name,
            )
        )
    return lines


def _drawn(
    attention: Sequence[AttentionResult], lines: Sequence[Line], i: int, choice: dict[str, str], layers: int
) -> dict[str, Any]:
    result = attention[i].with_conventions(**choice)
    eta = result.eta()
    reference = next((r for r in attention if r.name == lines[i].against), None)
    differs = [0] * result.n_layers if reference is None else differing(result, reference.with_conventions(**choice))
    strip = [line.name for line in lines if line.against is not None].index(result.name) if reference else 0
    low, high = _points(eta.ci_low, layers), _points(eta.ci_high, layers)
    return {
        "line": _path(eta.mean, layers),
        "band": f"M{'L'.join(high)}L{'L'.join(reversed(low))}Z" if np.isfinite(eta.ci_low).all() else "",
        "marks": "".join(
            f"M{_x(layer, layers):.1f} {strip_y(strip) - 3 * side}{_TRIANGLES[side]}"
            for layer, side in enumerate(differs)
            if side
        ),
        "read": [f"{shown(eta.at(layer))}{SIGNS[side]}" for layer, side in enumerate(differs)],
    }


def strip_y(strip: int) -> int:
    """Middle of a strip of marks."""
    return TOP + HEIGHT + 42 + STRIP * strip


def _path(values: Floats, layers: int) -> str:
    return f"M{'L'.join(_points(values, layers))}"


def _points(values: Floats, layers: int) -> list[str]:
    return [f"{_x(layer, layers):.1f} {TOP + HEIGHT * (1 - float(v)):.1f}" for layer, v in enumerate(values)]


def _x(layer: int, layers: int) -> float:
    return LEFT + WIDTH * (layer + 0.5) / layers
