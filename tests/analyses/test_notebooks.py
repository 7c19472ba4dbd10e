"""The notebooks under `analyses` run from clean on the embedded models."""

import os
from pathlib import Path

import jupytext
import pytest
from nbclient import NotebookClient

ANALYSES = Path(__file__).parents[2] / "analyses"
NOTEBOOKS = sorted(
    path for path in ANALYSES.rglob("*.py") if path.read_text(encoding="utf-8").startswith("# ---\n# jupyter:")
)


@pytest.mark.real
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_from_clean(path, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setitem(os.environ, "PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    NotebookClient(
        notebook, timeout=600, startup_timeout=180, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert any(output.output_type == "stream" for cell in notebook.cells for output in cell.get("outputs", []))


def test_every_notebook_is_found():
    assert {path.stem for path in NOTEBOOKS} >= {
        "notebook",
        "one_checkpoint",
        "two_checkpoints",
        "importance",
        "alignment",
        "own_probe",
        "with_nnsight",
        "with_transformer_lens",
    }
