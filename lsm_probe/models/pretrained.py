"""The one way to `from_pretrained`: no code of a checkpoint runs, and its weights are all there and all used."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from lsm_probe.checksums import leads_outside
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint_names import explain_missing_folder, require_folder
from lsm_probe.models.tensors import check_tensors


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
        dtype: of all weights.
        part: regular expression of the tensors that are wanted, by their names in the model; heads of other tasks are
            then left out too. None: the whole model.
        left_out: says of a tensor's name in the files that it is left out on purpose.
        kwargs: settings of the configuration that differ from the file's.

    Raises:
        InputError: tensors are missing, unused or of another shape, the folder holds an adapter too, or a file is
            damaged.
    """
    _check_indices(Path(name))
    config = pretrained(getattr(auto_class, "config_class", None) or AutoConfig, name, **kwargs)
    asked = _attention_of(config)
    config._attn_implementation = None  # of its parts too: each then runs transformers' default
    # Ours to refuse, with names: transformers' own refusal only points to its log.
    options = {"dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    model, loaded = pretrained(auto_class, name, config=config, **options)
    if getattr(model, "_hf_peft_config_loaded", False):  # from the hub: a folder's was refused before
        raise _adapter_error(name, "whole weights")
    check_tensors(model, loaded, name, part=part, left_out=left_out)
    _warn_other_attention(name, asked, model)
    return cast(PreTrainedModel, model)


def pretrained(auto_class: Any, name: str | Path, **kwargs: Any) -> Any:
    """`auto_class.from_pretrained`, never running code from the checkpoint, with one line for what can go wrong."""
    require_folder(name)
    path = Path(name)
    if (path / "adapter_config.json").is_file():
        if whole := [*path.glob("model*.safetensors"), *path.glob("pytorch_model*.bin")]:
            raise _adapter_error(name, min(whole).name)
        raise InputError(f"{name} holds only an adapter: merge it into its model and give the merged model's folder")
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{name} is no checkpoint: the folder has no config.json")
    try:
        return auto_class.from_pretrained(str(name), trust_remote_code=False, **kwargs)
    except UnpicklingError as error:
        raise InputError(f"{name} cannot be loaded: a weights file is damaged, or holds more than tensors") from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        # A bare KeyError says only the key.
        reason = " ".join((repr(error) if isinstance(error, KeyError) else str(error)).split())[:300]
        before = explain_missing_folder(name) if isinstance(error, OSError) else ""
        raise InputError(f"{name} cannot be loaded: {before}{reason}") from error


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


def _adapter_error(name: str | Path, weights: str) -> InputError:
    # transformers would apply the adapter by itself, a second time where it is merged already.
    return InputError(
        f"{name} holds {weights} and an adapter (adapter_config.json), which would be applied on top of it: if the "
        "adapter is merged already, move its files (adapter_config.json, adapter_model.*) to another folder; if not, "
        "merge it and give the merged model's folder"
    )


def _check_indices(folder: Path) -> None:
    """Refuses weights that an index places outside of the folder: transformers would read them."""
    for path in sorted(folder.glob("*.index.json")):
        try:
            files = {str(file) for file in json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path} is no index of weights: take it from a good copy of the checkpoint") from error
        for file in sorted(files):
            if leads_outside(file):
                raise InputError(f"{path} names {file!r}, which lies outside of the folder: use no such checkpoint")
