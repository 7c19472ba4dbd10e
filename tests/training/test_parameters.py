"""What each strategy trains, at which rate, and with how much weight decay."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

import lsm_probe
from lsm_probe.models import LsmProjectorConfig
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.training.config import Stage
from lsm_probe.training.parameters import lora_targets, parameter_groups, prepare_model

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
    for layer in range(2)
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
}


@pytest.fixture
def gpt2_lsm(
    tmp_path: Path,
    tiny_encoder_folder: Path,
    tiny_projector: Callable[..., LsmProjectorConfig],
    make_tokenizer: Callable[..., Any],
) -> Checkpoint:
    """An LSM whose LLM's linear layers are GPT-2's `Conv1D`."""
    config = GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=448, bos_token_id=1, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return lsm_probe.build_lsm(tiny_encoder_folder, tmp_path, projector=tiny_projector())


@pytest.fixture(params=["llama", "gpt2"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return request.getfixturevalue("tiny_lsm" if request.param == "llama" else "gpt2_lsm")


def stage(strategy: str, **settings: Any) -> Stage:
    rates = {"learning_rate": 1e-4, "connector_learning_rate": 1e-3, "weight_decay": 0.05}
    return Stage.model_validate({"strategy": strategy} | rates | settings)


def groups_of(model: nn.Module, stage: Stage, folder: Path) -> list[dict[str, Any]]:
    """Decayed are the parameters that the Trainer names, as in a run."""
    trainer = Trainer(model=model, args=TrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[]))
    return parameter_groups(model, trainer.get_decay_parameter_names(model), stage)


def is_plain(name: str) -> bool:
    """Whether a parameter has no weight decay: biases and norms, by the module that holds it."""
    return name.endswith(".bias") or "norm" in name.lower() or ".ln_" in name


@pytest.mark.parametrize("strategy", ["full", "frozen_llm", "lora"])
def test_each_trained_parameter_is_in_one_group_of_the_right_rate(
    checkpoint: Checkpoint, strategy: str, tmp_path: Path
) -> None:
    settings = stage(strategy)
    model = prepare_model(checkpoint.model, settings)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = groups_of(model, settings, tmp_path)
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
def test_what_is_trained(checkpoint: Checkpoint, strategy: str) -> None:
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


def test_tied_embeddings_are_counted_once(tiny_lsm: Checkpoint, tmp_path: Path) -> None:
    llm = tiny_lsm.llm
    assert llm.get_input_embeddings().weight is llm.get_output_embeddings().weight
    model = prepare_model(tiny_lsm.model, stage("full"))
    parameters = [p for group in groups_of(model, stage("full"), tmp_path) for p in group["params"]]
    assert sum(p is llm.get_input_embeddings().weight for p in parameters) == 1
    trained = sum(p.numel() for p in parameters)
    assert trained == sum(p.numel() for part in (llm, model.multi_modal_projector) for p in part.parameters())


def test_a_connector_without_a_rate_of_its_own_learns_like_the_llm(tiny_lsm: Checkpoint, tmp_path: Path) -> None:
    settings = stage("full", connector_learning_rate=None)
    model = prepare_model(tiny_lsm.model, settings)
    assert {group["lr"] for group in groups_of(model, settings, tmp_path)} == {1e-4}


def test_a_second_stage_thaws_what_the_first_froze(tiny_lsm: Checkpoint) -> None:
    model = prepare_model(tiny_lsm.model, stage("frozen_llm"))
    assert not any(name.startswith("language_model.") for name in trained_names(model))
    assert any(name.startswith("language_model.") for name in trained_names(prepare_model(model, stage("full"))))
