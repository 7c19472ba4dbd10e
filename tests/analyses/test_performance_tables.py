"""The tables of the benchmarks' page are those that its script makes of the committed measurements."""

import importlib.util
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "analyses" / "performance"


def test_the_page_holds_the_measured_figures():
    spec = importlib.util.spec_from_file_location("performance_tables", FOLDER / "tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert module.with_tables(text) == text
    assert module.with_tables(text.replace("| sdpa + lsm-probe |", "| altered |")) == text
