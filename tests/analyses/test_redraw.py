"""The figures of earlier studies show the numbers that are stored beside them."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FIGURES = Path(__file__).parents[2] / "figures"


@pytest.fixture(scope="module")
def drawn():
    """The figures by path."""
    path = list(sys.path)
    yield runpy.run_path(str(FIGURES / "redraw.py"))["figures"]()
    sys.path[:] = path


def lines(figure, panel):
    return {line.get_label(): line.get_ydata() for line in figure.axes[panel].lines}


def test_each_is_one_that_is_committed(drawn):
    assert [name for name in drawn if not (FIGURES / f"{name}.png").is_file()] == []


def test_eta_is_that_of_the_table(drawn):
    table = pd.read_csv(FIGURES / "beyond_attention" / "eta.csv")
    for panel, segment in enumerate(("mean", "sum")):
        shown = lines(drawn["beyond_attention/eta"], panel)
        for name, label in (("four_tasks/model", "four_tasks"), ("builtin:llm at length of vanilla/model",) * 2):
            label = label.replace("/model", "") + " (24 samples)"
            rows = table[(table["checkpoint"] == name) & (table["segment"] == segment)]
            np.testing.assert_array_equal(shown[label], rows["eta"])


def test_falls_are_those_of_the_table(drawn):
    table = pd.read_csv(FIGURES / "beyond_attention" / "knockout.csv").set_index("checkpoint")
    for panel, segment in enumerate(("instruction", "source")):
        shown = lines(drawn["beyond_attention/knockout"], panel)["vanilla"]
        np.testing.assert_array_equal(shown, table.loc["vanilla/model", f"fall_{segment}"])


def test_shares_are_those_of_weight_matrices(drawn):
    table = pd.read_csv(FIGURES / "text_ability" / "importance.csv")
    own = table[(table["checkpoint"] == "lora") & table["module"].str.contains("proj")]
    shown = lines(drawn["text_ability/importance"], 0)["lora"]
    np.testing.assert_allclose(shown, own.groupby("layer")["sum"].sum() / own["sum"].sum())


def test_heads_are_in_their_layers(drawn):
    table = pd.read_csv(FIGURES / "heads" / "eta_heads.csv").set_index(["checkpoint", "layer", "head"])["eta"]
    for panel, name in enumerate(("vanilla", "self_powered")):
        squares = drawn["heads/eta_heads"].axes[panel].collections[0]
        where = [path.get_extents() for path in squares.get_paths()]
        place = [(name, round((box.x0 + box.x1) / 2), round((box.y0 + box.y1) / 2)) for box in where]
        np.testing.assert_array_equal(squares.get_array(), table.loc[place])


def test_scores_are_those_of_the_table(drawn):
    table = pd.read_csv(FIGURES / "evaluation" / "metrics.csv").set_index(["checkpoint", "task", "metric"])["value"]
    scores, following = drawn["evaluation/evaluation"].axes
    assert [text.get_text() for text in scores.get_yticklabels()][:2] == [
        "Commands, transcription\nword error rate (lower is better)",
        "Commands, place\naccuracy",
    ]
    shown = [container[0].get_xdata() for container in scores.containers]
    assert shown[2][0] == table["vanilla", "commands-transcription", "word_error_rate"]
    assert shown[3][1] == table["four_tasks", "commands-place", "accuracy"]
    assert following.containers[3][0].get_xdata()[0] == table["four_tasks", "commands-place", "following_rate"]
