"""The figure shows the numbers of the result, and the same numbers give the same file."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lsm_probe.data.identity import DataIdentity
from lsm_probe.probes.attention import PROBE
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.plot import eta_figure, plot_eta, save_attention
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.runner.identity import CheckpointIdentity, Control

pytestmark = pytest.mark.usefixtures("rendered")

PICTURES = PROBE.pictures


@pytest.fixture
def results():
    rng = np.random.default_rng(0)
    first = AttentionResult(
        norms=rng.gamma(2.0, size=(5, 8, 5)).astype(np.float32),
        head_norms=rng.gamma(2.0, size=(5, 8, 2, 5)).astype(np.float32),
        tokens=rng.integers(2, 30, size=(5, 5)),
        rows=np.ones(5, dtype=int),
        clusters=np.arange(5),
        samples=[{"id": str(i)} for i in range(5)],
        checkpoint=CheckpointIdentity(name="speech model", source="speech", template="chat", dtype="float32"),
        data=DataIdentity("data", "x", 5),
        conventions=Conventions(),
        self_check={},
    )
    control = replace(first.checkpoint, name="text at length", source="text", control=Control("llm"))
    return [first, replace(first, norms=first.norms[::-1], checkpoint=control)]


def test_each_curve_is_the_results_eta_with_its_band(results):
    ax = plot_eta(results)
    for result, line, band in zip(results, ax.lines, ax.collections, strict=False):
        curve = result.eta()
        np.testing.assert_allclose(line.get_ydata(), curve.mean)
        edges = band.get_paths()[0].vertices[:, 1]
        assert edges.min() == pytest.approx(curve.ci_low.min())
        assert edges.max() == pytest.approx(curve.ci_high.max())
    assert [line.get_linestyle() for line in ax.lines[:2]] == ["-", "--"]
    plt.close(ax.figure)


def test_result_plot_draws_on_the_axes_it_is_given(results):
    figure, ax = plt.subplots()
    assert results[0].plot(ax, color="red", label="mine") is ax
    assert ax.lines[0].get_color() == "red"
    plt.close(figure)


def test_both_segment_conventions_are_shown(results):
    figure = eta_figure(results)
    for ax, segment in zip(figure.axes, ("mean", "sum"), strict=True):
        expected = results[0].with_conventions(segment=segment).eta().mean
        np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "speech model (5 samples" in labels[0]
    assert "speech tokens" in labels[0]
    assert "transcript tokens" in labels[1]


def test_equal_results_give_identical_files(results, written_twice):
    folder = written_twice(lambda folder: save_attention(results, folder), PICTURES)
    frame = pd.read_csv(folder / "eta.csv")
    assert len(frame) == 2 * 2 * 8
    row = frame[(frame["checkpoint"] == "speech model") & (frame["segment"] == "sum") & (frame["layer"] == 3)]
    expected = results[0].with_conventions(segment="sum").eta().mean[3]
    assert row["eta"].item() == pytest.approx(expected, abs=1e-6)
