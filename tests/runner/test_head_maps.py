"""Maps of heads show the values of the results by colour, area and frame; equal values give identical files."""

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.plot import eta_heads_figure, save_attention
from lsm_probe.probes.attention.result import head_eta_difference
from lsm_probe.probes.knockout import PROBE
from lsm_probe.probes.knockout.plot import knockout_heads_figure, save_knockout
from lsm_probe.runner.head_maps import HeadMap, Scale, plot_head_map

pytestmark = pytest.mark.usefixtures("rendered")

PICTURES = PROBE.pictures

N, LAYERS, HEADS = 12, 5, 3


@pytest.fixture
def etas(attention_result):
    first = attention_result(N, LAYERS, HEADS)
    changed = first.head_norms.copy()
    changed[:, 2, 1, 2] *= 9
    return [first, replace(first, head_norms=changed, checkpoint=replace(first.checkpoint, name="second"))]


@pytest.fixture
def falls(knockout_result):
    fall_heads = np.random.default_rng(0).normal(0, 0.01, size=(N, 2, 2, HEADS))
    fall_heads[:, 0, 0, 1] += 0.3
    fall_heads[:, 1, 1, 2] += 0.2
    first = knockout_result(fall_heads, [1, 4], LAYERS)
    return [first, replace(first, fall_heads=2 * fall_heads, checkpoint=replace(first.checkpoint, name="second"))]


def maps(figure):
    """The squares of each map."""
    return [ax.collections[0] for ax in figure.axes if ax.get_label() != "<colorbar>"]


def by_place(squares, numbers):
    """`[layers, heads]` from values of the squares, by their positions."""
    found = {}
    for path, number in zip(squares.get_paths(), numbers, strict=True):
        x, y = path.get_extents().get_points().mean(0).round().astype(int)
        found[x, y] = number
    return np.array([[found[x, y] for y in range(max(y for _, y in found) + 1)] for x in range(len(found) // HEADS)])


def test_the_colour_of_a_head_shows_its_eta_and_the_area_its_share(etas):
    squares = maps(eta_heads_figure(etas[:1]))[0]
    np.testing.assert_allclose(by_place(squares, squares.get_array()), etas[0].head_eta().mean)
    areas = by_place(squares, [np.prod(path.get_extents().size) for path in squares.get_paths()])
    share = etas[0].head_share()
    np.testing.assert_allclose(areas / areas.max(), share / share.max(1, keepdims=True), rtol=1e-6)


def test_several_checkpoints_share_one_scale_and_two_have_a_difference_map(etas):
    one, two, difference = maps(eta_heads_figure(etas))
    assert one.get_clim() == two.get_clim() == (0, 1)
    found = head_eta_difference(*etas)
    np.testing.assert_allclose(by_place(difference, difference.get_array()), found.mean)
    framed = by_place(difference, difference.get_linewidths()) > 0
    np.testing.assert_array_equal(framed, found.p < 0.05)
    assert np.argwhere(framed).tolist() == [[2, 1]]
    third = replace(etas[0], checkpoint=replace(etas[0].checkpoint, name="third"))
    assert len(maps(eta_heads_figure([*etas, third]))) == 3


def test_results_that_cannot_be_paired_have_no_difference_map(etas):
    first, second = etas
    fewer = second.subset(second.ids[:-1])
    shallower = replace(second, norms=second.norms[:, 1:], head_norms=second.head_norms[:, 1:])
    for other in (fewer, shallower):
        assert len(maps(eta_heads_figure([first, other]))) == 2


def test_the_falls_of_both_segments_are_shown_and_the_heads_that_matter_framed(falls):
    figure = knockout_heads_figure(falls)
    shown = maps(figure)
    assert len(shown) == 4
    assert len({squares.get_clim() for squares in shown}) == 1
    for i, result in enumerate(falls):
        for j, segment in enumerate((Segment.INSTRUCTION, Segment.SOURCE)):
            squares = shown[2 * i + j]
            np.testing.assert_allclose(by_place(squares, squares.get_array()), result.head_falls(segment).mean)
            framed = np.argwhere(by_place(squares, squares.get_linewidths()) > 0)
            assert framed.tolist() == [[[0, 1]], [[1, 2]]][j]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["1", "4"]


def test_harmful_masking_and_bias_are_red():
    """Below the middle of eta and above the middle of a fall."""
    for reverse, red in ((False, 0), (True, 2)):
        ax = plt.subplots()[1]
        squares = plot_head_map(HeadMap("map", np.array([[0.0, 0.5, 1.0]]), [0]), Scale("x", 0.5, 0.5, reverse), ax)
        colours = squares.to_rgba(squares.get_array())
        assert colours[red, 0] > colours[red, 2]
        assert colours[2 - red, 0] < colours[2 - red, 2]
        plt.close(ax.figure)


def test_a_head_without_eta_stays_empty(etas):
    etas[0].head_norms[:, 3, 0] = 0
    assert len(maps(eta_heads_figure(etas[:1]))[0].get_paths()) == LAYERS * HEADS - 1


def test_equal_results_give_identical_files(etas, falls, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_attention(etas, tmp_path / name)
        save_knockout(falls, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    frame = pd.read_csv(tmp_path / "one" / "eta_heads.csv").set_index(["checkpoint", "layer", "head"])
    assert len(frame) == 2 * LAYERS * HEADS
    assert frame.loc[("second", 2, 1), "eta"] == pytest.approx(etas[1].head_eta().mean[2, 1], abs=1e-6)
    assert frame.loc[("second", 2, 1), "ci_low"] == pytest.approx(etas[1].head_eta().ci_low[2, 1], abs=1e-6)
    frame = pd.read_csv(tmp_path / "one" / "knockout_heads.csv").set_index(["checkpoint", "layer", "head"])
    assert len(frame) == 2 * 2 * HEADS
    assert frame.loc[("first", 4, 2), "kind"] == "source"


def test_without_single_heads_no_map_of_heads_is_written(falls, tmp_path):
    plain = replace(falls[0], head_layers=[], fall_heads=falls[0].fall_heads[:, :, :0])
    save_knockout([plain], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"knockout.png", "knockout.svg", "knockout.csv"}
    save_knockout(falls, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(PICTURES)
