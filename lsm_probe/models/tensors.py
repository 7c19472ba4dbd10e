"""Weights against the model that reads them: every tensor that it needs is there, and every one that is there is used.

transformers draws missing tensors at random and drops unused ones, and only logs both.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from lsm_probe.errors import InputError

_BUFFERS = re.compile(
    r"(^|\.)(attn|attention|self_attn)\.(masked_)?bias$|(rotary|rope).*\.(inv_freq|cos_cached|sin_cached)$|"
    r"(^|\.)position_ids$|(^|\.)(encoder|decoder)\.version$"
)
"""Constants that older versions of transformers saved with the weights: causal masks, frequencies, positions."""
_SHOWN = 2


def check_tensors(
    model: PreTrainedModel,
    loaded: Mapping[str, Iterable[Any]],
    name: str | Path,
    *,
    part: str | None = None,
    left_out: Callable[[str], bool] = lambda tensor: False,
) -> None:
    """Refuses weights that are not those of the model.

    Where `config.json` names another class than the one loaded (a text LLM taken out of a model with vision), what
    belongs to modules that this one does not have at all is left out with a warning.

    Args:
        model: as it was loaded.
        loaded: transformers' loading information; `mismatched_keys` is empty unless sizes were ignored.
        name: what was loaded, for messages.
        part, left_out: see [`lsm_probe.models.pretrained.pretrained_model`].

    Raises:
        InputError: tensors are missing, unused or of another shape.
    """
    wanted = re.compile(part or "")
    missing = [key for key in loaded["missing_keys"] if wanted.match(key)]
    shapes = [
        f"{key} {list(there)} instead of {list(needed)}"
        for key, there, needed in loaded["mismatched_keys"]
        if wanted.match(key)
    ]
    prefix = f"{model.base_model_prefix}."
    unused = [key for key in loaded["unexpected_keys"] if not _BUFFERS.search(key) and not left_out(key)]
    unused = [key for key in unused if wanted.match(key.removeprefix(prefix))]
    named = model.config.architectures or [type(model).__name__]
    is_whole = part is None and type(model).__name__ in named
    if not is_whole:
        # Tensors of modules that neither the model nor the base model in it has.
        owners: tuple[Any, ...] = (model, model.base_model)
        heads = {key: key.removeprefix(prefix).split(".")[0] for key in unused}
        foreign = [key for key in unused if not any(hasattr(owner, heads[key]) for owner in owners)]
        unused = [key for key in unused if key not in foreign]
        if foreign and part is None:
            warnings.warn(
                f"{name} is loaded as a {type(model).__name__}, without {_listed(foreign)} of its {', '.join(named)}",
                stacklevel=3,
            )
    faults = [
        *([f"lack {_listed(missing)}"] if missing else []),
        *([f"hold {_listed(unused)} that this {type(model).__name__} does not have"] if unused else []),
        *([f"have another shape in {_listed(shapes)}"] if shapes else []),
    ]
    if faults:
        remedy = "copy config.json and the weights again from the same source"
        if any("lora_" in key or ".base_layer." in key for key in unused):
            remedy = "merge its adapter and save the merged model"
        raise InputError(
            f"{name} cannot be loaded: its weights do not fit its config.json. They {' and '.join(faults)}; {remedy}"
        )


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return f"{len(ordered)} tensor{'s' if len(ordered) > 1 else ''} ({', '.join(ordered[:_SHOWN])}{more})"
