"""The benchmark for GPUs with a tiny shape on the CPU: every part runs and says what it is to say."""

import importlib.util
import json
import sys
from pathlib import Path

PATH = Path(__file__).parents[2] / "analyses" / "performance" / "gpu.py"


def test_every_part_runs(tiny_llm_folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(PATH.parent)  # as for a script of this folder
    spec = importlib.util.spec_from_file_location("gpu_benchmark", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path / "gpu.json"
    options = ["--shape", "tiny", "--layers", "2", "--device", "cpu", "--dtype", "float32", "--rounds", "1", "--quick"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options, "--tokenizer", str(tiny_llm_folder), "--out", str(out)])
    module.main()
    report = json.loads(out.read_text())
    assert {"date", "driver", "device", "versions", "settings"} <= set(report)
    assert [(p["prompt"], p["batch"]) for p in report["overhead"]["passes"]] == [(16, 1), (16, 8), (32, 1), (32, 8)]
    assert all(p["ratio"] > 0 for p in report["overhead"]["passes"])
    assert report["analysis"]["samples"] == 4
    assert set(report["importance"]) == {"importance", "signed", "masks", "part_seconds"}
    assert report["training"]["tokens_per_s"] > 0
    assert all(speed > 0 for speeds in report["generation"]["tokens_per_s"].values() for speed in speeds)
