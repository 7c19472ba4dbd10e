"""The original's checkpoints of BEATs: their `cfg` and their `model`, converted to [`BeatsConfig`] and [`Beats`]."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lsm_probe.errors import InputError
from lsm_probe.models.beats.configuration import SIZES, BeatsConfig
from lsm_probe.models.beats.features import PATCH
from lsm_probe.models.tensors import listed

_IMPLEMENTED = {
    "input_patch_size": PATCH,
    "conv_bias": False,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
}
"""The values of `cfg` that [`Beats`] implements."""

_TRAINING_ONLY = {
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "encoder_layerdrop",
    "dropout_input",
    "layer_wise_gradient_decay_ratio",
    "finetuned_model",
    "predictor_dropout",
    "predictor_class",
}
"""The settings of `cfg` that only concern training, or the classifier on top of a fine-tuned encoder."""


def _with_parameters(modules: dict[str, str]) -> dict[str, str]:
    return {f"{old}.{name}": f"{new}.{name}" for old, new in modules.items() for name in ("weight", "bias")}


_POSITIONAL = "encoder.pos_conv_embed.conv"
_NAMES = _with_parameters(
    {
        "layer_norm": "feature_projection.layer_norm",
        "post_extract_proj": "feature_projection.projection",
        "encoder.layer_norm": "encoder.layer_norm",
    }
) | {
    "patch_embedding.weight": "patch_embedding.weight",
    "encoder.pos_conv.0.bias": f"{_POSITIONAL}.bias",
    "encoder.pos_conv.0.weight_g": f"{_POSITIONAL}.parametrizations.weight.original0",
    "encoder.pos_conv.0.weight_v": f"{_POSITIONAL}.parametrizations.weight.original1",
}
"""Tensors outside the layers: names in the original -> names in [`Beats`]."""

_POSITION_BIAS = "self_attn.relative_attention_bias.weight"
_LAYER_NAMES = _with_parameters(
    {
        "self_attn.q_proj": "attention.q_proj",
        "self_attn.k_proj": "attention.k_proj",
        "self_attn.v_proj": "attention.v_proj",
        "self_attn.out_proj": "attention.out_proj",
        "self_attn.grep_linear": "attention.gru_rel_pos_linear",
        "self_attn_layer_norm": "layer_norm",
        "fc1": "feed_forward.intermediate_dense",
        "fc2": "feed_forward.output_dense",
        "final_layer_norm": "final_layer_norm",
    }
) | {"self_attn.grep_a": "attention.gru_rel_pos_const", _POSITION_BIAS: "attention.rel_attn_embed.weight"}
"""Tensors of each layer: names in the original -> names in [`Beats`]."""

_LAYER = re.compile(r"^encoder\.layers\.\d+\.")
_FIRST_LAYER = "encoder.layers.0."
_CLASSIFIER = {"predictor.weight", "predictor.bias"}
"""The classifier of fine-tuned checkpoints, which is not needed: it reads the states and does not change them."""
_ADVICE = "give the file of BEATs' authors"


def convert_beats_config(cfg: Mapping[str, Any], where: str | Path = "BEATs") -> BeatsConfig:
    """Converts the `cfg` of an original checkpoint.

    Args:
        cfg: settings by the original's names.
        where: the file, for messages.

    Raises:
        InputError: a size is missing or unusable, a setting is unknown, or [`Beats`] does not implement its value.

    Example:
        >>> found = torch.load("BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt", weights_only=True)
        >>> beats = Beats(convert_beats_config(found["cfg"])).eval()
        >>> beats.load_state_dict(convert_beats(found["model"]))
        <All keys matched successfully>
    """
    if missing := sorted((SIZES.keys() | _IMPLEMENTED.keys()) - cfg.keys()):
        raise InputError(f"{where}: its cfg lacks {listed(missing, 'setting')}: {_ADVICE}")
    if unknown := sorted(cfg.keys() - SIZES.keys() - _IMPLEMENTED.keys() - _TRAINING_ONLY):
        raise InputError(f"{where}: its cfg has {listed(unknown, 'unknown setting')}: {_ADVICE}")
    for name, value in _IMPLEMENTED.items():
        if cfg[name] != value:
            raise InputError(
                f"{where}: its cfg has {name} {cfg[name]!r}, and only {value!r} is implemented: give another BEATs"
            )
    return BeatsConfig(**{name: cfg[old] for old, name in SIZES.items()})


def convert_beats(state: Mapping[str, Tensor], where: str | Path = "BEATs") -> dict[str, Tensor]:
    """Converts the `model` of an original checkpoint to the names that [`Beats`] gives its tensors.

    Left out are the classifier of a fine-tuned checkpoint, and `relative_attention_bias` of every layer but the
    first: in the original all layers share this tensor, and saving writes it once for each layer.

    Args:
        state: tensors by the original's names, without a prefix such as `beats.`.
        where: the file, for messages.

    Returns:
        The tensors for `Beats.load_state_dict`, the same objects.

    Raises:
        InputError: a name is unknown, or a layer's `relative_attention_bias` differs from that of the first layer.

    Example:
        >>> list(convert_beats({"layer_norm.bias": torch.zeros(512)}))
        ['feature_projection.layer_norm.bias']
    """
    converted, unknown, differing = {}, [], []
    for name, tensor in state.items():
        layer = "".join(_LAYER.findall(name))
        rest = name.removeprefix(layer)
        if rest == _POSITION_BIAS and layer not in ("", _FIRST_LAYER):
            first = state.get(_FIRST_LAYER + _POSITION_BIAS)
            if first is None or not torch.equal(tensor, first):
                differing.append(name)
        elif new := (_LAYER_NAMES if layer else _NAMES).get(rest):
            converted[layer + new] = tensor
        elif name not in _CLASSIFIER:
            unknown.append(name)
    if unknown:
        raise InputError(f"{where}: its weights hold {listed(unknown, 'unknown tensor')}: {_ADVICE}")
    if differing:
        raise InputError(
            f"{where}: all layers share one relative_attention_bias, and {listed(differing)} differ from that of "
            f"layer 0: {_ADVICE}"
        )
    return converted
