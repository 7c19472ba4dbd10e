"""The benchmark of generation on a tiny random LLM: every method gives the answers of the one-by-one loop."""

import importlib.util
import json
import sys
from pathlib import Path

PATH = Path(__file__).parents[2] / "analyses" / "performance" / "generation.py"


def test_all_methods_agree(tiny_llm_folder, tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("generation_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "HERE", tmp_path)
    options = ["--llm", str(tiny_llm_folder), "--prompts", "6", "--batch-sizes", "4", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["generation.py", *options])
    module.main()
    report = json.loads((tmp_path / "generation.json").read_text())
    assert list(report["methods"]) == ["one by one", "batches of 4", "lsm-probe, batches of 4"]
    assert {row["equal_answers"] for row in report["methods"].values()} == {6}
    assert "times as fast" in capsys.readouterr().out
