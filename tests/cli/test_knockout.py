"""`lsm-probe knockout`: files, notes, single heads, and one line for every error."""

import json

import numpy as np
import pandas as pd
import pytest

from lsm_probe.probes.knockout.result import KnockoutResult

COMMAND = ("knockout", "--max-new-tokens", 3)
PLAIN = {"result.json", "arrays.npz", "samples.jsonl", "knockout.png", "knockout.svg", "knockout.csv"}
HEADS = {"knockout_heads.png", "knockout_heads.svg", "knockout_heads.csv"}


@pytest.fixture
def rows():
    """Three texts."""
    texts = ["the quick brown fox", "rain falls softly", "green"]
    return [{"id": f"s{i}", "instruction": "Repeat the text.", "text": text} for i, text in enumerate(texts)]


def test_by_default_only_layer_windows_are_written(run, files, tiny_llm_folder, tmp_path):
    code, stdout, _ = run(tiny_llm_folder)
    assert code == 0
    assert files(tmp_path / "out") == PLAIN
    assert "heads" not in stdout


@pytest.mark.usefixtures("rendered")
def test_heads_of_selected_layers_are_written_and_named(run, files, tiny_llm_folder, tmp_path):
    code, stdout, _ = run(tiny_llm_folder, options=("--single-heads", "--layers", 0, "--layers", "1-2"))
    assert code == 0
    assert files(tmp_path / "out") == PLAIN | HEADS
    result = KnockoutResult.load(tmp_path / "out")
    assert result.head_layers == [0, 1, 2]
    assert "of 18 heads source heads, 0; instruction heads, 0; both, 0" in stdout  # three samples: none is significant
    frame = pd.read_csv(tmp_path / "out" / "knockout_heads.csv")
    np.testing.assert_allclose(frame["fall_source"], result.head_frame()["fall_source"], atol=1e-6)


def test_two_checkpoints_are_compared_by_head(run, files, tiny_llm_folder, save_llm, tmp_path):
    other = save_llm(tmp_path / "other", seed=1)
    code, _, _ = run(tiny_llm_folder, other, options=("--single-heads", "--layers", 1))
    assert code == 0
    assert files(tmp_path / "out") == {"comparison.json", "llm", "other"} | HEADS | {
        n for n in PLAIN if "knockout" in n
    }
    pair = json.loads((tmp_path / "out" / "comparison.json").read_text())["pairs"][0]["heads_difference"]
    results = [KnockoutResult.load(tmp_path / "out" / name) for name in ("llm", "other")]
    first, second = (result.fall_heads.astype(float).mean(0) for result in results)
    np.testing.assert_allclose(pair["fall_source"]["mean"], (second - first)[1], atol=1e-6)
    assert pair["layers"] == [1]
