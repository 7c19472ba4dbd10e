"""Which parameters each strategy trains, with which learning rate and weight decay."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.training.config import Stage
from lsm_probe.training.parameters import lora_targets, prepare_model

Groups = Callable[..., list[dict[str, Any]]]

LLAMA_LINEARS = {
    f"model.layers.{layer}.{name}"
    for layer in range(3)
    for name in (
        *(f"self_attn.{part}_proj" for part in "qkvo"),
        *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    )
}
GPT2_LINEARS = {
    f"transformer.h.{layer}.{name}"
    for layer in range(3)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
}


def stage(strategy: str, **settings: Any) -> Stage:
    rates = {"learning_rate": 1e-4, "connector_learning_rate": 1e-3, "weight_decay": 0.05}
    return Stage.model_validate({"strategy": strategy} | rates | settings)


def is_plain(name: str) -> bool:
    """Whether a parameter has no weight decay: biases and norms, by the module that holds it."""
    return name.endswith(".bias") or "norm" in name.lower() or ".ln_" in name


@pytest.mark.parametrize("strategy", ["full", "frozen_llm", "lora"])
def test_each_trained_parameter_is_in_one_group_with_the_right_rate(
    checkpoint: Checkpoint, strategy: str, groups_of: Groups
) -> None:
    settings = stage(strategy)
    model = prepare_model(checkpoint.model, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = groups_of(model, settings)
    found = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for group in groups:
        for name in (names[id(parameter)] for parameter in group["params"]):
            assert group["lr"] == (1e-3 if "multi_modal_projector" in name else 1e-4), name
            assert group["weight_decay"] == (0.0 if is_plain(name) else 0.05), name


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("strategy", ["full", "frozen_llm"])
def test_the_strategy_decides_which_parts_are_trained(checkpoint: Checkpoint, strategy: str) -> None:
    model = checkpoint.model
    names = dict(model.named_parameters())
    assert prepare_model(model, stage(strategy)) is model
    parts = ["multi_modal_projector.", *(["language_model."] if strategy == "full" else [])]
    assert trained_names(model) == {name for name in names if name.startswith(tuple(parts))}


@pytest.mark.filterwarnings("error")  # the command line would show them
def test_lora_trains_adapters_and_the_connector(checkpoint: Checkpoint) -> None:
    connector = {name for name, _ in checkpoint.model.multi_modal_projector.named_parameters()}
    linears = GPT2_LINEARS if checkpoint.llm.config.model_type == "gpt2" else LLAMA_LINEARS
    assert set(lora_targets(checkpoint.llm)) == linears
    before = {name: tensor.clone() for name, tensor in checkpoint.model.multi_modal_projector.state_dict().items()}
    model = prepare_model(checkpoint.model, stage("lora", lora={"rank": 3}))
    prefix = "base_model.model."
    adapters = {f"{prefix}language_model.{name}.lora_{side}.default.weight" for name in linears for side in "AB"}
    copied = {f"{prefix}multi_modal_projector.modules_to_save.default.{name}" for name in connector}
    assert trained_names(model) == adapters | copied
    parameters = dict(model.named_parameters())
    assert {parameters[name].shape[0 if ".lora_A." in name else 1] for name in adapters} == {3}
    scalings = {m.scaling["default"] for m in model.modules() if isinstance(getattr(m, "scaling", None), dict)}
    assert scalings == {2.0}  # alpha / rank
    for name, tensor in before.items():
        assert torch.equal(parameters[f"{prefix}multi_modal_projector.modules_to_save.default.{name}"], tensor)


@pytest.mark.parametrize("strategy", ["full", "frozen_llm", "lora"])
def test_the_encoder_is_frozen_and_without_dropout(tiny_lsm: Checkpoint, strategy: str) -> None:
    tower = tiny_lsm.model.audio_tower
    model = prepare_model(tiny_lsm.model, stage(strategy))
    model.train()
    assert not any(parameter.requires_grad for parameter in tower.parameters())
    assert not any(module.training for module in tower.modules())
    assert tiny_lsm.llm.training
    assert all(m.training for m in model.modules() if type(m).__name__ == "WindowQFormer")


def test_tied_embeddings_are_counted_once(tiny_lsm: Checkpoint, groups_of: Groups) -> None:
    llm = tiny_lsm.llm
    assert llm.get_input_embeddings().weight is llm.get_output_embeddings().weight
    model = prepare_model(tiny_lsm.model, stage("full"))
    parameters = [p for group in groups_of(model, stage("full")) for p in group["params"]]
    assert sum(p is llm.get_input_embeddings().weight for p in parameters) == 1
    trained = sum(p.numel() for p in parameters)
    assert trained == sum(p.numel() for part in (llm, model.multi_modal_projector) for p in part.parameters())


def test_a_connector_without_its_own_rate_uses_the_rate_of_the_llm(tiny_lsm: Checkpoint, groups_of: Groups) -> None:
    settings = stage("full", connector_learning_rate=None)
    model = prepare_model(tiny_lsm.model, settings)
    assert {group["lr"] for group in groups_of(model, settings)} == {1e-4}


def test_a_second_stage_unfreezes_the_llm(tiny_lsm: Checkpoint) -> None:
    model = prepare_model(tiny_lsm.model, stage("frozen_llm"))
    assert not any(name.startswith("language_model.") for name in trained_names(model))
    assert any(name.startswith("language_model.") for name in trained_names(prepare_model(model, stage("full"))))
