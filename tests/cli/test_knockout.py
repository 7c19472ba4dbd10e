"""`lsm-probe knockout` through its own door: files, notes, single heads, and one line for every mistake."""

import json

import numpy as np
import pandas as pd
import pytest

from lsm_probe.probes.knockout.result import KnockoutResult

PLAIN = {"result.json", "arrays.npz", "samples.jsonl", "knockout.png", "knockout.svg", "knockout.csv"}
HEADS = {"knockout_heads.png", "knockout_heads.svg", "knockout_heads.csv"}


@pytest.fixture
def run(lsm_probe_command, tmp_path):
    """`run(folder, checkpoints, *arguments)` runs `lsm-probe knockout` on three texts."""
    rows = [
        {"id": f"s{i}", "instruction": "Repeat the text.", "text": text}
        for i, text in enumerate(["the quick brown fox", "rain falls softly", "green"])
    ]
    manifest = tmp_path / "texts.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def knockout(folder, checkpoints, *arguments):
        named = [part for checkpoint in checkpoints for part in ("--ckpt", checkpoint)]
        return lsm_probe_command(
            "knockout", *named, "--data", manifest, "--out", tmp_path / folder, "--max-new-tokens", 3, *arguments
        )

    return knockout


def written(folder):
    return {path.name for path in folder.iterdir() if path.is_file() and path.name[0] != "."}


def test_windows_alone_write_nothing_of_heads(run, tiny_llm_folder, tmp_path):
    code, stdout, _ = run("out", [tiny_llm_folder])
    assert code == 0
    assert written(tmp_path / "out") == PLAIN
    assert "heads" not in stdout


def test_heads_of_chosen_layers_are_written_and_named(run, tiny_llm_folder, tmp_path):
    code, stdout, _ = run("out", [tiny_llm_folder], "--single-heads", "--layers", 0, "--layers", "1-2")
    assert code == 0
    assert written(tmp_path / "out") == PLAIN | HEADS
    result = KnockoutResult.load(tmp_path / "out")
    assert result.head_layers == [0, 1, 2]
    assert "of 18 heads source heads, 0; instruction heads, 0; both, 0" in stdout  # three samples find nothing
    frame = pd.read_csv(tmp_path / "out" / "knockout_heads.csv")
    np.testing.assert_allclose(frame["fall_source"], result.head_frame()["fall_source"], atol=1e-6)


def test_a_later_run_without_heads_takes_their_pictures_away(run, tiny_llm_folder, tmp_path):
    assert run("out", [tiny_llm_folder], "--single-heads", "--layers", 1)[0] == 0
    assert run("out", [tiny_llm_folder])[0] == 0
    assert written(tmp_path / "out") == PLAIN


def test_two_checkpoints_are_compared_by_head(run, tiny_llm_folder, save_llm, tmp_path):
    other = save_llm(tmp_path / "other", seed=1)
    code, _, _ = run("out", [tiny_llm_folder, other], "--single-heads", "--layers", 1)
    assert code == 0
    assert written(tmp_path / "out") == {"comparison.json"} | HEADS | {n for n in PLAIN if n.startswith("knockout")}
    pair = json.loads((tmp_path / "out" / "comparison.json").read_text())["pairs"][0]["heads_difference"]
    results = [KnockoutResult.load(tmp_path / "out" / name) for name in ("llm", "other")]
    first, second = (result.fall_heads.astype(float).mean(0) for result in results)
    np.testing.assert_allclose(pair["fall_source"]["mean"], (second - first)[1], atol=1e-6)
    assert pair["layers"] == [1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--single-heads", "--layers", "3"], "has layers 0 to 2"),
        (["--single-heads", "--layers", "2-1"], "neither a layer nor a range"),
        (["--single-heads", "--layers", "0-99999"], "neither a layer nor a range"),
        (["--single-heads", "--layers", "9" * 5000], "neither a layer nor a range"),
        (["--single-heads", "--layers", "some"], "neither a layer nor a range"),
        (["--single-heads", "--layers", "1-"], "neither a layer nor a range"),
        (["--layers", "1"], "give --single-heads too"),
        (["--window", "0"], "--window 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run, tiny_llm_folder, tmp_path, arguments, expected):
    code, stdout, stderr = run("out", [tiny_llm_folder], *arguments)
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert (code, stdout, len(errors)) == (2, "", 1)
    assert expected in errors[0]
    assert not (tmp_path / "out" / "result.json").exists()
