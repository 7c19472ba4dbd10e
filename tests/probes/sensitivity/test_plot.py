"""The figure shows the numbers of the result, and the same numbers give the same files."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from lsm_probe.data.identity import DataIdentity
from lsm_probe.probes.sensitivity import PROBE
from lsm_probe.probes.sensitivity.plot import (
    plot_sensitivity,
    plot_tokens,
    save_sensitivity,
    sensitivity_figure,
    token_frame,
)
from lsm_probe.probes.sensitivity.result import SensitivityConventions, SensitivityResult
from lsm_probe.runner.identity import CheckpointIdentity

pytestmark = pytest.mark.usefixtures("rendered")

PICTURES = PROBE.pictures

TOKENS = 40  # more than are drawn


def result_of(instruction, source, name):
    return SensitivityResult(
        instruction_log_probs=instruction.astype(np.float32),
        source_log_probs=source.astype(np.float32),
        clusters=np.arange(len(instruction)),
        samples=[{"id": f"s{i}", "task": "test", "response_ids": [i]} for i in range(len(instruction))],
        checkpoint=CheckpointIdentity(name=name, source="text", template="chat", dtype="float32"),
        data=DataIdentity("data", "x", len(instruction)),
        conventions=SensitivityConventions(),
        self_check={"mean": 1e-7, "bound": 1e-3, "unit": "nats per token"},
    )


@pytest.fixture
def results():
    """Two results of six samples, whose responses are 2 to 40 tokens long."""
    rng = np.random.default_rng(0)
    made = []
    for name in ("speech model", "text model"):
        arrays = [-rng.exponential(2.0, size=(6, pool, TOKENS)) for pool in (5, 3)]
        for values in arrays:
            for i, length in enumerate((2, 5, 9, 20, 33, TOKENS)):
                values[i, :, length:] = np.nan
        made.append(result_of(*arrays, name))
    return made


@pytest.mark.parametrize("per", ["token", "response"])
def test_bars_carry_the_results_numbers_and_intervals(results, ax, per):
    read = [result.with_conventions(per=per) for result in results]
    assert plot_sensitivity(read, ax) is ax
    bars = [container for container in ax.containers if hasattr(container, "patches")]
    # Solid or hatched, as the title says.
    assert [{bar.get_hatch() for bar in container} for container in bars] == [{None}, {"///"}]
    for container, label in zip(bars, ("instruction", "source"), strict=True):
        curves = [getattr(result, label)() for result in read]
        np.testing.assert_allclose([bar.get_width() for bar in container], [curve.mean for curve in curves])
        whiskers = [segment[:, 0] for segment in container.errorbar.lines[2][0].get_segments()]
        np.testing.assert_allclose(whiskers, [[curve.ci_low, curve.ci_high] for curve in curves])
    assert f"nats per {per}" in ax.get_xlabel()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["speech model", "text model"]


def test_bars_of_a_checkpoint_stand_beside_each_other(results, ax):
    plot_sensitivity(results, ax)
    spans = sorted((bar.get_y(), bar.get_y() + bar.get_height()) for bar in ax.patches)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    ticks = ax.get_yticks()
    assert [int(np.abs(ticks - (start + end) / 2).argmin()) for start, end in spans] == [0, 0, 1, 1]


def test_the_ceiling_is_drawn_where_responses_can_reach_it(results, ax):
    plot_sensitivity(results, ax)
    assert not any("maximum" in line.get_label() for line in ax.lines)
    plot_sensitivity([result.with_conventions(per="response") for result in results], ax)
    (line,) = (line for line in ax.lines if "maximum" in line.get_label())
    np.testing.assert_allclose(line.get_xdata(), math.log(5))


@pytest.mark.parametrize("count", [8, 28, 31, 37])
def test_a_result_whose_samples_are_all_at_the_ceiling_can_be_drawn(count, ax):
    """Whole responses often reach the ceiling. By rounding, a mean of equal numbers can lie outside its interval."""
    pool = np.tile(np.array([-0.01, -9, -9, -9, -9])[None, :, None], (count, 1, 10))
    result = result_of(pool, pool, "sharp").with_conventions(per="response")
    plot_sensitivity([result], ax)
    np.testing.assert_allclose([bar.get_width() for bar in ax.patches], math.log(5))


def test_lines_are_the_mean_of_each_token(results, ax):
    plot_tokens(results, ax)
    drawn = [line for line in ax.lines if len(line.get_xdata()) > 2]
    assert [line.get_linestyle() for line in drawn] == ["-", "--"] * 2
    assert drawn[0].get_color() == drawn[1].get_color() != drawn[2].get_color()
    for i, result in enumerate(results):
        for line, by_token in zip(drawn[2 * i : 2 * i + 2], result.by_token(), strict=True):
            expected = [np.mean([d for d in by_token[:, m] if not np.isnan(d)]) for m in range(32)]
            np.testing.assert_allclose(line.get_ydata(), expected)


def test_the_frame_counts_the_samples_behind_each_token(results):
    frame = token_frame(results).set_index(["checkpoint", "token"])
    assert len(frame) == 2 * 32
    assert frame.loc["text model", "n_samples"].tolist() == [
        sum(length > m for length in (2, 5, 9, 20, 33, 40)) for m in range(32)
    ]
    first = results[1].by_token()
    assert frame.loc[("text model", 3), "D_instruction"] == pytest.approx(np.nanmean(first[0][:, 3]))
    assert frame.loc[("text model", 3), "D_source"] == pytest.approx(np.nanmean(first[1][:, 3]))


def test_result_plot_draws_on_the_axes_it_is_given(results, ax):
    assert results[0].plot(ax) is ax
    assert ax.patches[0].get_width() == pytest.approx(float(results[0].instruction().mean))


def test_the_figure_shows_bars_and_lines_and_names_the_checkpoints(results):
    figure = sensitivity_figure(results)
    bars, lines = figure.axes
    assert len(bars.patches) == 4
    assert len([line for line in lines.lines if len(line.get_xdata()) > 2]) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["speech model", "text model"]
    # A checkpoint has one colour in both.
    colors = [line.get_color() for line in lines.lines if line.get_label() in ("speech model", "text model")]
    assert [to_hex(bar.get_facecolor()) for bar in bars.patches[:2]] == colors


def test_equal_results_give_identical_files(results, written_twice, tmp_path):
    folder = written_twice(lambda folder: save_sensitivity(results, folder), PICTURES)
    save_sensitivity(results[::-1], tmp_path)
    assert all((tmp_path / name).read_bytes() != (folder / name).read_bytes() for name in PICTURES)
    frame = pd.read_csv(folder / "sensitivity.csv").set_index(["checkpoint", "id"])
    assert len(frame) == 2 * 6
    row = frame.loc[("text model", "s3")]
    d_i, d_s = results[1].by_sample()
    assert (row["D_instruction"], row["D_source"]) == pytest.approx((d_i[3], d_s[3]), abs=1e-6)
    tokens = pd.read_csv(folder / "sensitivity_tokens.csv")
    pd.testing.assert_frame_equal(tokens, token_frame(results), atol=1e-6)


def test_pictures_of_one_token_can_be_drawn(results, tmp_path):
    short = [
        replace(result, **{name: getattr(result, name)[:, :, :1] for name in SensitivityResult.BY_SAMPLE})
        for result in results
    ]
    save_sensitivity(short, tmp_path)
    assert len(pd.read_csv(tmp_path / "sensitivity_tokens.csv")) == 2
