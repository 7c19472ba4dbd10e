"""Stored models of the study make the same LSM again, and its page shows the measured numbers."""

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import lsm_probe
from lsm_probe import assets

FOLDER = Path(__file__).parents[2] / "analyses" / "open_speech"
MATRIX = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def store(monkeypatch, tiny_encoder_folder, tiny_llm_folder):
    """Runs store.py with tiny models in the place of the embedded ones."""
    monkeypatch.setattr(assets, "speech_encoder", lambda: tiny_encoder_folder)
    monkeypatch.setattr(assets, "language_model", lambda: tiny_llm_folder)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["store.py", *map(str, arguments)])
        runpy.run_path(str(FOLDER / "store.py"), run_name="__main__")

    return run


def test_a_packed_model_is_unpacked_again(store, tiny_lsm, tmp_path):
    torch.manual_seed(0)
    with torch.no_grad():
        matrix = tiny_lsm.llm.get_parameter(MATRIX)
        matrix.add_(torch.randn(matrix.shape[0], 2) @ torch.randn(2, matrix.shape[1]))
        for weight in tiny_lsm.model.multi_modal_projector.parameters():
            weight.copy_(torch.randn_like(weight))
    tiny_lsm.save(tmp_path / "trained")
    store("pack", tmp_path / "trained", tmp_path / "small.safetensors", 2)
    store("unpack", tmp_path / "small.safetensors", tmp_path / "again")
    again = lsm_probe.load(tmp_path / "again", device="cpu", dtype="float32")
    expected = tiny_lsm.model.state_dict()
    for name, weight in again.model.state_dict().items():
        torch.testing.assert_close(weight, expected[name], rtol=2e-2, atol=2e-2, msg=name)
    with safe_open(tmp_path / "small.safetensors", framework="pt") as file:
        stored = {name.removeprefix("language_model.") for name in file.keys() if name.startswith("language_model.")}  # noqa: SIM118
    assert stored == {f"{MATRIX}.tall", f"{MATRIX}.wide"}


def test_the_rank_bounds_what_is_kept(store, tiny_lsm, tmp_path, capsys):
    with torch.no_grad():
        matrix = tiny_lsm.llm.get_parameter(MATRIX)
        matrix[0, 0] += 3
        matrix[1, 1] += 4
    tiny_lsm.save(tmp_path / "trained")
    store("pack", tmp_path / "trained", tmp_path / "small.safetensors", 1)
    assert "at most 6.0e-01 of a change is missed" in capsys.readouterr().out


def test_the_page_shows_the_measured_numbers():
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for checkpoint in json.loads((FOLDER / "natural.json").read_text())["checkpoints"]:
        found = {each["key"]: each for each in checkpoint["evidence"]}
        for key in ("instruction_sensitivity", "source_sensitivity", "eta_last_sixth"):
            number = found[key]
            assert f"{number['value']:.2f} [{number['ci_low']:.2f}, {number['ci_high']:.2f}]" in page
        if error := found.get("transcription_error"):
            assert f"{error['value']:.0f} [{error['ci_low']:.0f}, {error['ci_high']:.0f}]" in page


def test_the_page_shows_the_measured_differences():
    page = (FOLDER / "README.md").read_text(encoding="utf-8").replace("−", "-")
    pairs = json.loads((FOLDER / "natural_differences.json").read_text())["pairs"]
    found = {(pair["first"], pair["second"]): pair for pair in pairs}
    vanilla, repaired = "builtin:open_vanilla_asr", "builtin:open_self_powered"
    for names, sign in (("builtin:llm", vanilla), -1), ((vanilla, repaired), 1):
        number = found[names]["instruction_difference"]
        low, high = sorted(sign * number[key] for key in ("ci_low", "ci_high"))
        assert f"{sign * number['mean']:.2f} [{low:.2f}, {high:.2f}]" in page
    for key in ("instruction_difference", "source_difference"):
        number = found["builtin:llm", repaired][key]
        assert f"{number['mean']:.2f} [{number['ci_low']:.2f}, {number['ci_high']:.2f}]" in page
