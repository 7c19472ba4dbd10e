"""Output of training frameworks that is not a model, and the commands that convert it to a model.

Only the names of tensors are read from it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from json import dumps
from pathlib import Path
from pickle import UnpicklingError

import torch

from lsm_probe.errors import InputError
from lsm_probe.models.weight_files import Shapes, find_other_weights, find_state_dict, find_weights

_THEN = "Then copy config.json and the tokenizer's files into OUT, and give OUT"
_WRAPPERS = re.compile(r"((module|_orig_mod|_forward_module|_fsdp_wrapped_module)\.)+")
"""Prefixes that data parallelism, `torch.compile`, DeepSpeed and FSDP add to tensor names."""


def check_dump(folder: Path) -> None:
    """Refuses a folder that has weights only in the form in which a training framework saves them.

    Raises:
        InputError: DeepSpeed's partitioned weights, a distributed checkpoint of torch's, or weights in a file that
            transformers does not read; the message has the command that converts them.
    """
    if not folder.is_dir() or find_weights(folder):
        return
    if (parts := _zero_folder(folder)) is not None:
        raise InputError(f"{folder} holds a checkpoint of DeepSpeed (ZeRO) in parts: {_zero_command(parts)}")
    if (index := next(iter(sorted(folder.glob("**/.metadata"))), None)) and any(index.parent.glob("*.distcp")):
        raise InputError(f"{folder} holds a distributed checkpoint (FSDP) in parts: {_joins(index.parent)}")
    if (folder / "config.json").is_file() and (others := find_other_weights(folder, [])):
        raise InputError(f"{folder} has no weights that transformers reads, but {_plain(folder, others)}")


def wrapper_prefix(files: Iterable[Shapes]) -> str:
    """What a wrapper of training put before the names of all tensors; empty if there is no such prefix."""
    names = [name for shapes in files for name in shapes]
    found = _WRAPPERS.match(names[0]) if names else None
    return found[0] if found and all(name.startswith(found[0]) for name in names) else ""


def _zero_folder(folder: Path) -> Path | None:
    """The folder that DeepSpeed's own script takes: the one above `global_step*`."""
    found = next(iter(sorted(folder.glob("**/*zero_pp_rank_*_optim_states.pt"))), None)
    return None if found is None else found.absolute().parent.parent


def _zero_command(folder: Path) -> str:
    # Not with the script that DeepSpeed leaves in the folder: no code of a checkpoint runs.
    return f"`python -m deepspeed.utils.zero_to_fp32 {shlex.quote(str(folder))} OUT` joins them. {_THEN}"


def _joins(parts: Path) -> str:
    place = shlex.quote(str(parts))
    if parts.name.startswith("pytorch_model_fsdp"):  # accelerate's: the weights by themselves
        return f"`accelerate merge-weights {place} OUT` joins them. {_THEN}"
    return (
        f"`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {place} OUT/weights.pt` joins them "
        f"(make the folder OUT first). {_THEN}"
    )


def _plain(folder: Path, others: list[Path]) -> str:
    """What the files of weights in a folder are, and the line of Python that makes `pytorch_model.bin` of one."""
    if len(others) > 1:
        names = ", ".join(path.name for path in others)
        return f"{names}: keep the file that holds the whole model, and move the others to another folder"
    [path] = others
    if path.suffix == ".safetensors":
        return f"{path.name}: rename it to model.safetensors"
    try:
        key, weights = find_state_dict(torch.load(path, map_location="meta", weights_only=True))
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, UnpicklingError):
        key, weights = None, {}
    if not weights:
        return (
            f"{path.name}, which is damaged or holds more than tensors: load it with the code that wrote it, and save "
            "the model with its save_pretrained"
        )
    taken, prefix = f"[{dumps(key)}]" if key else "", _prefix(weights)
    names = f"{{k.removeprefix({dumps(prefix)}): v for k, v in w.items()}}" if prefix else "dict(w)"
    script = (
        f'import torch; w = torch.load({dumps(str(path))}, map_location="cpu", weights_only=True){taken}; '
        f"torch.save({names}, {dumps(str(folder / 'pytorch_model.bin'))})"
    )
    return f"{path.name}: `python -c {shlex.quote(script)}` converts it; then move {path.name} to another folder"


def _prefix(names: Iterable[str]) -> str:
    """What stands before all names: wrappers, and the attribute `model` that Lightning modules keep a model in."""
    names, prefix = list(names), ""
    for pattern in (_WRAPPERS, re.compile(r"model\."), _WRAPPERS):
        found = pattern.match(names[0])
        if found and all(name.startswith(found[0]) for name in names):
            prefix += found[0]
            names = [name.removeprefix(found[0]) for name in names]
    return prefix
