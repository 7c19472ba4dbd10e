"""The benchmark of training on tiny random models: every way of a comparison computes the same loss."""

import importlib.util
import json
import sys
from pathlib import Path

import soundfile

PATH = Path(__file__).parents[2] / "analyses" / "performance" / "training.py"


def test_all_ways_agree(tiny_encoder_folder, tiny_llm_folder, waveform, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("training_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path)
    for i in range(6):
        soundfile.write(tmp_path / f"{i}.flac", waveform(0.4 + 0.2 * i, seed=i), 16_000)
    for task in module.TASKS:
        rows = [
            {"id": f"{i}", "instruction": f"Now the {task}.", "audio": f"{i}.flac", "target": "the old town " * (1 + i)}
            for i in range(6)
        ]
        (tmp_path / f"train.{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--samples", "6", "--batch-size", "4", "--pass-size", "2", "--rounds", "2"]
    models = ["--encoder", str(tiny_encoder_folder), "--llm", str(tiny_llm_folder)]
    monkeypatch.setattr(sys, "argv", ["training.py", "--data", str(tmp_path), *models, *sizes])
    module.main()
    comparisons = json.loads((tmp_path / "training.json").read_text())["comparisons"]
    assert list(comparisons) == ["speech", "collation, float32", "collation, bfloat16 autocast", "precision"]
    assert max(row["loss_differs_by"] for row in comparisons["collation, float32"].values()) < 1e-5
    assert max(row["loss_differs_by"] for row in comparisons["precision"].values()) < 0.02
    padding = {name: row["padding"] for name, row in comparisons["collation, float32"].items()}
    assert padding["lsm-probe: both"] < padding["head on responses"]
    assert "times as fast" in capsys.readouterr().out
