"""Figures and tables in the form and print size of arXiv:2410.03798, with the numbers behind them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lsm_probe.errors import InputError
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.tables import speeds
from lsm_probe.evaluation.text_ability_result import TextAbilityResult
from lsm_probe.files import replacing
from lsm_probe.probes.alignment.plot import modality_key, plot_points
from lsm_probe.probes.alignment.result import AlignmentResult
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.runner.checkpoint_styles import CheckpointStyle, result_labels, result_styles
from lsm_probe.runner.dtypes import dtype_warning
from lsm_probe.runner.labels import use_fonts_with_all_glyphs, wrapped
from lsm_probe.runner.picture_files import save_figure, save_frame
from lsm_probe.runner.result import GROUPS, Curve, Floats, MeasurementResult, curve, layer_groups
from lsm_probe.runner.style import own_settings

COLUMN, PAGE = 3.4, 7.0
"""Widths in inches of one column and of the page of a two-column paper."""
_LONGEST_NAME = 48
"""Longest name, in characters, that fits into a column."""


@dataclass(frozen=True)
class PaperFigure:
    """A figure of the paper, or a table (`figure` is None), made from at least `least` results of one class."""

    result: type[MeasurementResult]
    frame: Callable[[Sequence[Any]], pd.DataFrame]
    figure: Callable[[Sequence[Any]], Figure] | None = None
    least: int = 1


def save_paper_figure(name: str, results: Sequence[MeasurementResult], out: Path) -> list[str]:
    """Write a figure as `NAME.png`, `.svg` and `.csv`, a table as `NAME.csv`, `.md` and `.tex`; return their names.

    Results of other measurements are ignored.

    Raises:
        InputError: there are too few results of its probe, or they lack numbers that it shows.
    """
    kind = PAPER_FIGURES[name]
    results = [result for result in results if isinstance(result, kind.result)]
    if len(results) < kind.least:
        raise InputError(
            f"{name} needs at least {kind.least} {kind.result.NAME} results, and {len(results)} are given: "
            "add result folders"
        )
    if warning := dtype_warning({result.name: result.checkpoint.dtype for result in results}):
        warnings.warn(warning, stacklevel=2)
    frame = kind.frame(results)
    if kind.figure is not None:
        save_frame(frame, out / f"{name}.csv")
        with own_settings(), sns.axes_style("ticks"), sns.plotting_context("paper", font_scale=0.9):
            figure = kind.figure(results)
            use_fonts_with_all_glyphs(figure)
        save_figure(figure, out / name)
        return [f"{name}.png", f"{name}.svg", f"{name}.csv"]
    written = {
        "csv": frame.to_csv(index=False),
        "md": _markdown(frame),
        "tex": frame.to_latex(index=False, escape=True),
    }
    for suffix, text in written.items():
        with replacing(out / f"{name}.{suffix}") as path:
            path.write_text(text, encoding="utf-8")
    return [f"{name}.{suffix}" for suffix in written]


def eta_by_group(result: AttentionResult) -> Curve:
    """Eta averaged over `numpy.array_split(layers, 6)`, with its interval, `[groups]`."""
    return curve(_grouped(result.eta().mean), _grouped(result.left_out_eta()))


def group_frame(results: Sequence[AttentionResult]) -> pd.DataFrame:
    """A row for each checkpoint and group: its layers, eta with its interval."""
    return pd.concat([_rows(result.name, result, eta_by_group(result)) for result in results])


def gain_frame(results: Sequence[AttentionResult]) -> pd.DataFrame:
    """[`group_frame`], and the last LSM minus each of the others, paired on their common samples.

    An LSM is compared only with its own control, because controls at other lengths do not match it.
    """
    last, gains = _gains(results)
    rows = [_rows(f"{last.name} − {name}", last, gain) for name, gain in gains]
    return pd.concat([group_frame(results), *rows])


def plot_groups(results: Sequence[AttentionResult], ax: Axes) -> None:
    """Draws eta by group, with a dotted line at 0.5."""
    curves = [(label, eta_by_group(result)) for label, result in zip(_labels(results), results, strict=True)]
    _plot_curves(curves, ax, _styles(results))
    ax.axhline(0.5, color="0.5", linewidth=0.8, linestyle=":")
    ax.set(ylim=(0, 1), ylabel="η", xlabel="group of layers, first to last")


def eta_figure(results: Sequence[AttentionResult]) -> Figure:
    """Figure 3."""
    figure = _figure(COLUMN, 2.6 + 0.16 * len(results))
    plot_groups(results, ax := figure.subplots())
    return _finished(figure, [ax])


def gain_figure(results: Sequence[AttentionResult]) -> Figure:
    """Figure 5."""
    figure = _figure(COLUMN, 4.2 + 0.16 * (2 * len(results) - 1))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    plot_groups(results, above)
    above.set(xlabel="")
    last, gains = _gains(results)
    # Each checkpoint that is subtracted has the same style as above.
    styles = dict(zip((result.name for result in results), _styles(results), strict=True))
    labels = dict(zip(styles, _labels(results), strict=True))
    _plot_curves([(f"− {labels[name]}", gain) for name, gain in gains], below, [styles[name] for name, _ in gains])
    below.axhline(0, color="0.5", linewidth=0.8)
    below.set(ylabel="Δη", xlabel="group of layers, first to last")
    above.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.04))
    return _finished(figure, [above, below], legend_of=below, title=labels[last.name])


def plane_frame(results: Sequence[AlignmentResult]) -> pd.DataFrame:
    """A row for each checkpoint, sample and modality: its point in the plane of the last state."""
    rows = []
    for result in results:
        for modality, points in zip(("speech", "transcript"), result.embed_2d(-1), strict=True):
            place = {"x": points[:, 0], "y": points[:, 1]}
            rows.append(pd.DataFrame({"checkpoint": result.name, "sample": result.ids, "modality": modality, **place}))
    return pd.concat(rows)


def plane_figure(results: Sequence[AlignmentResult]) -> Figure:
    """Figure 6."""
    columns = min(len(results), 3)
    rows = -(-len(results) // columns)
    width = min(PAGE, COLUMN * columns)
    figure = _figure(width, COLUMN if rows == 1 else rows * width / columns + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in panels[len(results) :]:
        ax.set_axis_off()
    styles = result_styles(results)
    for result, label, style, ax in zip(results, _labels(results), styles, panels, strict=False):
        plot_points(result, ax=ax, color=style.color)
        ax.set_title(wrapped(label, width / columns, 8), fontsize=8)
        ax.set_frame_on(False)
    figure.legend(handles=modality_key(styles), loc="outside lower center", frameon=False, fontsize=7)
    return figure


def task_table(results: Sequence[EvaluationResult]) -> pd.DataFrame:
    """Table 2: a row for each checkpoint, the first metric of each task, per cent."""
    rows = []
    for result in results:
        scores, following = result.scores(), result.following()
        shown = {task.title: scores.get(task.name, {}).get(task.metrics[0]) for task in result.tasks}
        shown |= {"follows": following} if following else {}
        rows.append({"model": result.name, **{key: _one_digit(score) for key, score in shown.items()}})
    return pd.DataFrame(rows)


def mmlu_table(results: Sequence[TextAbilityResult]) -> pd.DataFrame:
    """Table 6: a row for each checkpoint, MMLU by group and on average, per cent."""
    rows = []
    for result in results:
        if not result.accuracies:
            raise InputError(f"{result.name} has no MMLU result: run `lsm-probe text-ability` with --mmlu")
        whole = {name: number for name, number in result.accuracies.items() if name not in result.subjects}
        rows.append({"model": result.name, **{name: round(number.value, 1) for name, number in whole.items()}})
    return pd.DataFrame(rows)


def speed_table(results: Sequence[EvaluationResult]) -> pd.DataFrame:
    """Table 7: [`task_table`] with seconds per sample, and the speed of each relative to the cascade."""
    found = speeds(results)
    if not found:
        raise InputError(
            "table7 compares a cascade with the others, and no result is of a cascade: run `lsm-probe evaluate` "
            "with --cascade"
        )
    table = task_table(results)
    table["seconds per sample"] = [round(float(result.seconds.mean()), 3) for result in results]
    table["speed"] = [f"{found[r.name].mean:.1f}x" if r.name in found else "–" for r in results]
    return table


PAPER_FIGURES = {
    "figure3": PaperFigure(AttentionResult, group_frame, eta_figure),
    "figure5": PaperFigure(AttentionResult, gain_frame, gain_figure, least=2),
    "figure6": PaperFigure(AlignmentResult, plane_frame, plane_figure),
    "table2": PaperFigure(EvaluationResult, task_table),
    "table6": PaperFigure(TextAbilityResult, mmlu_table),
    "table7": PaperFigure(EvaluationResult, speed_table, least=2),
}


def _grouped(values: Floats) -> Floats:
    """`[..., layers]` -> `[..., groups]`."""
    groups = layer_groups(values.shape[-1])
    return np.stack([values[..., group[0] : group[-1] + 1].mean(-1) for group in groups], axis=-1)


def _gains(results: Sequence[AttentionResult]) -> tuple[AttentionResult, list[tuple[str, Curve]]]:
    """The last LSM (or the last text LLM), and its difference from each of the others, by their names."""
    own = [result for result in results if not result.is_control] or results
    last = ([result for result in own if result.checkpoint.source == "speech"] or own)[-1]
    controls = [control.name for control in last.find_controls(results).values()]
    gains = []
    for other in results:
        if other is last or (other.is_control and other.name not in controls):
            continue
        if set(last.ids).isdisjoint(other.ids) or last.n_layers != other.n_layers:
            raise InputError(f"{last.name} and {other.name} have no samples in common, or not as many layers")
        pair = last.paired_with(other)
        mean = np.subtract(*(_grouped(r.eta().mean) for r in pair))
        drawn = np.subtract(*(_grouped(r.left_out_eta()) for r in pair))
        gains.append((other.name, curve(mean, drawn)))
    if not gains:
        raise InputError(f"figure5 compares {last.name} with other checkpoints, and there are none: add result folders")
    return last, gains


def _labels(results: Sequence[MeasurementResult]) -> list[str]:
    return result_labels(results, _LONGEST_NAME)


def _markdown(frame: pd.DataFrame) -> str:
    def cell(value: Any) -> Any:
        return " ".join(value.split()).replace("|", r"\|") if isinstance(value, str) else value

    return str(frame.rename(columns=cell).map(cell).to_markdown(index=False)) + "\n"


def _styles(results: Sequence[AttentionResult]) -> list[tuple[CheckpointStyle, str]]:
    """The style of each result's checkpoint, and `--` for a control or `-`."""
    kinds = ["--" if result.is_control else "-" for result in results]
    return list(zip(result_styles(results), kinds, strict=True))


