"""The files of weights in a folder: which of them transformers reads, and the tensors in each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lsm_probe.checksums import leads_outside
from lsm_probe.errors import InputError

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each tensor, by its name in the files."""

NESTED = ("state_dict", "model", "module", "model_state_dict")
"""Keys under which training tools store the weights in a file, next to the optimizer state."""
_PICKED = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The weight files that transformers looks for, in this order."""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_NO_WEIGHTS = re.compile(
    r"training_args|optimizer|scheduler|scaler|rng_state|random_states|adapter_model|consolidated\b"
)
"""Files that are not read as weights: trainer states, adapters (refused elsewhere), and `consolidated.*`, which holds
the same weights again, under the names in Meta's and Mistral's own code."""


def find_weights(folder: Path) -> list[Path]:
    """The files of weights in a folder that transformers reads; empty if it finds none.

    Raises:
        InputError: an index is damaged or names files outside of the folder.
    """
    indexed_files(folder)  # also of the indices that are not read: they may come to be
    try:
        own = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    except (OSError, ValueError, AttributeError, RecursionError):
        own = None  # what is wrong with config.json is said when it is loaded
    for name in (own, *_PICKED):
        if isinstance(name, str) and not leads_outside(name) and (folder / name).is_file():
            files = _indexed_files(folder / name) if name.endswith(".index.json") else {name}
            return [folder / file for file in sorted(files)]
    return []


def find_other_weights(folder: Path, read: list[Path]) -> list[Path]:
    """The files of weights in a folder that transformers does not read; not those of a trainer's own state."""
    there = (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _WEIGHTS)
    return [path for path in there if path not in read and is_of_model(path)]


def is_of_model(path: Path) -> bool:
    """Whether a file of weights may hold those of a model, by its name: not of a trainer or an adapter, nor a copy."""
    return not _NO_WEIGHTS.match(path.name)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a file; of torch's formats, those in the file's state dict.

    Raises:
        InputError: the file is damaged, or contains other objects than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
                return {name: tuple(file.get_slice(name).get_shape()) for name in names}
        held = torch.load(path, map_location="meta", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing: get it again from the original checkpoint") from error
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError, SafetensorError) as error:
        raise InputError(f"{path} cannot be loaded: it is damaged, or contains other objects than tensors") from error
    return {name: tuple(tensor.shape) for name, tensor in find_state_dict(held)[1].items()}


def find_state_dict(held: Any) -> tuple[str | None, dict[str, Tensor]]:
    """The weights in what a file of torch's holds, and the key that they are under; None: they are not nested."""
    if not isinstance(held, Mapping):
        return None, {}
    for key in NESTED:
        if isinstance(held.get(key), Mapping):
            return key, find_state_dict(held[key])[1]
    return None, {str(name): value for name, value in held.items() if isinstance(value, Tensor)}


def indexed_files(folder: Path) -> set[str]:
    """Names of the files of weights that the indices of a folder (`*.index.json`) list.

    Raises:
        InputError: an index is damaged, or names a file outside of the folder.
    """
    return {file for index in sorted(folder.glob("*.index.json")) for file in _indexed_files(index)}


def _indexed_files(index: Path) -> set[str]:
    """The files that an index names; transformers would also read those outside of the folder."""
    try:
        files = {str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{index} is not an index of weights: get it again from the original checkpoint") from error
    for file in sorted(files):
        if leads_outside(file):
            raise InputError(f"{index} names {file!r}, which is outside the folder: do not use this checkpoint")
    return files
