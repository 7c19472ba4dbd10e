"""The notebooks under `analyses` run from clean on the embedded models, with few samples.

Those in `analyses/notebooks` are also committed executed: `python analyses/notebooks/execute.py` writes them.
"""

import runpy
import tempfile
from dataclasses import replace
from pathlib import Path

import jupytext
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

import lsm_probe

ANALYSES = Path(__file__).parents[2] / "analyses"
NOTEBOOKS = sorted(
    path for path in ANALYSES.rglob("*.py") if path.read_text(encoding="utf-8").startswith("# ---\n# jupyter:")
)
EXECUTED = [path for path in NOTEBOOKS if path.parent.name == "notebooks"]
MOST_BYTES = 300_000
SAMPLES = {"alignment": 12, "with_nnsight": 10, "diagnose": 12}
"""What t-SNE needs, two prompts of one length, and a verdict; the others do with 3."""
ON_TINY_MODELS = "diagnose"
"""Several measurements of three models take minutes on the real ones."""
IN_A_KERNEL = "importance"


@pytest.fixture
def tiny(tiny_lsm, tiny_llm, tiny_encoder_folder, tiny_llm_folder, tiny_projector):
    """`tiny(name)`: a tiny model under the name of an embedded one."""
    other = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=tiny_projector(num_hidden_layers=1))
    models = {"builtin:llm": tiny_llm, "builtin:vanilla_asr": tiny_lsm, "builtin:self_powered": other}
    return lambda name: replace(models[name], name=name)


@pytest.mark.real
@pytest.mark.parametrize(
    "path", [p for p in NOTEBOOKS if p.stem not in (IN_A_KERNEL, ON_TINY_MODELS)], ids=lambda path: path.stem
)
def test_it_runs_from_clean(path, builtin, tmp_path, monkeypatch, capsys):
    """As a script in this process: to start a kernel takes longer than most of what they do."""
    run_as_script(path, builtin, tmp_path, monkeypatch, capsys)


def test_a_diagnosis_runs_from_clean(tiny, tmp_path, monkeypatch, capsys):
    path = next(path for path in NOTEBOOKS if path.stem == ON_TINY_MODELS)
    run_as_script(path, tiny, tmp_path, monkeypatch, capsys)


def run_as_script(path, load, tmp_path, monkeypatch, capsys):
    read = lsm_probe.read_manifest
    monkeypatch.setattr(lsm_probe, "read_manifest", lambda name: read(name)[: SAMPLES.get(path.stem, 3)])
    monkeypatch.setattr(lsm_probe, "load", lambda name, device: load(name))
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
    assert any("builtin:llm:" in str(output) for output in outputs), "no progress bar was shown"
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.stem)
def test_it_is_committed_executed_and_as_its_source_says(path):
    executed = path.with_suffix(".ipynb")
    assert executed.exists(), "run python analyses/notebooks/execute.py"
    content = executed.read_text(encoding="utf-8")
    cells = nbformat.reads(content, 4).cells
    ran = [(cell.cell_type, cell.source) for cell in cells]
    written = [(cell.cell_type, cell.source) for cell in jupytext.read(path).cells]
    assert ran == written, f"run python analyses/notebooks/execute.py {path.stem}"
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    assert "image/png" in content
    assert len(content) < MOST_BYTES
    for place in (tempfile.gettempdir(), str(ANALYSES.parent), str(Path.home())):
        assert f"{place}/" not in content


def test_every_notebook_is_found():
    assert {path.stem for path in NOTEBOOKS} >= {
        "notebook",
        "one_checkpoint",
        "two_checkpoints",
        "importance",
        "alignment",
        "own_probe",
        "samples",
        "diagnose",
        "with_nnsight",
        "with_transformer_lens",
    }
