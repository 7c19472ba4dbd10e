"""No label of a figure lies on another one or outside the figure: few or many checkpoints, long names, deep models."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from lsm_probe.evaluation.evaluation_result import EvaluationConventions, EvaluationResult
from lsm_probe.evaluation.plot import evaluation_figure
from lsm_probe.evaluation.task import read_task
from lsm_probe.probes.alignment.plot import alignment_figure
from lsm_probe.probes.alignment.result import AlignmentConventions, AlignmentResult
from lsm_probe.probes.attention.plot import eta_figure, eta_heads_figure
from lsm_probe.probes.importance.plot import importance_figure
from lsm_probe.probes.importance.result import ImportanceConventions, ImportanceResult
from lsm_probe.probes.knockout.plot import knockout_figure, knockout_heads_figure
from lsm_probe.probes.knockout.result import KnockoutConventions, KnockoutResult
from lsm_probe.probes.sensitivity.plot import sensitivity_figure
from lsm_probe.probes.sensitivity.result import SensitivityConventions, SensitivityResult
from lsm_probe.reports.paper_figures import eta_figure as paper_eta_figure
from lsm_probe.reports.paper_figures import plane_figure
from lsm_probe.runner.checkpoint_styles import shared_styles

MODULES = {f"self_attn.{part}_proj": [4, 4] for part in "qkvo"} | {
    f"mlp.{part}_proj": [8, 4] for part in ("up", "down")
}
TOLERANCE = 1.5
"""Pixels by which boxes of neighbours may touch: they are larger than the letters."""


def long_name(number):
    return f"/data/users/someone/experiments/2026-autumn/a-very-long-name-of-a-run-with-its-settings-{number}/model"


@pytest.fixture(scope="module")
def attention(planted):
    """`attention(count, layers)`: results of checkpoints with long names, one of them a text LLM."""

    def make(count, layers, heads=9):
        results = []
        for i in range(count):
            result = planted(long_name(i), 0.4, n=6, layers=layers, source="speech" if i else "text")
            results.append(replace(result, head_norms=np.repeat(result.head_norms, heads, 2)))
        return results

    return make


def about(result):
    return {key: getattr(result, key) for key in ("clusters", "samples", "data")}


def sensitivity(result, layers):
    rng = np.random.default_rng(0)
    return SensitivityResult(
        instruction_log_probs=-rng.exponential(size=(6, 5, 9)), source_log_probs=-rng.exponential(size=(6, 5, 9)),
        conventions=SensitivityConventions(), self_check={}, checkpoint=result.checkpoint, **about(result),
    )  # fmt: skip


def knockout(result, layers, heads=0):
    rng, depth = np.random.default_rng(0), layers if heads else 0
    return KnockoutResult(
        log_prob=np.zeros(6), fall=rng.normal(size=(6, 2, layers)), fall_all_layers=rng.normal(size=(6, 2)),
        fall_heads=rng.normal(size=(6, 2, depth, heads)), head_layers=list(range(depth)),
        conventions=KnockoutConventions(), self_check={}, checkpoint=result.checkpoint, **about(result),
    )  # fmt: skip


def alignment(result, layers):
    rng = np.random.default_rng(0)
    text = rng.normal(size=(6, layers, 4)).astype(np.float32)
    speech = (text + rng.normal(size=text.shape)).astype(np.float32)
    return AlignmentResult(
        speech=speech, text=text, layers=list(range(layers)), perplexity=2.0, conventions=AlignmentConventions(),
        checkpoint=result.checkpoint, **about(result),
    )  # fmt: skip


def importance(result, layers):
    parameters = [
        {"name": f"model.layers.{i}.{module}.weight", "layer": i, "module": module, "shape": shape}
        for i in range(layers) for module, shape in MODULES.items()
    ]  # fmt: skip
    sums = np.random.default_rng(0).exponential(1e-3, size=(6, len(parameters)))
    return ImportanceResult(
        sums=sums, parameters=parameters, not_trained={}, conventions=ImportanceConventions(),
        checkpoint=result.checkpoint, **about(result),
    )  # fmt: skip


def evaluation(result, layers):
    answers = {"sentiment": "positive", "politeness": "yes", "german": "Guten Tag.", "commands-transcription": "yes"}
    tasks = tuple(map(read_task, answers))
    rows = [
        {"id": f"{task.name}/{i}", "task": task.name, "reference": answers[task.name], "response": answers[task.name],
         "response_ids": [1], "instruction": "Do.", "language": "en"}
        for task in tasks for i in range(3)
    ]  # fmt: skip
    return EvaluationResult(
        clusters=np.arange(len(rows)), samples=rows, seconds=np.ones(len(rows)), checkpoint=result.checkpoint,
        data=result.data, conventions=EvaluationConventions(8, tasks),
    )  # fmt: skip


def heads(results, layers):
    return knockout_heads_figure([knockout(result, layers, heads=3) for result in results])


FIGURES = {
    "eta": lambda results, layers: eta_figure(results),
    "heads": lambda results, layers: eta_heads_figure(results),
    "sensitivity": lambda results, layers: sensitivity_figure([sensitivity(r, layers) for r in results]),
    "knockout": lambda results, layers: knockout_figure([knockout(r, layers) for r in results]),
    "knockout heads": heads,
    "alignment": lambda results, layers: alignment_figure([alignment(r, layers) for r in results]),
    "importance": lambda results, layers: importance_figure([importance(r, layers) for r in results[:3]]),
    "evaluation": lambda results, layers: evaluation_figure([evaluation(r, layers) for r in results]),
    "paper eta": lambda results, layers: paper_eta_figure(results),
    "paper planes": lambda results, layers: plane_figure([alignment(r, layers) for r in results]),
}


def labels(figure):
    """Each text that is drawn, with its box in pixels; ticks outside the axes are not drawn."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    hidden = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not axis.axes.axison or not low <= tick.get_loc() <= high:
                hidden |= {tick.label1, tick.label2}
    found = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in found if text not in hidden]


