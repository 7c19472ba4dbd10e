"""The trained parameters of each strategy, and their learning rates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lsm_probe.errors import InputError
from lsm_probe.models.layers import layer_of, layers_prefix
from lsm_probe.training.config import RATED, LoraSettings, Stage

CONNECTOR = "multi_modal_projector"


def prepare_model(model: PreTrainedModel, stage: Stage) -> Any:
    """Freezes what the stage's strategy does not train; for `lora` returns a peft model around `model`."""
    model.requires_grad_(False)
    if stage.strategy == "lora":
        return _with_lora(model, stage.lora)
    lsm: Any = model
    lsm.multi_modal_projector.requires_grad_(True)
    if stage.strategy not in ("frozen_llm", "align"):
        lsm.language_model.requires_grad_(True)
    return model


def lora_targets(language_model: PreTrainedModel) -> list[str]:
    """Names of all linear layers of attention and MLP: all linear layers except the head."""
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
        warnings.simplefilter("ignore", FutureWarning)  # warnings of transformers about functions that peft calls
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")  # GPT-2's layers: peft then sets it itself
        return get_peft_model(model, config)


def used_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """All parameters once, by name. peft also stores an unused copy of a trained connector, which is left out."""
    return [(name, parameter) for name, parameter in model.named_parameters() if ".original_module." not in name]


def parameter_groups(model: nn.Module, decayed: Collection[str], stage: Stage) -> list[dict[str, Any]]:
    """Trained parameters in groups with the same learning rate and weight decay; `decayed` names those with weight
    decay.

    Raises:
        InputError: the stage gives rates for a different number of layers.
    """
    factor_of = _layer_rates(model, stage)
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((CONNECTOR in name, name in decayed, factor_of(name, parameter)), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": (stage.connector_learning_rate if is_connector else None) or stage.learning_rate * rate,
            "weight_decay": stage.weight_decay if is_decayed else 0.0,
        }
        for (is_connector, is_decayed, rate), parameters in sorted(groups.items())
    ]


def _layer_rates(model: nn.Module, stage: Stage) -> Callable[[str, nn.Parameter], float]:
    """A parameter's rate relative to the stage's: for weight matrices of the LLM's layers, or the adapters on them; 1
    for all others.
    """
    if stage.strategy not in RATED or stage.layer_rates is None:
        return lambda name, parameter: 1.0
    llm = next(module for name, module in model.named_modules() if name.split(".")[-1] == "language_model")
    prefix = layers_prefix(llm)
    layers, by_layer = llm.config.get_text_config().num_hidden_layers, stage.layer_rates
    if len(by_layer) != layers:
        raise InputError(
            f"layer_rates holds {len(by_layer)} rates, but the LLM has {layers} layers: write them for this LLM, "
            "with importance --write-lr-schedule"
        )

    def rate(name: str, parameter: nn.Parameter) -> float:
        layer, _ = layer_of(name, f"language_model.{prefix}")
        return 1.0 if layer is None or parameter.dim() < 2 else by_layer[layer]

    return rate
