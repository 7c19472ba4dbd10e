"""The losses of a log as a table and as figures."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lsm_probe.training.plot import history_frame, plot_history, save_history

pytestmark = pytest.mark.usefixtures("rendered")

LOG = [
    {"step": 0, "eval_loss": 4.0, "eval_loss_speech_shuffled": 4.1, "eval_speech_gain": 0.1, "epoch": 0},
    {"step": 1, "loss": 4.2, "learning_rate": 1e-3, "epoch": 0.1},
    {"step": 10, "loss": 3.0, "grad_norm": 1.0, "epoch": 0.5},
    {"step": 10, "eval_loss": 2.5, "eval_loss_speech_shuffled": 3.5, "epoch": 0.5},
    {"step": 20, "loss": 2.0, "epoch": 1.0},
    {"step": 20, "train_runtime": 12.0, "train_loss": 3.0, "epoch": 1.0},
    {"step": 21, "train_runtime": 12.0, "epoch": 1.0},
]
NO = float("nan")


def test_a_row_for_each_step_and_a_column_for_each_curve() -> None:
    frame = history_frame(LOG)
    assert frame.index.tolist() == [0, 1, 10, 20]
    assert frame.index.name == "step"
    expected = {
        "loss": [NO, 4.2, 3.0, 2.0],
        "eval_loss": [4.0, NO, 2.5, NO],
        "eval_loss_speech_shuffled": [4.1, NO, 3.5, NO],
        "eval_loss_instruction_shuffled": [NO] * 4,
    }
    assert frame.columns.tolist() == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(frame[name].to_numpy(dtype=float), values)


def test_a_resumed_run_overwrites_the_steps_it_repeats() -> None:
    frame = history_frame([*LOG[:3], {"step": 5, "loss": 3.3}, {"step": 10, "loss": 2.9}])
    assert frame["loss"].dropna().to_dict() == {1: 4.2, 5: 3.3, 10: 2.9}


def test_an_empty_log_has_no_rows() -> None:
    frame = history_frame([])
    assert frame.empty
    plt.close(plot_history(frame).figure)


def test_the_curves_show_the_values_of_the_frame() -> None:
    frame = history_frame(LOG)
    ax = plot_history(frame)
    drawn = {line.get_label(): line for line in ax.lines}
    assert list(drawn) == ["training", "held out", "held out, speech of another"]
    for label, name in zip(drawn, ("loss", "eval_loss", "eval_loss_speech_shuffled"), strict=True):
        np.testing.assert_array_equal(drawn[label].get_xdata(), frame[name].dropna().index)
        np.testing.assert_array_equal(drawn[label].get_ydata(), frame[name].dropna())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(drawn)
    plt.close(ax.figure)


def test_a_few_held_out_losses_are_not_joined_by_a_line() -> None:
    held_out = [{"step": step, "loss": 2.0, "eval_loss": 2.5} for step in range(5)]
    for count, line in ((3, "None"), (5, "-")):
        ax = plot_history(history_frame(held_out[:count]))
        assert [drawn.get_linestyle() for drawn in ax.lines] == ["-", line]
        plt.close(ax.figure)


def test_given_axes_are_used() -> None:
    figure, ax = plt.subplots()
    assert plot_history(history_frame(LOG), ax) is ax
    plt.close(figure)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("log", [LOG, []])
def test_files_are_written_beside_the_history(log: list[dict[str, float]], tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(json.dumps(log))
    save_history(tmp_path / "history.json")
    assert {path.name for path in tmp_path.iterdir()} == {f"history.{kind}" for kind in ("json", "png", "svg", "csv")}
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "history.svg").read_text()
    read = pd.read_csv(tmp_path / "history.csv", index_col="step")
    pd.testing.assert_frame_equal(read, history_frame(log), check_dtype=False, check_index_type=False)


def test_the_same_log_gives_the_same_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.json").write_text(json.dumps(LOG))
        save_history(tmp_path / name / "history.json")
    for kind in ("png", "svg", "csv"):
        assert (tmp_path / "one" / f"history.{kind}").read_bytes() == (
            tmp_path / "two" / f"history.{kind}"
        ).read_bytes()
