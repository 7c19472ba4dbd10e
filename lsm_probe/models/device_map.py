"""A model over several devices: layers on the GPUs as they fit, the rest in the CPU's memory, through Accelerate.

Accelerate's hooks bring the inputs of a layer to where it lies, and the weights of one that does not fit to the first
GPU for the time it runs. In between these are on the meta device: shapes without numbers.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory
from torch import nn
from transformers import PreTrainedModel

from lsm_probe.distributed import is_distributed
from lsm_probe.errors import InputError

SPREAD = "spread"


def spread(model: PreTrainedModel) -> None:
    """Lays the layers of a model that is on the CPU over all GPUs evenly, and leaves there what does not fit.

    Raises:
        InputError: this process is one of several, which would take each other's GPUs.
    """
    if is_distributed():
        raise InputError("--device spread lays one model over all GPUs: start a single process, or leave it out")
    if not torch.cuda.is_available():
        return
    whole = list(model._no_split_modules or [])
    memory = get_balanced_memory(model, no_split_module_classes=whole) | {"cpu": sys.maxsize}  # all of it is there now
    places = infer_auto_device_map(model, max_memory=memory, no_split_module_classes=whole)
    dispatch_model(model, places, skip_keys=model._skip_keys_device_placement)


def input_device(model: PreTrainedModel) -> torch.device:
    """Where a model takes its inputs: the device its token embeddings lie on, or run on."""
    embedding: Any = model.get_input_embeddings()
    if is_away(embedding):
        return torch.device(embedding._hf_hook.execution_device)
    return next(embedding.parameters()).device


def is_away(module: nn.Module) -> bool:
    """Whether weights of a module are on no device but while it runs."""
    return any(parameter.is_meta for parameter in module.parameters())
