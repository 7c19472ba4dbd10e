"""Describes a checkpoint by its name and the small files of its folder; its weights are not read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    WhisperFeatureExtractor,
)

from lsm_probe import assets
from lsm_probe.errors import InputError
from lsm_probe.models import LsmConfig, LsmProcessor
from lsm_probe.models.audio_llm import audio_llm_class, find_audio_token_id
from lsm_probe.models.audio_llm_processor import AudioLlmProcessor
from lsm_probe.models.building import BUILTIN_LSMS
from lsm_probe.models.causal_llm import is_causal
from lsm_probe.models.dates import with_date
from lsm_probe.models.gguf_files import read_gguf_tokenizer
from lsm_probe.models.identification import check_folder, identify
from lsm_probe.models.identity import ModelIdentity
from lsm_probe.models.llm_tokenizers import load_llm_tokenizer
from lsm_probe.models.mistral_processor import audio_llm_processor
from lsm_probe.models.pretrained import pretrained
from lsm_probe.models.prompter import Prompter, describe_prompt
from lsm_probe.models.prompts import encode_prompt, encode_target
from lsm_probe.models.published import Parts, read_published
from lsm_probe.models.resolve import BUILTIN_LLM, check_parts, resolve
from lsm_probe.models.templates import default_template, find_template

TextCheck = Callable[[str, str | None, str | None], None]


def look_up(name: str, *, base: str | None = None) -> Literal["speech", "text"] | None:
    """The source that a checkpoint reads, without loading it: from its name, or from the files of its folder.

    Args:
        name, base: as of [`lsm_probe.load`].

    Returns:
        None if the name alone does not determine it: for a hub name, or a kind that `load` refuses.

    Raises:
        InputError: there is no such built-in, no such folder, or no checkpoint in it.
    """
    found = resolve(name)
    if found.kind == "adapter":
        return look_up(found.find_base(base))
    if found.kind == "gguf" or name == BUILTIN_LLM:
        return "text"
    if found.kind in ("builtin", "published"):
        return "speech"
    if found.kind == "hub":
        return None
    config = pretrained(AutoConfig, name)
    if isinstance(config, LsmConfig) or audio_llm_class(config) is not None:
        return "speech"
    return "text" if is_causal(config) else None


def load_prompter(name: str | Path, *, template: str | None = None, date: str | None = None) -> Prompter:
    """Loads the part of a text LLM that writes its prompts.

    Args:
        name: a folder, a name on the model hub, or `builtin:llm`.
        template, date: as in [`lsm_probe.load`].

    Raises:
        InputError: there is no such checkpoint, its checksums do not hold, it is not a text LLM, or the date is
            invalid.
    """
    name = str(name)
    found = resolve(name)
    if found.kind == "published" or name in BUILTIN_LSMS:
        raise InputError(f"{name} is not a text LLM: give one, such as {BUILTIN_LLM}")
    folder = find_folder(name)
    chosen = None if template is None else find_template(template)
    checksums = check_folder(folder)
    config = pretrained(AutoConfig, folder)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(f"{name} is a {config.model_type!r} model; give the text LLM whose answers are to be made")
    tokenizer = with_date(load_llm_tokenizer(folder), date)
    prompter = Prompter(name, folder, tokenizer, chosen or find_template(default_template(tokenizer)))
    weights = identify(folder, config, checksums)
    return replace(prompter, identity=ModelIdentity(**vars(weights), **describe_prompt(prompter, name, date)))


def load_text_check(
    name: str, *, template: str | None = None, base: str | None = None, parts: Parts | None = None
) -> TextCheck:
    """A function that refuses texts which a checkpoint would read as something else; no weights are loaded.

    Args:
        name, template, base: as of [`lsm_probe.load`].
        parts: those that the release of a published system leaves out.

    Returns:
        A function of instruction, transcript and target, the last two None where there is none. It raises InputError
        for a text that holds a control token or the placeholder for the speech, or has no tokens.

    Raises:
        InputError: there is no such checkpoint, or it is of a kind that cannot be probed.
    """
    if template is not None:
        find_template(template)
    parts = parts or Parts()
    check_parts({name: base}, parts)
    found = resolve(name, download=True)
    if found.kind == "adapter":
        return load_text_check(found.find_base(base), template=template, parts=parts)
    if found.kind == "gguf":
        assert found.path is not None
        return _check_of_text_llm(read_gguf_tokenizer(found.path), template)
    if found.kind == "published":
        assert found.path is not None
        _, processor = read_published(found.path, parts)
        return _check_of_processor(processor, template)
    folder = str(assets.language_model()) if found.kind == "builtin" else name
    config = pretrained(AutoConfig, folder)
    if isinstance(config, LsmConfig):
        return _check_of_processor(pretrained(AutoProcessor, folder), template)
    if audio_llm_class(config) is not None:
        return _check_of_processor(load_audio_llm_processor(name, folder, config, template, None), None)
    tokenizer = load_llm_tokenizer(folder)
    if name in BUILTIN_LSMS:
        extractor = pretrained(WhisperFeatureExtractor, assets.speech_encoder())
        return _check_of_processor(LsmProcessor(extractor, tokenizer), template)
    return _check_of_text_llm(tokenizer, template)


def _check_of_processor(processor: LsmProcessor | AudioLlmProcessor, template: str | None) -> TextCheck:
    processor.template = find_template(template or processor.template)

    def check(instruction: str, transcript: str | None, target: str | None) -> None:
        processor.encode_text(instruction, transcript or "words")
        if target:
            encode_target(processor.tokenizer, target)

    return check


def _check_of_text_llm(tokenizer: PreTrainedTokenizerBase, template: str | None) -> TextCheck:
    chosen = find_template(template or default_template(tokenizer))

    def check(instruction: str, transcript: str | None, target: str | None) -> None:
        encode_prompt(tokenizer, chosen, instruction, transcript or "words")
        if target:
            encode_target(tokenizer, target)

    return check


def find_folder(name: str) -> str:
    """The folder or hub name that a checkpoint of this name is loaded from."""
    return str(assets.language_model()) if name == BUILTIN_LLM else name


def load_audio_llm_processor(
    name: str, folder: str, config: PreTrainedConfig, template: str | None, date: str | None
) -> AudioLlmProcessor:
    """The processor of an audio LLM of transformers.

    Raises:
        InputError: the folder has none, or the template is none of an audio LLM's.
    """
    audio_token_id = find_audio_token_id(config)
    assert audio_token_id is not None  # or its class would not have been found
    loaded = with_date(pretrained(AutoProcessor, folder), date)
    if getattr(loaded, "tokenizer", None) is None:
        raise InputError(
            f"{name} has no processor, only a {type(loaded).__name__}: take its processor_config.json or "
            "preprocessor_config.json, and its tokenizer, from the original model"
        )
    return audio_llm_processor(loaded, audio_token_id, template)
