"""From the name of a checkpoint (a folder, a file, a hub name or a built-in one) to a [`Checkpoint`]."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoProcessor, PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.memory import fitting
from lsm_probe.models import LsmConfig, LsmForConditionalGeneration
from lsm_probe.models.adapters import CONFIG as ADAPTER_CONFIG
from lsm_probe.models.adapters import (
    check_inner_adapter,
    find_adapter,
    is_missing_config,
    merge_adapter,
    read_adapter,
)
from lsm_probe.models.audio_llm import audio_llm_class, check_reads_embeddings
from lsm_probe.models.building import BUILTIN_LSMS, build_builtin
from lsm_probe.models.causal_llm import load_causal_llm
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.checkpoint_kinds import AudioLlm, Lsm, TextLlm
from lsm_probe.models.checkpoint_names import may_be_on_hub
from lsm_probe.models.dates import with_date
from lsm_probe.models.devices import SPREAD, dispatch_over_gpus, input_device, resolve_device, resolve_dtype
from lsm_probe.models.gguf_files import identify_gguf, load_gguf, read_gguf_tokenizer
from lsm_probe.models.identification import check_folder, identify
from lsm_probe.models.identity import ModelIdentity, WeightsIdentity
from lsm_probe.models.llm_tokenizers import load_llm_tokenizer
from lsm_probe.models.lookup import find_folder, load_audio_llm_processor
from lsm_probe.models.pretrained import pretrained, pretrained_model
from lsm_probe.models.processing_lsm import check_feature_extractor
from lsm_probe.models.prompter import describe_prompt
from lsm_probe.models.published import Parts, download_release, find_release, load_published
from lsm_probe.models.resolve import Resolved, check_parts, resolve
from lsm_probe.models.templates import default_template, find_template


@dataclass(frozen=True)
class _Options:
    """The options of [`load`] besides the name.

    Attributes:
        dtype, template, date: as given.
        parts: the parts that the release of a published system leaves out.
        tokenizer: an adapter's own, instead of that of its base.
    """

    dtype: torch.dtype
    template: str | None = None
    date: str | None = None
    parts: Parts = field(default_factory=Parts)
    tokenizer: PreTrainedTokenizerBase | None = None


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    template: str | None = None,
    date: str | None = None,
    base: str | None = None,
    encoder: str | Path | None = None,
    llm: str | Path | None = None,
    beats: str | Path | None = None,
) -> Checkpoint:
    """Loads a checkpoint for measuring.

    Args:
        name: a folder, a name on the model hub, `builtin:llm` (the embedded text LLM), `builtin:untrained` (the
            embedded encoder and LLM with a seeded, untrained connector), `builtin:vanilla_asr` or
            `builtin:self_powered` (the same, trained on spoken commands: `analyses/speech_anchor_bias`),
            `builtin:open_vanilla_asr` or `builtin:open_self_powered` (trained on any English sentences, which they
            understand in part: `analyses/open_speech`). An LSM of this package, a text LLM, an audio LLM that ships in
            transformers and has a placeholder token for its speech, the release of a published system
            (`docs/checkpoints.md` says which are read), the folder of an adapter (PEFT) on one of these, which is
            merged into it in memory, or a text LLM in a GGUF file, whose weights are dequantised.
        device: a torch device, such as `cpu`, `cuda`, `cuda:1` or `mps`; `auto` is a CUDA GPU if there is one, else the
            CPU. Under `torchrun`, `auto` and `cuda` are a GPU for each process. `spread` distributes the model over all
            GPUs, and puts the rest on the CPU.
        dtype: `float32`, `bfloat16` or `float16`; `auto` is float32 on CPU, and on a GPU bfloat16, or float16 if it has
            no instructions for bfloat16.
        template: prompt template, by its name or its YAML file; by default the LSM's own, or `chat` / `vicuna` for a
            text LLM; for an audio LLM `chat` or `chat_source_first`.
        date: used as today's date by chat templates that print one; [`DATE`] by default.
        base: the model that an adapter was trained on, in the same forms as `name`. By default the one that its
            `adapter_config.json` names: a folder relative to here or to the adapter, or a name on the model hub.
        encoder, llm, beats: the Whisper (folder, hub name or OpenAI's `.pt` file), the LLM (folder or hub name) and the
            BEATs (its authors' file) that the release of a published system leaves out.

    Raises:
        InputError: there is no such checkpoint, its checksums do not match, its weights do not fit its `config.json`,
            an adapter is beside full weights, cannot be merged or does not fit its base, a base is given for something
            that is not an adapter, a part is missing or was given to a checkpoint that has its own, it is of a kind
            that cannot be measured, or the date is invalid.

    Warns:
        UserWarning: `dtype` is emulated on the device, a date is given but the template prints none, tensors outside
            the LLM are left out, weights are dequantised, a prefix is removed from the names of all tensors, or the
            model runs another `attn_implementation` than the one in `config.json`.

    Example:
        >>> checkpoint = lsm_probe.load("builtin:llm", device="cpu")
        >>> checkpoint.source, checkpoint.template.name
        ('text', 'chat')
    """
    name = str(name)
    torch_device = resolve_device(device)
    parts = Parts(*(None if part is None else str(part) for part in (encoder, llm, beats)))
    options = _Options(resolve_dtype(dtype, torch_device), template, date, parts)
    if template is not None:
        find_template(template)
    check_inner_adapter(name)
    check_parts({name: base}, parts)
    with fitting(name, torch_device):
        checkpoint = _load(name, options, base)
        if device == SPREAD:
            dispatch_over_gpus(checkpoint.model)
        else:
            _move(checkpoint, torch_device)
    checkpoint.model.eval()
    return checkpoint


def _move(checkpoint: Checkpoint, device: torch.device) -> None:
    try:
        checkpoint.model.to(device)  # type: ignore[arg-type]  # transformers wraps `to` without its type
    except ValueError as error:  # for quantised weights, which some libraries cannot move
        where = input_device(checkpoint.model)
        raise InputError(
            f"{checkpoint.name} is on {where} and cannot be moved to {device} ({' '.join(str(error).split())[:200]}): "
            f"give --device {where}"
        ) from error


def _load(name: str, options: _Options, base: str | None = None) -> Checkpoint:
    found = resolve(name)
    if found.kind == "adapter":
        return _load_adapted(found, options, base)
    no_adapter = InputError(f"{name} is not an adapter (a folder with {ADAPTER_CONFIG}): leave out base {base}")
    if base is not None and found.kind != "hub":
        raise no_adapter
    if found.kind == "published":
        return _load_release(found, options)
    if name in BUILTIN_LSMS:
        return build_builtin(name, dtype=options.dtype, template=options.template, date=options.date)
    if found.kind == "gguf":
        return _load_gguf(found, options)
    try:
        checkpoint = _load_pretrained(name, find_folder(name), options)
    except InputError as error:
        if found.kind != "hub" or (loaded := _load_from_hub(name, options, base, error)) is None:
            raise
        return loaded
    if base is not None:
        raise no_adapter
    return checkpoint


def _load_from_hub(name: str, options: _Options, base: str | None, error: InputError) -> Checkpoint | None:
    """Loads a hub name that transformers cannot load as a model: a published release or an adapter; None if it is
    neither.

    Args:
        error: says why it could not be loaded.
    """
    if (place := find_release(name)) is not None:  # the attempt to load it has put its config.json into the hub's cache
        return _load_release(Resolved(name, "published", place), options)
    if is_missing_config(error) and (folder := find_adapter(name, on_hub=True)) is not None:
        return _load_adapted(Resolved(name, "adapter", folder), options, base)
    return None


def _load_release(found: Resolved, options: _Options) -> Checkpoint:
    place = download_release(found.name) or found.path
    assert place is not None
    checkpoint = load_published(place, options.parts, options.dtype, template=options.template, date=options.date)
    if may_be_on_hub(found.name):
        checkpoint.name = found.name
        checkpoint.identity = replace(checkpoint.identity, checksums=None, revision=place.name)
    return checkpoint


def _load_adapted(found: Resolved, options: _Options, base: str | None) -> Checkpoint:
    assert found.path is not None
    name = found.name
    checksums = check_folder(name)
    adapter = read_adapter(found.path)
    base_name = adapter.find_base(base)
    try:
        checkpoint = _load(base_name, replace(options, tokenizer=adapter.read_tokenizer()))
    except InputError as error:
        raise InputError(
            f"{name} is an adapter, and its base cannot be used (--base names another): {error}"
        ) from error
    merge_adapter(adapter, checkpoint, checksums)
    checkpoint.name = name
    return checkpoint


def _load_gguf(found: Resolved, options: _Options) -> Checkpoint:
    assert found.path is not None
    name, file = found.name, found.path
    checksums = check_folder(file.parent)
    model = load_gguf(file, options.dtype)
    checkpoint = _text_llm(name, model, options.tokenizer or read_gguf_tokenizer(file), options)
    return _identified(checkpoint, identify_gguf(file, model, checksums), options)


def _load_pretrained(name: str, folder: str, options: _Options) -> Checkpoint:
    checksums = check_folder(folder)
    config = pretrained(AutoConfig, folder)
    checkpoint: Checkpoint
    if isinstance(config, LsmConfig):
        processor = with_date(pretrained(AutoProcessor, folder), options.date)
        processor.template = find_template(options.template or processor.template)
        check_feature_extractor(processor.feature_extractor, config)
        model: Any = pretrained_model(LsmForConditionalGeneration, folder, options.dtype)
        checkpoint = Lsm(name, model, processor)
    elif (audio_class := audio_llm_class(config)) is not None:
        # The processor first, so that its errors appear before the weights are loaded.
        own = load_audio_llm_processor(name, folder, config, options.template, options.date)
        model = pretrained_model(audio_class, folder, options.dtype)
        check_reads_embeddings(model.eval(), name)
        checkpoint = AudioLlm(name, model, own)
    else:
        model = load_causal_llm(f"--ckpt {name}", folder, options.dtype)
        checkpoint = _text_llm(name, model, options.tokenizer or load_llm_tokenizer(folder), options)
    return _identified(checkpoint, identify(folder, config, checksums), options)


def _text_llm(name: str, model: Any, tokenizer: PreTrainedTokenizerBase, options: _Options) -> TextLlm:
    tokenizer = with_date(tokenizer, options.date)
    return TextLlm(name, model, tokenizer, find_template(options.template or default_template(tokenizer)))


def _identified(checkpoint: Checkpoint, weights: WeightsIdentity, options: _Options) -> Checkpoint:
    checkpoint.identity = ModelIdentity(**vars(weights), **describe_prompt(checkpoint, checkpoint.name, options.date))
    return checkpoint
