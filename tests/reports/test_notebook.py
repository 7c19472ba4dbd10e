"""The notebook: the same folders, the same verdicts, executed, wherever the folders are moved together."""

import ast
import json
import shutil

import pytest

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.reports import notebook
from lsm_probe.reports.notebook import notebook_source, save_notebook
from lsm_probe.reports.verdicts import find_verdicts


def test_the_source_is_python_and_its_paths_are_relative(runs):
    source = notebook_source(lsm_probe.read_results([runs / "attention", runs / "knockout"]), runs / "reports")
    ast.parse(source)
    assert "read_results(['../attention', '../knockout'])" in source
    assert str(runs) not in source
    assert "## Knockout" in source
    assert "## Alignment" not in source


def test_every_measurement_has_a_section(runs):
    source = notebook_source(lsm_probe.read_results([runs]), runs)
    for title in ("Attention", "Sensitivity", "Knockout", "Alignment", "Importance", "Evaluation"):
        assert f"# ## {title}\n" in source


def test_missing_packages_are_named_with_the_extra(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "missing", lambda: ["nbclient"])
    with pytest.raises(InputError, match=r"nbclient, not installed: pip install .*nbclient"):
        save_notebook(lsm_probe.read_results([runs / "attention"]), tmp_path / "report.ipynb")


@pytest.mark.skipif(bool(notebook.missing()), reason="needs the extra `notebooks`")
def test_the_notebook_is_executed_and_agrees_with_the_page(runs, tmp_path):
    shutil.copytree(runs / "attention", tmp_path / "attention")
    results = lsm_probe.read_results([tmp_path / "attention"])
    save_notebook(results, tmp_path / "report.ipynb")
    cells = json.loads((tmp_path / "report.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] in ("error", "stream")]
    said = "".join("".join(output["data"].get("text/markdown", "")) for output in outputs)
    assert all(f"{each.checkpoint}: {each.verdict}." in said for each in find_verdicts(results))
    assert sum("image/png" in output["data"] for output in outputs) == 2
    assert str(tmp_path) not in json.dumps(cells)
