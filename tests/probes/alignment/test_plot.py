"""The alignment figure shows the numbers of the results, for one to four of them, and never ends in a traceback."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lsm_probe.data.identity import DataIdentity
from lsm_probe.probes.alignment import PROBE
from lsm_probe.probes.alignment.plot import alignment_figure, plot_points, point_frame, save_alignment
from lsm_probe.probes.alignment.result import AlignmentConventions, AlignmentResult
from lsm_probe.runner.identity import CheckpointIdentity

pytestmark = pytest.mark.usefixtures("rendered")

PICTURES = PROBE.pictures


def made(samples=12, seed=0, name="runs/one/model", states=4):
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(samples, states, 6)).astype(np.float32)
    return AlignmentResult(
        speech=(text + rng.normal(size=text.shape)).astype(np.float32),
        text=text,
        layers=list(range(states)),
        perplexity=5.0,
        clusters=np.arange(samples),
        samples=[{"id": f"s{i}", "instruction": "Repeat."} for i in range(samples)],
        checkpoint=CheckpointIdentity(name=name, source="speech", template="chat", dtype="float32"),
        data=DataIdentity("data", "x", samples),
        conventions=AlignmentConventions(),
    )


@pytest.fixture(scope="module")
def results():
    first = made()
    second = replace(first.checkpoint, name="runs/two/model")
    return [first, replace(first, speech=first.speech + 9, checkpoint=second)]


def test_points_are_the_joint_tsne_and_partners_are_joined(results):
    ax = results[0].plot(layer=2)
    lines, _, speech, _, text = ax.collections
    where = results[0].embed_2d(2)
    np.testing.assert_array_equal(speech.get_offsets(), where[0])
    np.testing.assert_array_equal(text.get_offsets(), where[1])
    np.testing.assert_array_equal(np.stack(lines.get_segments()), np.stack(where, 1))
    plt.close(ax.figure)


def test_many_points_are_not_joined():
    figure, ax = plt.subplots()
    assert plot_points(made(samples=101, states=1), ax=ax) is ax
    assert len(ax.collections) == 4
    plt.close(figure)


def test_each_panel_shows_its_curve_of_every_result(results):
    figure = alignment_figure([replace(result, plot_layer=1) for result in results])
    first, second, cosine, cka, recall, distance = figure.axes
    assert first.get_title() == "one\nt-SNE of state 1, perplexity 5"
    assert second.get_title() == "two\nt-SNE of state 1, perplexity 5"
    expected = {
        cosine: ("unpaired_cosine", "paired_cosine", "standardised_cosine"),
        cka: ("cka", "standardised_cka"),
        recall: ("retrieval", "standardised_retrieval"),
        distance: ("centroid_distance",),
    }
    for ax, names in expected.items():
        drawn = [line.get_ydata() for line in ax.get_lines()]
        for i, (name, result) in enumerate((name, result) for name in names for result in results):
            np.testing.assert_array_equal(drawn[i], result.curves()[name].mean)
    levels = [line.get_ydata()[0] for line in recall.get_lines() if line.get_linestyle() == ":"]
    assert levels == [pytest.approx(1 / 12)]


def test_markers_are_hollow_where_mmd_is_not_significant(results):
    distance = alignment_figure(results).axes[-1]
    hollow = [line for line in distance.get_lines() if line.get_markerfacecolor() == "white"]
    for result, line in zip(results, hollow, strict=True):
        assert line.get_xdata().tolist() == np.flatnonzero(result.mmd()["p_value"] >= 0.05).tolist()
    assert len(hollow[0].get_xdata())
    assert not len(hollow[1].get_xdata())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 4, 5])
def test_any_number_of_checkpoints_is_drawn(results, count, tmp_path):
    names = ["builtin:untrained", "a/model", "b/model", "c/" + "long" * 20, "d"]
    many = [replace(results[0], checkpoint=replace(results[0].checkpoint, name=name)) for name in names[:count]]
    figure = alignment_figure(many)
    figure.savefig(tmp_path / "figure.png", dpi=50)
    titles = [ax.get_title().split("\n")[0] for ax in figure.axes[:count]]
    assert len(set(titles)) == count
    assert max(map(len, titles)) <= 28


def degenerate(kind):
    result = made()
    speech, text = result.speech.copy(), result.text.copy()
    if kind == "constant":
        speech[:], text[:] = 1, 1
    if kind == "one constant":
        speech[:] = 1
    if kind == "the same":
        speech = text.copy()
    if kind == "one dimension":
        speech[..., 1:] = text[..., 1:] = 0
    if kind == "duplicates":
        speech[2:], text[2:] = speech[1], text[1]
    return replace(result, speech=speech, text=text)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["constant", "one constant", "the same", "one dimension", "duplicates"])
def test_degenerate_points_are_drawn_without_contours_or_warnings(kind, tmp_path):
    save_alignment([degenerate(kind)], tmp_path)
    assert (tmp_path / "alignment.png").read_bytes().startswith(b"\x89PNG")


def test_equal_results_give_identical_files(results, written_twice):
    folder = written_twice(lambda folder: save_alignment([replace(r) for r in results], folder), PICTURES)
    curves = pd.read_csv(folder / "alignment.csv")
    assert len(curves) == 2 * 4
    np.testing.assert_allclose(curves["cka"][4:], results[1].curves()["cka"].mean, atol=1e-6)


def test_the_points_table_has_a_row_for_each_vector(results):
    frame = point_frame([replace(result, plot_layer=3) for result in results])
    assert len(frame) == 2 * 2 * 12
    assert set(frame["state"]) == {3}
    mine = frame[(frame["checkpoint"] == "runs/two/model") & (frame["modality"] == "transcript")]
    assert mine["id"].tolist() == results[1].ids
    np.testing.assert_array_equal(mine[["x", "y"]], results[1].embed_2d(3)[1])
