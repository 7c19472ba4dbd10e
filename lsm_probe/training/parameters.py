"""What a strategy trains, and how fast each part learns."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lsm_probe.training.config import LoraSettings, Stage

CONNECTOR = "multi_modal_projector"


def prepare_model(model: PreTrainedModel, stage: Stage) -> Any:
    """Freezes what the stage's strategy does not train; for `lora` returns a peft model round `model`."""
    model.requires_grad_(False)
    if stage.strategy == "lora":
        return _with_lora(model, stage.lora)
    lsm: Any = model
    lsm.multi_modal_projector.requires_grad_(True)
    if stage.strategy == "full":
        lsm.language_model.requires_grad_(True)
    return model


def lora_targets(language_model: PreTrainedModel) -> list[str]:
    """Names of all linear layers of attention and MLP: every one but the head."""
    head = language_model.get_output_embeddings()
    return [
        name
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]


def _with_lora(model: PreTrainedModel, settings: LoraSettings) -> Any:
    from peft import LoraConfig, get_peft_model

    lsm: Any = model
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        lora_dropout=settings.dropout,
        target_modules=[f"language_model.{name}" for name in lora_targets(lsm.language_model)],
        modules_to_save=[CONNECTOR],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, at what peft calls
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # GPT-2's layers: peft then sets it itself
        return get_peft_model(model, config)


def used_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """All parameters once, by name; peft keeps the connector it has trained a copy of, which never runs."""
    return [(name, parameter) for name, parameter in model.named_parameters() if ".original_module." not in name]


def parameter_groups(model: nn.Module, decayed: Collection[str], stage: Stage) -> list[dict[str, Any]]:
    """Trained parameters in groups of one learning rate and one weight decay, for the optimizer.

    Args:
        model: frozen parameters are left out.
        decayed: names of the parameters with weight decay.
        stage: says the rates.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((CONNECTOR in name, name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": (is_connector and stage.connector_learning_rate) or stage.learning_rate,
            "weight_decay": stage.weight_decay if is_decayed else 0.0,
        }
        for (is_connector, is_decayed), parameters in sorted(groups.items())
    ]
