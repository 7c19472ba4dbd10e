"""The only wrapper of `from_pretrained`: no code of a checkpoint runs, and its weights are complete and all used."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, cached_file

from lsm_probe.errors import InputError
from lsm_probe.memory import is_out_of_memory
from lsm_probe.models.checkpoint_names import explain_missing_folder, require_folder
from lsm_probe.models.quantisation import cast_dense
from lsm_probe.models.tensors import check_other_file, check_tensors, complete_loading_info
from lsm_probe.models.training_dumps import check_dump, wrapper_prefix
from lsm_probe.models.unknown_kinds import check_known, check_litgpt
from lsm_probe.models.weight_files import find_other_weights, find_weights, read_shapes


def pretrained_model(
    auto_class: Any,
    name: str | Path,
    dtype: torch.dtype,
    *,
    part: str | None = None,
    left_out: Callable[[str], bool] = lambda tensor: False,
    **kwargs: Any,
) -> PreTrainedModel:
    """A model whose weights are those of its files: all of them are there, and all that are there are used.

    Args:
        auto_class: a class of transformers, or one of its auto classes.
        name: folder or hub name.
        dtype: of all weights; of a quantised checkpoint, of those that are not quantised.
        part: regular expression of the tensors that are wanted, by their names in the model; heads of other tasks are
            then left out too. None: the whole model.
        left_out: says of a tensor's name in the files that it is left out on purpose.
        kwargs: settings of the configuration that differ from the file's.

    Raises:
        InputError: tensors are missing, unused or of another shape, the folder holds an adapter too, or a file is
            damaged.
    """
    files = {path.name: read_shapes(path) for path in find_weights(Path(name))}
    prefix = wrapper_prefix(files.values())
    config = pretrained(getattr(auto_class, "config_class", None) or AutoConfig, name, **kwargs)
    asked = _attention_of(config)
    config._attn_implementation = None  # of its parts too: each then runs transformers' default
    # Ours to refuse, with names: transformers' own refusal only points to its log.
    options = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if prefix:
        warnings.warn(
            f"{name}: {prefix} is removed from the names of all tensors (a wrapper of the training code added it)",
            stacklevel=2,
        )
        options["key_mapping"] = {f"^{re.escape(prefix)}": ""}
    with complete_loading_info() as completed:
        model, loaded = pretrained(auto_class, name, config=config, **options)
    if getattr(model, "_hf_peft_config_loaded", False):  # from the hub: a folder's was refused before
        raise adapter_error(name, "whole weights")
    _check_weights(model, loaded | completed, name, config, part, left_out)
    _warn_other_attention(name, asked, model)
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        computed = quantizer.update_dtype(dtype)  # some kernels support only one dtype
        if computed != dtype:
            warnings.warn(f"{name}: its quantisation computes in {computed}; {dtype} has no effect", stacklevel=2)
        cast_dense(model, computed)
    return cast(PreTrainedModel, model)


def pretrained(auto_class: Any, name: str | Path, **kwargs: Any) -> Any:
    """`auto_class.from_pretrained`, never running code from the checkpoint, with one line for what can go wrong."""
    require_folder(name)
    path = Path(name)
    if (path / "adapter_config.json").is_file():
        if whole := [*path.glob("model*.safetensors"), *path.glob("pytorch_model*.bin")]:
            raise adapter_error(name, min(whole).name)
        raise InputError(f"{name} holds only an adapter: merge it into its base and give the merged model's folder")
    check_dump(path)
    check_litgpt(path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{name} is not a checkpoint: the folder has no config.json")
    return from_files(auto_class, name, **kwargs)


def from_files(auto_class: Any, name: str | Path, **kwargs: Any) -> Any:
    """[`pretrained`], for folders that need not be whole checkpoints: the tokenizer beside an adapter."""
    try:
        return auto_class.from_pretrained(str(name), trust_remote_code=False, **kwargs)
    except UnpicklingError as error:
        raise InputError(
            f"{name} cannot be loaded: a weights file is damaged, or contains other objects than tensors"
        ) from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        if is_out_of_memory(error):
            raise
        if issubclass(auto_class, AutoConfig) and "gguf_file" not in kwargs and not isinstance(error, OSError):
            check_known(name)
        # A bare KeyError says only the key.
        reason = " ".join((repr(error) if isinstance(error, KeyError) else str(error)).split())[:300]
        before = explain_missing_folder(name) if isinstance(error, OSError) else ""
        raise InputError(f"{name} cannot be loaded: {before}{reason}") from error


def _check_weights(
    model: PreTrainedModel,
    loaded: Mapping[str, Collection[Any]],
    name: str | Path,
    config: PreTrainedConfig,
    part: str | None,
    left_out: Callable[[str], bool],
) -> None:
    folder = Path(name)
    if not folder.is_dir():  # on the hub: what was loaded is in its cache, and no other file
        folder = Path(str(cached_file(str(name), CONFIG_NAME, local_files_only=True))).parent
    read = find_weights(folder)
    files = {path.name: read_shapes(path) for path in read}
    check_tensors(model, loaded, name, config, files, part=part, left_out=left_out)
    for other in find_other_weights(folder, read):
        check_other_file(model, name, files, other.name, read_shapes(other))


def _attention_of(config: PreTrainedConfig, part: str = "") -> dict[str, str | None]:
    """The attention implementations that a configuration and those inside it name, by the part of `config.json`."""
    found = {part: config._attn_implementation}
    for key in config.sub_configs:
        if (inner := getattr(config, key, None)) is not None:
            found |= _attention_of(inner, f"{part}.{key}".lstrip("."))
    return found


def _warn_other_attention(name: str | Path, asked: dict[str, str | None], model: PreTrainedModel) -> None:
    """Warns if a model runs other attention than its `config.json` asks for: the probes need sdpa, or else eager."""
    runs = _attention_of(model.config)
    for part, wanted in asked.items():
        if wanted is not None and runs.get(part) not in (None, wanted):
            where = f"config.json ({part})" if part else "config.json"
            warnings.warn(
                f"{name}: {where} asks for attn_implementation {wanted}; the model runs {runs[part]}, which the probes "
                "need",
                stacklevel=3,
            )
            return


def adapter_error(name: str | Path, weights: str) -> InputError:
    """The error about an adapter beside whole weights."""
    # transformers would apply the adapter by itself, a second time if it is already merged.
    return InputError(
        f"{name} holds {weights} and an adapter (adapter_config.json), which would be applied on top of it: if the "
        "adapter is merged already, move its files (adapter_config.json, adapter_model.*) to another folder; if not, "
        "merge it and give the merged model's folder"
    )
