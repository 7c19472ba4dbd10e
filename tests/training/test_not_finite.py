"""Losses and gradients that are not finite stop the run before they change the weights."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from lsm_probe.models.modeling_lsm import LsmForConditionalGeneration
from lsm_probe.training import dataset
from lsm_probe.training.run import train

UNEVEN = "limit=18"  # the fifth step is filled up from the first


def gradients_times(monkeypatch, factor: float, *, step: int) -> None:
    """Multiplies the gradients of one pass of one step; the loss is unchanged."""
    forward = LsmForConditionalGeneration.forward
    passes = []

    def forward_with_hook(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        if self.training:
            passes.append(step)
            if len(passes) == step:
                output.loss.register_hook(lambda gradient: gradient * factor)
        return output

    monkeypatch.setattr(LsmForConditionalGeneration, "forward", forward_with_hook)


@pytest.mark.parametrize("factor", [math.nan, math.inf, 1e30])  # 1e30: each number is finite, their norm is not
def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update(
    train_command, training_config, uninterrupted, model_sha256, tmp_path, monkeypatch, factor
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        gradients_times(patched, factor, step=5)
        code, lines = train_command(UNEVEN, "--out", out)
    assert (code, len(lines)) == (1, 1), lines
    assert lines[0].startswith("error: step 5: the gradient is not finite; samples: ")
    assert lines[0].count("translate-") + lines[0].count("repeat-") == 4
    check_whole(out, logged=4)
    train(training_config(UNEVEN), out, resume=True)
    assert model_sha256(out) == model_sha256(uninterrupted(UNEVEN))


def test_a_loss_that_is_not_a_number_names_its_samples(train_command, tmp_path, monkeypatch) -> None:
    item_of = dataset.TrainingSet.__getitem__

    def with_nan(self, index):
        item = item_of(self, index)
        if self.samples[index].id == "repeat-7":
            item["input_features"] = torch.full_like(item["input_features"], math.nan)
        return item

    monkeypatch.setattr(dataset.TrainingSet, "__getitem__", with_nan)
    code, lines = train_command("machine.save_steps=1", "--out", tmp_path / "out")
    assert (code, len(lines)) == (1, 1), lines
    assert "the loss is nan" in lines[0]
    assert "repeat-7" in lines[0]
    step = int(lines[0].removeprefix("error: step ").split(":")[0])
    check_whole(tmp_path / "out", logged=step - 1)


def check_whole(out, *, logged: int) -> None:
    """Check that weights and logged losses of the run are finite."""
    last = out / f"checkpoint-{logged}"
    assert all(tensor.isfinite().all() for tensor in load_file(last / "model.safetensors").values())
    logs = [entry for entry in json.loads((last / "trainer_state.json").read_text())["log_history"] if "loss" in entry]
    assert [entry["step"] for entry in logs] == list(range(1, logged + 1))
    assert all(math.isfinite(entry["loss"]) and entry["loss"] > 0 for entry in logs)
