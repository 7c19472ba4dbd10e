"""Text LLMs in GGUF files, llama.cpp's format: read by transformers, their weights dequantised."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from lsm_probe.assets.cache import sha256
from lsm_probe.assets.notice import quiet_libraries
from lsm_probe.errors import InputError
from lsm_probe.models.causal_llm import check_causal, is_causal
from lsm_probe.models.identity import Checksums, WeightsIdentity
from lsm_probe.models.pretrained import from_files
from lsm_probe.models.tensors import complete_loading_info, listed
from lsm_probe.models.weight_files import find_weights

_OF_EVERY_LLM = re.compile(r"blk\.\d+\.|token_embd\.|output\.|output_norm\.|position_embd\.|token_embd_norm\.")

_ADVICE = "Give the model in transformers' own format (safetensors)"


def find_gguf(name: str | Path) -> Path | None:
    """The GGUF file of a name: the file itself, or the only GGUF file in a folder without other weights.

    Raises:
        InputError: the folder has several.
    """
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return path
    found = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if not found or find_weights(path):
        return None
    if len(found) > 1:
        raise InputError(
            f"{name} holds {', '.join(file.name for file in found)}: give the path of the file that holds the whole "
            "model"
        )
    return found[0]


def read_gguf_tokenizer(path: Path) -> Any:
    """The tokenizer in a GGUF file, as transformers converts it."""
    return _read(AutoTokenizer, path)


def load_gguf(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Loads a text LLM from a GGUF file.

    Args:
        path: the file.
        dtype: of all weights, once they are dequantised.

    Raises:
        InputError: the file is damaged or only a part of a model, transformers cannot read this model from GGUF, or it
            does not use all tensors of the file.

    Warns:
        UserWarning: always: the weights are dequantised.
    """
    tensors, scaling = _describe(path)
    config = _read(AutoConfig, path)
    if not is_causal(config):
        raise InputError(f"{path} holds a {config.model_type!r} model, which is not a causal text LLM")
    if scaling != "none" and (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default") == "default":
        raise InputError(
            f"{path} cannot be loaded: it scales rotary positions ({scaling}), which transformers does not read from "
            f"GGUF. {_ADVICE}"
        )
    with complete_loading_info() as loaded:
        read = _read(AutoModelForCausalLM, path, dtype=dtype)
    model = _without_quantisation(read, dtype)
    count = sum(tensors.values())
    used = sum(parameter.numel() for parameter in model.parameters())
    missing, unused = loaded["missing_keys"], loaded["unexpected_keys"]
    if missing or unused or count != used:
        others = {name for name in tensors if not _OF_EVERY_LLM.match(name)} | unused
        faults = [
            *([f"it lacks {listed(missing)}"] if missing else []),
            *([f"it holds {listed(others)} that transformers does not read from GGUF"] if others else []),
            *([f"it holds {count:,} weights and the model {used:,}"] if not missing and not others else []),
        ]
        raise InputError(f"{path} cannot be loaded: {' and '.join(faults)}. {_ADVICE}")
    check_causal(model, str(path))
    warnings.warn(
        f"{path}: weights are dequantised from GGUF; results hold for these, not for the model before quantisation",
        stacklevel=4,
    )
    return model


def identify_gguf(path: Path, model: PreTrainedModel, checksums: Checksums | None) -> WeightsIdentity:
    """Identifies the weights of a GGUF file."""
    return WeightsIdentity(
        model_type=model.config.model_type, checksums=checksums, weights_sha256={path.name: sha256(path)}
    )


def _read(auto_class: Any, path: Path, **options: Any) -> Any:
    try:
        with quiet_libraries():
            return from_files(auto_class, path.parent, gguf_file=path.name, **options)
    except InputError as error:
        reason = str(error).removeprefix(f"{path.parent} cannot be loaded: ").rstrip(".")
        raise InputError(f"{path} cannot be loaded: {reason}. {_ADVICE}") from error


def _describe(path: Path) -> tuple[dict[str, int], str]:
    """The tensors in a file, name -> number of weights; and the file's rotary scaling."""
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        scaling = (field.contents() for name, field in reader.fields.items() if name.endswith(".rope.scaling.type"))
        return {tensor.name: int(tensor.n_elements) for tensor in reader.tensors}, str(next(scaling, "none"))
    except (OSError, ValueError, KeyError, IndexError, OverflowError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a GGUF file, or a damaged one: get an undamaged copy") from error


def _without_quantisation(read: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The same model without its mark as quantised, because transformers would refuse to move or save it."""
    fields = read.config.to_dict()
    for name in ("quantization_config", "_model_name_or_path"):
        fields.pop(name, None)
    kind: Any = type(read)
    model = kind.from_pretrained(None, config=type(read.config)(**fields), state_dict=read.state_dict(), dtype=dtype)
    model.generation_config = read.generation_config
    evaluated: PreTrainedModel = model.eval()
    return evaluated
