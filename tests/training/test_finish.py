"""A finished run makes no further step, and writes its model if it is missing."""

import json
import shutil

import pytest
from safetensors.torch import load_file

import lsm_probe
from lsm_probe.training.run import train

LORA = ("strategy=lora", "lora.dropout=0.1")


def refuse_steps(name: str, done: int, total: int | None, *_: object) -> None:
    assert total is None, f"{name} made a step"  # while it is prepared, no total is shown


@pytest.mark.parametrize("overrides", [(), LORA])
def test_resuming_a_finished_run_changes_nothing(finished_run, training_config, overrides) -> None:
    out = finished_run(*overrides)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    report = train(training_config(*overrides), out, resume=True, on_progress=refuse_steps)
    assert report["stages"][0]["steps"] == 9
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("overrides", [(), LORA])
def test_a_missing_final_model_is_written_without_further_steps(
    finished_run, training_config, uninterrupted, model_sha256, overrides
) -> None:
    out = finished_run(*overrides)
    shutil.rmtree(out / "model")
    (out / "report.json").unlink()
    (out / "history.json").unlink()
    (out / ".model.half-written").mkdir()
    report = train(training_config(*overrides), out, resume=True, on_progress=refuse_steps)
    assert report["stages"][0]["steps"] == 9
    assert model_sha256(out) == model_sha256(uninterrupted(*overrides))
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-8", "checkpoint-9"]
    steps = [entry["step"] for entry in json.loads((out / "history.json").read_text()) if "loss" in entry]
    assert steps == list(range(1, 10))


def test_the_final_model_of_a_lora_run_is_merged_and_can_be_loaded(uninterrupted) -> None:
    out = uninterrupted(*LORA)
    weights = load_file(out / "model" / "model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in weights)
    assert lsm_probe.load(out / "model", device="cpu").identity.checksums == "verified"
