"""Checks weights against the model that reads them: every needed tensor exists, and every existing tensor is used.

transformers initialises missing tensors at random and drops unused ones, and only logs both.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from lsm_probe.errors import InputError
from lsm_probe.models.weight_files import Shapes

_CONSTANTS: tuple[tuple[str, Callable[[tuple[int, ...]], bool]], ...] = (
    (r"(^|\.)(attn|attention|self_attn|crossattention)\.bias$", lambda shape: len(shape) == 4 and shape[:2] == (1, 1)),
    (r"(^|\.)(attn|attention|self_attn|crossattention)\.masked_bias$", lambda shape: shape in ((), (1,))),
    (r"(rotary|rope)\w*\.inv_freq$", lambda shape: len(shape) == 1),
    (r"(rotary|rope)\w*\.(cos_cached|sin_cached)$", lambda shape: len(shape) in (2, 4)),
    (r"(^|\.)position_ids$", lambda shape: len(shape) == 2 and shape[0] == 1),
    (r"(^|\.)(encoder|decoder)\.version$", lambda shape: shape in ((), (1,))),
)
"""Names and shapes of constants that older versions of transformers saved with the weights: causal masks, frequencies
of rotary positions, position numbers."""
_ADAPTER = re.compile(r"(^|[._])lora_|\.base_layer\.|\.modules_to_save\.")
_SHOWN = 2


def check_tensors(
    model: PreTrainedModel,
    loaded: Mapping[str, Collection[Any]],
    name: str | Path,
    config: PreTrainedConfig,
    files: Mapping[str, Shapes],
    *,
    part: str | None = None,
    left_out: Callable[[str], bool] = lambda tensor: False,
) -> None:
    """Refuses weights that are not those of the model.

    Two kinds of tensors are left out with a warning: those of modules that only the class in `config.json` has (a text
    LLM taken out of a model with vision), and those that the model's class in transformers declares to be unused.

    Args:
        model: as it was loaded.
        loaded: transformers' loading information, with what [`complete_loading_info`] adds to it.
        name: what was loaded, for messages.
        config: what `config.json` holds.
        files: for each file that was read, by its name, the tensors in it.
        part, left_out: see [`lsm_probe.models.pretrained.pretrained_model`].

    Raises:
        InputError: tensors are missing, unused, there twice, or of another shape.
    """
    wanted = re.compile(part or "")
    missing = [key for key in loaded["missing_keys"] if wanted.match(key)]
    shapes = [
        f"{key} {list(there)} instead of {list(needed)}"
        for key, there, needed in loaded["mismatched_keys"]
        if wanted.match(key)
    ]
    unused = {key for key in loaded["unexpected_keys"] if not left_out(key)}
    unused -= find_constants(unused, files.values())
    foreign = _of_other_classes(model, config, unused) | unused.intersection(loaded["declared_unused"])
    foreign = {key for key in foreign if not _ADAPTER.search(key)}
    if foreign and part is None:
        warnings.warn(
            f"{name} is loaded as a {type(model).__name__}, without {listed(foreign)} that this class does not use",
            stacklevel=4,
        )
    unused -= foreign
    twice = _given_twice(model, files.values())
    faults = [
        *([f"lack {listed(missing)}"] if missing else []),
        *([f"hold {listed(unused)} that this {type(model).__name__} does not have"] if unused else []),
        *([f"have another shape in {listed(shapes)}"] if shapes else []),
        *([f"hold {listed(twice)} more than once"] if twice else []),
    ]
    if faults:
        remedy = "copy config.json and the weights again from the same source"
        if any(_ADAPTER.search(key) for key in unused):
            remedy = "merge its adapter and save the merged model"
        raise InputError(
            f"{name} cannot be loaded: its weights do not fit its config.json. They {' and '.join(faults)}; {remedy}"
        )


def check_other_file(
    model: PreTrainedModel, name: str | Path, files: Mapping[str, Shapes], other: str, held: Shapes
) -> None:
    """Refuses a file of weights beside those that were read if it holds tensors that these lack; warns if it does not.

    Args:
        model: as it was loaded.
        name: the folder, for messages.
        files: for each file that was read, by its name, the tensors in it.
        other: name of the file that was not read.
        held: the tensors in it.

    Raises:
        InputError: it holds others.
    """
    prefix = f"{model.base_model_prefix}."
    known = {key.removeprefix(prefix) for shapes in (*files.values(), model.state_dict()) for key in shapes}
    more = {key for key in held if key.removeprefix(prefix) not in known}
    more -= find_constants(more, [held])
    if more:
        raise InputError(
            f"{name} cannot be loaded: it holds {other} beside {min(files)}, and the {listed(more)} in it would not be "
            f"used. Move {other} to another folder if the model does not need it; if it does, the model is of no kind "
            "that can be probed"
        )
    if held:
        warnings.warn(f"{name}: {min(files)} is read, and not {other} beside it", stacklevel=4)


@contextmanager
def complete_loading_info() -> Iterator[dict[str, set[str]]]:
    """Completes transformers' loading information, which leaves out what the loaded class declares to be ignored.

    Within the context, one model is loaded. It yields a dictionary, which holds then: `unexpected_keys`;
    `missing_keys`, those of buffers as transformers reports them; and `declared_unused`, the unexpected keys which the
    class declares.
    """
    found: dict[str, set[str]] = {}
    adjust = PreTrainedModel._adjust_missing_and_unexpected_keys

    def keep(model: PreTrainedModel, info: Any) -> None:
        unexpected, missing = set(info.unexpected_keys), set(info.missing_keys)
        adjust(model, info)
        declared = re.compile("|".join(model._keys_to_ignore_on_load_unexpected or ()) or "(?!)")
        found["unexpected_keys"] = unexpected
        found["missing_keys"] = missing.intersection(dict(model.named_parameters())) | set(info.missing_keys)
        found["declared_unused"] = {key for key in unexpected if declared.search(key)}

    PreTrainedModel._adjust_missing_and_unexpected_keys = keep  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        PreTrainedModel._adjust_missing_and_unexpected_keys = adjust  # type: ignore[method-assign]


def find_constants(keys: Iterable[str], files: Iterable[Shapes]) -> set[str]:
    """Those of `keys` that are constants which older versions of transformers saved, by their names and shapes."""
    shapes: dict[str, set[tuple[int, ...]]] = {}
    for file in files:
        for name, shape in file.items():
            shapes.setdefault(_end(name), set()).add(shape)
    return {
        key
        for key in keys
        for pattern, fits in _CONSTANTS
        if re.search(pattern, key) and all(fits(shape) for shape in shapes.get(_end(key), ()))
    }


def listed(names: Iterable[str], noun: str = "tensor") -> str:
    """How many tensors, or what else the noun says, and the first of them."""
    ordered = sorted(names)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return f"{len(ordered)} {noun}{'s' if len(ordered) > 1 else ''} ({', '.join(ordered[:_SHOWN])}{more})"


def _of_other_classes(model: PreTrainedModel, config: PreTrainedConfig, unused: Iterable[str]) -> set[str]:
    """The tensors of modules that the class in `config.json` has and the model's class does not have."""
    prefix = f"{model.base_model_prefix}."
    heads = {key: key.removeprefix(prefix).split(".")[0] for key in unused}
    found: set[str] = set()
    for name in config.architectures or []:
        whole_class = getattr(transformers, name, None)
        if name == type(model).__name__ or getattr(whole_class, "config_class", None) is not type(config):
            continue
        with torch.device("meta"):  # its modules' names, and no memory
            whole: Any = whole_class(config)  # type: ignore[misc]
        found |= {
            key
            for key, head in heads.items()
            if any(hasattr(owner, head) for owner in (whole, whole.base_model))
            and not any(hasattr(owner, head) for owner in (model, model.base_model))
        }
    return found


def _given_twice(model: PreTrainedModel, files: Iterable[Shapes]) -> set[str]:
    """The tensors that several names, or several files, give: with and without the prefix of the base model."""
    prefix, own = f"{model.base_model_prefix}.", model.state_dict()
    names = Counter(name for file in files for name in file)
    both = {name for name in names if name.startswith(prefix) and name.removeprefix(prefix) in names}
    both = {name for name in both if not (name in own and name.removeprefix(prefix) in own)}
    return both | {name for name, count in names.items() if count > 1}


def _end(name: str) -> str:
    return ".".join(name.split(".")[-2:])