def _rows(name: str, result: AttentionResult, numbers: Curve) -> pd.DataFrame:
    layers = [f"{group[0]}-{group[-1]}" for group in layer_groups(result.n_layers)]
    return pd.DataFrame({"checkpoint": name, "group": range(1, len(layers) + 1), "layers": layers, **vars(numbers)})


def _plot_curves(curves: Sequence[tuple[str, Curve]], ax: Axes, styles: Sequence[tuple[CheckpointStyle, str]]) -> None:
    """Draws each curve with its interval as a band."""
    for (name, numbers), (style, linestyle) in zip(curves, styles, strict=True):
        x = np.arange(1, len(numbers.mean) + 1)
        drawn: dict[str, Any] = {"color": style.color, "marker": style.marker, "markersize": 4, "linewidth": 1.2}
        ax.plot(x, numbers.mean, label=name, linestyle=linestyle, **drawn)
        ax.fill_between(x, numbers.ci_low, numbers.ci_high, color=style.color, alpha=0.15, linewidth=0)
    ax.set_xticks(range(1, GROUPS + 1))


def _figure(width: float, height: float) -> Figure:
    # Not a pyplot figure, so that a notebook's backend does not change.
    return Figure(figsize=(width, height), layout="constrained")


def _finished(figure: Figure, axes: Sequence[Axes], legend_of: Axes | None = None, title: str | None = None) -> Figure:
    for ax in axes:
        sns.despine(ax=ax)
    handles, labels = (legend_of or axes[0]).get_legend_handles_labels()
    figure.legend(handles, labels, title=title, loc="outside lower center", frameon=False, fontsize=7, title_fontsize=7)
    return figure


def _one_digit(score: Any) -> float | None:
    return None if score is None or np.isnan(score.value) else round(score.value, 1)
