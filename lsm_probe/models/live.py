"""Checkpoints from models in memory, such as models in training, and measuring them without changing them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.models.audio_llm import check_reads_embeddings, find_audio_token_id, is_audio_llm_class
from lsm_probe.models.causal_llm import is_causal
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.checkpoint_kinds import AudioLlm, Lsm, TextLlm
from lsm_probe.models.identity import ModelIdentity
from lsm_probe.models.mistral_processor import audio_llm_processor
from lsm_probe.models.modeling_lsm import LsmForConditionalGeneration
from lsm_probe.models.processing_lsm import LsmProcessor
from lsm_probe.models.prompter import describe_prompt
from lsm_probe.models.templates import default_template, find_template


def from_model(
    model: nn.Module, processing_class: Any, *, name: str = "model", template: str | None = None
) -> Checkpoint:
    """Makes a checkpoint from a model in memory; nothing is loaded or copied.

    The identity stored with results has no hash of the weights. If the model is being trained, measure it inside
    [`unchanged`].

    Args:
        model: an LSM of this package, an audio LLM that ships in transformers, or a causal text LLM; also wrapped by
            DDP or `torch.compile`, or with adapters of PEFT.
        processing_class: its processor, or the tokenizer of a text LLM.
        name: its name in results.
        template: prompt template, as in [`load`].

    Raises:
        InputError: the model is sharded, of a kind that cannot be measured, or has prompts as adapters; the processor
            does not fit it; or the template is unknown.

    Example:
        >>> import lsm_probe
        >>> loaded = lsm_probe.load("builtin:untrained", device="cpu")
        >>> checkpoint = lsm_probe.from_model(loaded.model, loaded.processor, name="step-0")
        >>> checkpoint.name, checkpoint.source
        ('step-0', 'speech')
    """
    inner = unwrap(model)
    config: Any = inner.config
    checkpoint: Checkpoint
    if isinstance(inner, LsmForConditionalGeneration):
        if not isinstance(processing_class, LsmProcessor):
            raise _wrong_processor(inner, processing_class, "the LsmProcessor it was saved with")
        if template is not None:
            processing_class = LsmProcessor.for_model(
                config, processing_class.feature_extractor, processing_class.tokenizer, template
            )
        checkpoint = Lsm(name, inner, processing_class)
    elif is_audio_llm_class(type(inner), config):
        if getattr(processing_class, "tokenizer", None) is None:
            raise _wrong_processor(inner, processing_class, "its processor (AutoProcessor.from_pretrained)")
        audio_token_id = find_audio_token_id(config)
        assert audio_token_id is not None  # otherwise its class would not have been found
        check_reads_embeddings(inner, name)
        checkpoint = AudioLlm(name, inner, audio_llm_processor(processing_class, audio_token_id, template))
    elif is_causal(config):
        tokenizer = getattr(processing_class, "tokenizer", processing_class)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise _wrong_processor(inner, processing_class, "its tokenizer (AutoTokenizer.from_pretrained)")
        check_reads_embeddings(inner, name)
        checkpoint = TextLlm(name, inner, tokenizer, find_template(template or default_template(tokenizer)))
    else:
        raise InputError(
            f"{name} is a {type(inner).__name__}, which is neither an LSM of this package, an audio LLM with a "
            "placeholder for "
            "its speech, nor a causal text LLM"
        )
    checkpoint.identity = ModelIdentity(model_type=config.model_type, **describe_prompt(checkpoint, name, None))
    return checkpoint


def unwrap(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside wrappers; its adapters stay active.

    Raises:
        InputError: the model is sharded, or has prompts as adapters, which act outside the adapted model.
    """
    if any(isinstance(m, FSDPModule | FullyShardedDataParallel) for m in model.modules()) or any(
        hasattr(p, "ds_id") for p in model.parameters()
    ):
        raise InputError(
            "the model is sharded (FSDP or DeepSpeed), so that no process has all of its weights: train with DDP, or "
            "probe saved checkpoints"
        )
    inner: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    if hasattr(inner, "get_base_model"):  # a PEFT model; PEFT may not be installed
        if inner.active_peft_config.is_prompt_learning:
            raise InputError("a model with prompt tuning cannot be probed: its prompts are not in its layers")
        inner = inner.get_base_model()
    if not isinstance(inner, PreTrainedModel):
        raise InputError(f"a {type(inner).__name__} cannot be probed: give a model of transformers")
    return inner


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode without gradients, and restores afterwards whatever the block changed.

    It restores training mode, hooks, buffers, attributes and attention implementation of all modules, and the random
    generators of torch (CPU and CUDA), numpy and Python. Parameters are not copied, so the block must not change them.
    In the block the model computes in the dtype of its weights, without accelerate's mixed precision. Its attention
    runs as `sdpa` if available, because only this can be captured.

    Example:
        >>> import lsm_probe
        >>> loaded = lsm_probe.load("builtin:untrained", device="cpu")
        >>> model = loaded.model.train()
        >>> with lsm_probe.unchanged(model):
        ...     checkpoint = lsm_probe.from_model(model, loaded.processor)
        ...     found = lsm_probe.attention(checkpoint, lsm_probe.read_manifest("builtin:probe")[:1], max_new_tokens=2)
        >>> model.training
        True
    """
    mixed: Any = extract_model_from_parallel(model, keep_torch_compile=False)
    modules = list(model.modules())
    attributes = [_copy_attributes(module) for module in modules]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    attention = [
        (module, module.config._attn_implementation) for module in modules if isinstance(module, PreTrainedModel)
    ]
    of_numpy, of_python = np.random.get_state(), random.getstate()  # noqa: NPY002
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            model.eval()
            if "_original_forward" in vars(mixed):  # accelerate stores the function here that it wraps in autocast
                mixed.forward = mixed._original_forward
            for module, implementation in attention:
                if implementation != "sdpa" and module._supports_sdpa:
                    module.set_attn_implementation("sdpa")
            yield
    finally:
        np.random.set_state(of_numpy)  # noqa: NPY002
        random.setstate(of_python)
        for module, implementation in attention:  # outer modules first, in the order of the list
            if module.config._attn_implementation != implementation:
                module.set_attn_implementation(implementation)
        for each, kept in zip(modules, attributes, strict=True):
            _restore_attributes(each, kept)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


Attributes = dict[str, tuple[Any, Any]]


def _copy_attributes(module: nn.Module) -> Attributes:
    """Each attribute, and the items of one that is a dictionary, such as the hooks and the buffers."""
    return {key: (value, value.copy() if isinstance(value, dict) else None) for key, value in vars(module).items()}


def _restore_attributes(module: nn.Module, kept: Attributes) -> None:
    """In place, because a hook's handle refers to the dictionary that contains it."""
    vars(module).clear()
    vars(module).update({key: value for key, (value, _) in kept.items()})
    for value, items in kept.values():
        if items is not None:
            value.clear()
            value.update(items)


def _wrong_processor(model: nn.Module, processing_class: Any, wanted: str) -> InputError:
    given = "none" if processing_class is None else f"a {type(processing_class).__name__}"
    return InputError(f"a {type(model).__name__} needs {wanted} as processing_class, and was given {given}")
