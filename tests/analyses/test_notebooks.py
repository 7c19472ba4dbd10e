"""The notebooks under `analyses` run from clean on the embedded models, with few samples."""

import runpy
from pathlib import Path

import jupytext
import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

import lsm_probe

ANALYSES = Path(__file__).parents[2] / "analyses"
NOTEBOOKS = sorted(
    path for path in ANALYSES.rglob("*.py") if path.read_text(encoding="utf-8").startswith("# ---\n# jupyter:")
)
SAMPLES = {"alignment": 12, "with_nnsight": 10}
"""What t-SNE needs, and two prompts of one length; the others do with 3."""
IN_A_KERNEL = "importance"


@pytest.mark.real
@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem != IN_A_KERNEL], ids=lambda path: path.stem)
def test_it_runs_from_clean(path, builtin, tmp_path, monkeypatch, capsys):
    """As a script in this process: to start a kernel takes longer than most of what they do."""
    read = lsm_probe.read_manifest
    monkeypatch.setattr(lsm_probe, "read_manifest", lambda name: read(name)[: SAMPLES.get(path.stem, 3)])
    monkeypatch.setattr(lsm_probe, "load", lambda name, device: builtin(name))
    monkeypatch.chdir(tmp_path)
    with torch.enable_grad():  # some turn gradients off
        runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


@pytest.mark.real
def test_it_runs_in_jupyter_and_shows_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = jupytext.read(next(path for path in NOTEBOOKS if path.stem == IN_A_KERNEL))
    fewer = "import lsm_probe\nread = lsm_probe.read_manifest\nlsm_probe.read_manifest = lambda name: read(name)[:1]"
    notebook.cells.insert(0, new_code_cell(fewer))
    NotebookClient(
        notebook, timeout=600, startup_timeout=180, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any(output.output_type == "stream" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


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
