"""`lsm-probe report`: its files, and one line for every error."""

import pytest

from lsm_probe.extras import install_command
from lsm_probe.reports import notebook


@pytest.fixture
def result(lsm_probe_command, tiny_llm_folder, tmp_path):
    """An attention result of the tiny text LLM."""
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"id": "a", "instruction": "Repeat.", "text": "the quick brown fox"}\n')
    out = tmp_path / "attention"
    arguments = ("--ckpt", tiny_llm_folder, "--data", manifest, "--max-new-tokens", 3, "--out", out)
    assert lsm_probe_command("attention", *arguments)[0] == 0
    return out


def test_report_writes_the_page(lsm_probe_command, result, tmp_path):
    out = tmp_path / "pages" / "report.html"
    code, stdout, stderr = lsm_probe_command("report", result, "--out", out, "--no-notebook")
    assert code == 0, stderr
    assert f"written to {out}" in stdout
    assert '<table class="verdicts' in out.read_text()
    assert not out.with_suffix(".ipynb").exists()


def test_without_notebook_packages_the_page_is_written_with_a_note(lsm_probe_command, result, tmp_path, monkeypatch):
    monkeypatch.setattr(notebook, "missing", lambda: ["nbclient"])
    out = tmp_path / "report.html"
    code, _, stderr = lsm_probe_command("report", result, "--out", out)
    assert code == 0
    assert out.exists()
    assert f"no notebook, which needs nbclient: {install_command('notebooks')}" in stderr
    assert lsm_probe_command("report", result, "--out", out, "--notebook")[0] == 2


def test_invalid_arguments_give_one_line_and_exit_code_2(refusal, result, tmp_path):
    (tmp_path / "empty").mkdir()
    for arguments, expected in (
        ((tmp_path / "none",), "is not a folder"),
        ((tmp_path / "empty",), "holds no result"),
        ((result, "--out", tmp_path), "is a folder: name a file"),
    ):
        assert expected in refusal("report", "--no-notebook", *arguments)
