"""From the name of a checkpoint (a folder, a hub name or a built-in one) to a [`Checkpoint`]."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    WhisperFeatureExtractor,
)

from lsm_probe import assets
from lsm_probe.errors import InputError
from lsm_probe.models import LsmConfig, LsmForConditionalGeneration, LsmProcessor
from lsm_probe.models.adapters import CONFIG as ADAPTER_CONFIG
from lsm_probe.models.adapters import (
    check_inner_adapter,
    find_adapter,
    is_adapter,
    is_missing_config,
    merge_adapter,
    read_adapter,
)
from lsm_probe.models.audio_llm import audio_llm_class, check_reads_embeddings, find_audio_token_id
from lsm_probe.models.audio_llm_processor import AudioLlmProcessor
from lsm_probe.models.building import BUILTIN_LSMS, build_builtin
from lsm_probe.models.causal_llm import is_causal, load_causal_llm
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.checkpoint_kinds import AudioLlm, Lsm, TextLlm
from lsm_probe.models.checkpoint_names import may_be_on_hub, require_folder
from lsm_probe.models.dates import with_date
from lsm_probe.models.devices import SPREAD, dispatch_over_gpus, resolve_device, resolve_dtype
from lsm_probe.models.gguf_files import find_gguf, identify_gguf, load_gguf, read_gguf_tokenizer
from lsm_probe.models.identity import ModelIdentity, check_folder, identify
from lsm_probe.models.mistral_processor import audio_llm_processor
from lsm_probe.models.pretrained import pretrained, pretrained_model
from lsm_probe.models.processing_lsm import check_feature_extractor
from lsm_probe.models.prompter import Prompter, describe_prompt
from lsm_probe.models.prompts import encode_prompt, encode_target
from lsm_probe.models.templates import TEMPLATES, default_template

BUILTIN_LLM = "builtin:llm"
BUILTIN = (BUILTIN_LLM, *BUILTIN_LSMS)


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    template: str | None = None,
    date: str | None = None,
    base: str | None = None,
) -> Checkpoint:
    """Loads a checkpoint to look into.

    Args:
        name: a folder, a name on the model hub, `builtin:llm` (the embedded text LLM), `builtin:untrained` (the
            embedded encoder and LLM with a seeded, untrained connector), `builtin:vanilla_asr` or
            `builtin:self_powered` (the same, trained: two arms of `analyses/speech_anchor_bias`). An LSM of ours, a
            text LLM, an audio LLM that ships in transformers and has a placeholder token for its speech, the
            folder of an adapter (PEFT) on one of these, which is merged into it in memory, or a text LLM in a GGUF
            file, whose weights are dequantised.
        device: a torch device; `auto` takes CUDA where there is one, under `torchrun` a GPU for each process; `spread`
            lays the model over all GPUs, and the CPU for what does not fit.
        dtype: `float32`, `bfloat16` or `float16`; `auto` is float32 on CPU, and on a GPU bfloat16, or float16 where
            it has no instructions for bfloat16.
        template: prompt template; by default the LSM's own, or `chat` / `vicuna` for a text LLM; of an audio LLM
            `chat` or `chat_source_first`.
        date: used as today's date by chat templates that print one; [`DATE`] by default.
        base: the model that an adapter was trained on, named as `name` is; by default the one that its
            `adapter_config.json` names, a folder from here or from the adapter's, or a name on the model hub.

    Raises:
        InputError: if there is no such checkpoint, its checksums do not hold, its weights do not fit its `config.json`,
            an adapter lies beside whole weights, cannot be merged or does not fit its base, a base is given for what
            is no adapter, it is of a kind that cannot be probed, or the date is invalid.

    Warns:
        UserWarning: `dtype` is emulated on the device, the template prints no date though one is given, tensors outside
            the LLM are left out, weights are dequantised, a prefix is taken off the
            names of all tensors, or another `attn_implementation` than the one in `config.json` is run.
    """
    name = str(name)
    torch_device = resolve_device(device)
    torch_dtype = resolve_dtype(dtype, torch_device)
    _check_template(template)
    check_inner_adapter(name)
    checkpoint = _load(name, torch_dtype, template, date, base)
    try:
        if device == SPREAD:
            dispatch_over_gpus(checkpoint.model)
        else:
            checkpoint.model.to(torch_device)  # type: ignore[arg-type]  # transformers wraps `to` without its type
    except torch.OutOfMemoryError as error:
        raise InputError(f"{name} does not fit on {torch_device}: try --device spread or --dtype bfloat16") from error
    checkpoint.model.eval()
    return checkpoint


def look_up(name: str, *, base: str | None = None) -> Literal["speech", "text"] | None:
    """Which source a checkpoint reads, without loading it: by its name, or by the `config.json` of its folder.

    Args:
        name, base: as of [`load`].

    Returns:
        None where only loading tells: of a hub name, or of a kind that `load` refuses.

    Raises:
        InputError: there is no such built-in, no such folder, or no checkpoint in it.
    """
    _check_builtin(name)
    if is_adapter(name):
        return look_up(read_adapter(name).find_base(base))
    if find_gguf(name) is not None:
        return "text"
    if name in BUILTIN:
        return "text" if name == BUILTIN_LLM else "speech"
    require_folder(name)
    if not Path(name).is_dir():
        return None
    config = pretrained(AutoConfig, name)
    if isinstance(config, LsmConfig) or audio_llm_class(config) is not None:
        return "speech"
    return "text" if is_causal(config) else None


def load_prompter(name: str | Path, *, template: str | None = None, date: str | None = None) -> Prompter:
    """Loads what writes a text LLM's prompts, its weights left where they are.

    Args:
        name: a folder, a name on the model hub, or `builtin:llm`.
        template, date: as in [`load`].

    Raises:
        InputError: there is no such checkpoint, its checksums do not hold, it is no text LLM, or the date is invalid.
    """
    name = str(name)
    _check_template(template)
    folder = _folder(name)
    if folder.startswith("builtin:"):
        raise InputError(f"{name} is no text LLM; the built-in one is builtin:llm")
    checksums = check_folder(folder)
    config = pretrained(AutoConfig, folder)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{name} is a {config.model_type!r} model; give the text LLM whose answers are to be made")
    tokenizer = with_date(pretrained(AutoTokenizer, folder), date)
    prompter = Prompter(name, folder, tokenizer, template or default_template(tokenizer))
    weights = identify(folder, config, checksums)
    return replace(prompter, identity=ModelIdentity(**vars(weights), **describe_prompt(prompter, name, date)))


def load_text_check(
    name: str, *, template: str | None = None, base: str | None = None
) -> Callable[[str, str | None, str | None], None]:
    """A function that refuses texts which a checkpoint would read as something else; no weights are loaded.

    Args:
        name, template, base: as of [`load`].

    Returns:
        A function of instruction, transcript and target, the last two None where there is none. It raises InputError
        for a text that holds a control token or the placeholder for the speech, or has no tokens.

    Raises:
        InputError: there is no such checkpoint, or it is of a kind that cannot be probed.
    """
    _check_template(template)
    kind = look_up(name, base=base)
    if is_adapter(name):
        name = read_adapter(name).find_base(base)
    if (gguf := find_gguf(name)) is not None:
        return _text_check(None, read_gguf_tokenizer(gguf), template)
    folder = str(assets.language_model()) if name in BUILTIN else name
    config = pretrained(AutoConfig, folder)
    processor: LsmProcessor | AudioLlmProcessor | None = None
    if isinstance(config, LsmConfig):
        processor = pretrained(AutoProcessor, folder)
        processor.template = template or processor.template
    elif audio_llm_class(config) is not None:
        processor = _audio_llm_processor(name, folder, config, template, None)
    elif kind == "speech":
        extractor = pretrained(WhisperFeatureExtractor, assets.speech_encoder())
        processor = LsmProcessor(extractor, pretrained(AutoTokenizer, folder), template=template)
    return _text_check(processor, None if processor else pretrained(AutoTokenizer, folder), template)


def _text_check(
    processor: LsmProcessor | AudioLlmProcessor | None, tokenizer: Any, template: str | None
) -> Callable[[str, str | None, str | None], None]:
    tokenizer = processor.tokenizer if processor else tokenizer

    def check(instruction: str, transcript: str | None, target: str | None) -> None:
        if processor:
            processor.encode_text(instruction, transcript or "words")
        else:
            encode_prompt(tokenizer, template or default_template(tokenizer), instruction, transcript or "words")
        if target:
            encode_target(tokenizer, target)

    return check


def _folder(name: str) -> str:
    """The folder or hub name that a checkpoint of this name is loaded from."""
    return str(assets.language_model()) if name == BUILTIN_LLM else name


def _check_builtin(name: str) -> None:
    if name.startswith("builtin:") and name not in BUILTIN:
        raise InputError(f"--ckpt {name} is unknown; built-in checkpoints are: {', '.join(BUILTIN)}")


def _check_template(template: str | None) -> None:
    if template is not None and template not in TEMPLATES:
        raise InputError(f"--template {template!r} is unknown; choose one of: {', '.join(TEMPLATES)}")


def _load(
    name: str,
    dtype: torch.dtype,
    template: str | None,
    date: str | None,
    base: str | None = None,
    tokenizer: Any = None,
) -> Checkpoint:
    _check_builtin(name)
    if (folder := find_adapter(name)) is not None:
        return _load_adapted(name, folder, dtype, template, date, base)
    no_adapter = InputError(f"{name} is no adapter (a folder with {ADAPTER_CONFIG}): leave out base {base}")
    if base is not None and not may_be_on_hub(name):
        raise no_adapter
    if name in BUILTIN_LSMS:
        return build_builtin(name, dtype=dtype, template=template, date=date)
    if (gguf := find_gguf(name)) is not None:
        return _load_gguf(name, gguf, dtype, template, date, tokenizer)
    try:
        checkpoint = _load_pretrained(name, _folder(name), dtype, template, date, tokenizer)
    except InputError as error:
        if not is_missing_config(error) or (folder := find_adapter(name, on_hub=True)) is None:
            raise
        return _load_adapted(name, folder, dtype, template, date, base)
    if base is not None:
        raise no_adapter
    return checkpoint


def _load_adapted(
    name: str, folder: Path, dtype: torch.dtype, template: str | None, date: str | None, base: str | None
) -> Checkpoint:
    checksums = check_folder(name)
    adapter = read_adapter(folder)
    base_name = adapter.find_base(base)
    try:
        checkpoint = _load(base_name, dtype, template, date, tokenizer=adapter.read_tokenizer())
    except InputError as error:
        raise InputError(
            f"{name} is an adapter, and its base cannot be used (--base names another): {error}"
        ) from error
    merge_adapter(adapter, checkpoint, checksums)
    checkpoint.name = name
    return checkpoint


def _load_gguf(
    name: str, file: Path, dtype: torch.dtype, template: str | None, date: str | None, tokenizer: Any
) -> Checkpoint:
    checksums = check_folder(file.parent)
    model = load_gguf(file, dtype)
    tokenizer = with_date(tokenizer or read_gguf_tokenizer(file), date)
    checkpoint = TextLlm(name, model, tokenizer, template or default_template(tokenizer))
    weights = identify_gguf(file, model, checksums)
    checkpoint.identity = ModelIdentity(**vars(weights), **describe_prompt(checkpoint, name, date))
    return checkpoint


def _load_pretrained(
    name: str, folder: str, dtype: torch.dtype, template: str | None, date: str | None, tokenizer: Any
) -> Checkpoint:
    checksums = check_folder(folder)
    config = pretrained(AutoConfig, folder)
    if isinstance(config, LsmConfig):
        processor = with_date(pretrained(AutoProcessor, folder), date)
        processor.template = template or processor.template
        check_feature_extractor(processor.feature_extractor, config)
        model: Any = pretrained_model(LsmForConditionalGeneration, folder, dtype)
        checkpoint: Checkpoint = Lsm(name, model, processor)
    elif (audio_class := audio_llm_class(config)) is not None:
        # First the processor: what is wrong with it should not wait for the weights.
        processor = _audio_llm_processor(name, folder, config, template, date)
        model = pretrained_model(audio_class, folder, dtype)
        check_reads_embeddings(model.eval(), name)
        checkpoint = AudioLlm(name, model, processor)
    else:
        model = load_causal_llm(f"--ckpt {name}", folder, dtype)
        tokenizer = with_date(tokenizer or pretrained(AutoTokenizer, folder), date)
        checkpoint = TextLlm(name, model, tokenizer, template or default_template(tokenizer))
    weights = identify(folder, config, checksums)
    checkpoint.identity = ModelIdentity(**vars(weights), **describe_prompt(checkpoint, name, date))
    return checkpoint


def _audio_llm_processor(
    name: str, folder: str, config: PreTrainedConfig, template: str | None, date: str | None
) -> AudioLlmProcessor:
    audio_token_id = find_audio_token_id(config)
    assert audio_token_id is not None  # or its class would not have been found
    loaded = with_date(pretrained(AutoProcessor, folder), date)
    if getattr(loaded, "tokenizer", None) is None:
        raise InputError(
            f"{name} has no processor, only a {type(loaded).__name__}: take its processor_config.json or "
            "preprocessor_config.json, and its tokenizer, from a good copy"
        )
    return audio_llm_processor(loaded, audio_token_id, template)
