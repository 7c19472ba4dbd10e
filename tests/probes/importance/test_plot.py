"""The figure shows the numbers of the result, and the same numbers give the same files."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import LogNorm

from lsm_probe.data.identity import DataIdentity
from lsm_probe.probes.importance import PROBE
from lsm_probe.probes.importance.plot import importance_figure, plot_layers, plot_modules, save_importance
from lsm_probe.probes.importance.result import ImportanceConventions, ImportanceResult
from lsm_probe.runner.identity import CheckpointIdentity

pytestmark = pytest.mark.usefixtures("rendered")

PICTURES = PROBE.picture_names()

MODULES = {"self_attn.q_proj": [4, 4], "self_attn.o_proj": [4, 4], "mlp.up_proj": [8, 4], "input_layernorm": [4]}


def made(seed, layers, name, **fields):
    rng = np.random.default_rng(seed)
    parameters = [
        {"name": f"model.layers.{i}.{module}.weight", "layer": i, "module": module, "shape": shape}
        for i in range(layers)
        for module, shape in MODULES.items()
    ]
    parameters.append({"name": "lm_head.weight", "layer": None, "module": "lm_head", "shape": [9, 4]})
    return ImportanceResult(
        sums=rng.exponential(1e-3, size=(5, len(parameters))),
        parameters=parameters,
        not_trained={},
        clusters=np.arange(5),
        samples=[{"id": f"s{i}", "response_ids": [i]} for i in range(5)],
        checkpoint=CheckpointIdentity(name=name, source="text", template="chat", dtype="float32"),
        data=DataIdentity("data", "x", 5),
        **{"conventions": ImportanceConventions(), **fields},
    )


@pytest.fixture
def results():
    """Two results of other depths."""
    return [made(0, 6, "text model"), made(1, 4, "speech model")]


@pytest.fixture
def signed():
    values = np.random.default_rng(2).exponential(size=6 * 4 + 1)
    return made(0, 6, "signed model", signed=values, conventions=ImportanceConventions(mode="signed"))


def test_lines_are_each_layers_share_with_its_interval(results, ax):
    assert plot_layers(results, ax) is ax
    assert [line.get_label() for line in ax.lines] == ["text model", "speech model"]
    for line, band, result in zip(ax.lines, ax.collections, results, strict=True):
        share = result.share_by_layer()
        np.testing.assert_array_equal(line.get_xdata(), np.arange(result.n_layers))
        np.testing.assert_allclose(line.get_ydata(), result.distribution())
        assert line.get_ydata().sum() == pytest.approx(1)
        edge = band.get_paths()[0].vertices[:, 1]
        assert (edge.min(), edge.max()) == pytest.approx((share.ci_low.min(), share.ci_high.max()))
    assert ax.get_ylim()[0] == 0
    assert "share" in ax.get_ylabel()
    assert len({line.get_color() for line in ax.lines} | {line.get_marker() for line in ax.lines}) == 4


def test_signed_importance_has_a_line_and_no_band(signed, ax):
    plot_layers([signed], ax)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), signed.distribution())
    assert not any(np.isfinite(path.vertices).any() for band in ax.collections for path in band.get_paths())


def test_the_map_shows_the_mean_importance_of_a_weight(results, ax):
    result = results[0]
    assert plot_modules(result, ax) is ax
    (mesh,) = ax.collections
    table = result.by_module("mean").T
    np.testing.assert_allclose(mesh.get_array().reshape(table.shape), table)
    assert isinstance(mesh.norm, LogNorm)
    assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((table.min(), table.max()))
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(MODULES)[:3]
    assert ax.get_title() == "text model"


def test_a_module_that_a_layer_lacks_is_left_blank(results, ax):
    result = results[0]
    kept = [i for i, p in enumerate(result.parameters) if p["name"] != "model.layers.2.mlp.up_proj.weight"]
    result = replace(result, sums=result.sums[:, kept], parameters=[result.parameters[i] for i in kept])
    plot_modules(result, ax)
    shown = ax.collections[0].get_array().reshape(3, 6)
    assert np.ma.getmaskarray(shown).sum() == 1
    assert np.ma.getmaskarray(shown)[2, 2]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_importance_that_is_the_same_everywhere_can_be_drawn(results, tmp_path, value):
    """A logarithmic scale of one number, or of none."""
    flat = [replace(result, sums=np.full_like(result.sums, value)) for result in results]
    with np.errstate(invalid="ignore"):
        save_importance(flat, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(PICTURES)


def test_a_model_of_one_layer_can_be_drawn(tmp_path):
    save_importance([made(0, 1, "shallow")], tmp_path)
    assert len(pd.read_csv(tmp_path / "importance.csv")) == len(MODULES) + 1


def test_result_plot_draws_on_the_axes_it_is_given(results, ax):
    assert results[0].plot(ax) is ax
    np.testing.assert_allclose(ax.lines[0].get_ydata(), results[0].distribution())


def test_the_figure_has_the_layers_on_top_and_a_map_of_each_below(results):
    figure = importance_figure(results)
    top, *rest = figure.axes
    maps = [ax for ax in rest if ax.get_title()]  # the others are colour bars
    assert [ax.get_title() for ax in maps] == ["text model", "speech model"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["text model", "speech model"]
    assert [len(line.get_xdata()) for line in top.lines] == [6, 4]


def test_equal_results_give_identical_files(results, signed, written_twice, tmp_path):
    folder = written_twice(lambda folder: save_importance(results, folder), PICTURES)
    for others in (results[::-1], [signed]):
        save_importance(others, tmp_path)
        assert all((tmp_path / name).read_bytes() != (folder / name).read_bytes() for name in PICTURES)


def test_the_table_has_a_row_for_each_parameter(results, tmp_path):
    save_importance(results, tmp_path)
    frame = pd.read_csv(tmp_path / "importance.csv").set_index(["checkpoint", "parameter"])
    assert len(frame) == sum(len(result.parameters) for result in results)
    expected = results[1].to_frame().set_index("parameter")
    row = frame.loc[("speech model", "model.layers.3.mlp.up_proj.weight")]
    found = expected.loc["model.layers.3.mlp.up_proj.weight"]
    assert (row["layer"], row["module"], row["weights"]) == (3, "mlp.up_proj", 32)
    for name in ("sum", "ci_low", "ci_high"):
        assert row[name] == pytest.approx(found[name], abs=1e-6)
    # Importance of single weights is below the six decimals of the rest.
    assert row["mean"] == pytest.approx(found["mean"], rel=1e-5)
    assert np.isnan(frame.loc[("speech model", "lm_head.weight"), "layer"])