def overlapping(figure):
    boxes = labels(figure)
    return [
        (one, other)
        for (one, a), (other, b) in combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > TOLERANCE and min(a.y1, b.y1) - max(a.y0, b.y0) > TOLERANCE
    ]


def outside(figure):
    width, height = figure.bbox.size
    return [text for text, a in labels(figure) if a.x0 < -1 or a.y0 < -1 or a.x1 > width + 1 or a.y1 > height + 1]


@pytest.mark.filterwarnings("ignore:.*undefined")
@pytest.mark.parametrize(("count", "layers"), [(2, 80), (7, 30)])
@pytest.mark.parametrize("name", FIGURES)
def test_labels_do_not_overlap_and_are_whole(attention, name, count, layers):
    figure = FIGURES[name](attention(count, layers), layers)
    assert overlapping(figure) == []
    assert outside(figure) == []
    drawn = " ".join(text for text, _ in labels(figure))
    assert "/data/users" not in drawn
    assert "2026-autumn" not in drawn


def test_the_check_finds_labels_that_overlap(attention):
    figure = eta_figure(attention(2, 30))
    figure.text(0.5, 0.5, "one label")
    figure.text(0.51, 0.5, "another label")
    assert overlapping(figure) == [("one label", "another label")]


def test_a_checkpoint_has_one_colour_in_figures_of_some_and_of_all(attention):
    results = attention(5, 8)
    with shared_styles(result.checkpoint for result in results):
        whole = {
            line.get_label(): line.get_color()
            for line in knockout_figure([knockout(r, 8) for r in results]).axes[0].lines
        }
        part = {
            line.get_label(): line.get_color()
            for line in knockout_figure([knockout(r, 8) for r in results[3:]]).axes[0].lines
        }
    shared = [label for label in part if not label.startswith("_")]
    assert len(shared) == 2
    assert all(part[label] == whole[label] for label in shared)
