"""The tokenizer of an LLM, the same for the text LLM and for the LSMs made from it."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lsm_probe.errors import InputError
from lsm_probe.models.hub_files import find_file
from lsm_probe.models.pretrained import from_files, pretrained


def load_llm_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a text LLM; a Llama's as [`read_tokenizer`] reads it for LSMs.

    Args:
        name: folder or hub name of the LLM.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    return as_released(pretrained(AutoTokenizer, name), name)


def as_released(loaded: PreTrainedTokenizerBase, name: str | Path) -> PreTrainedTokenizerBase:
    """What [`read_tokenizer`] makes of a Llama's tokenizer; others are returned as they are.

    transformers 5 rebuilds a LlamaTokenizer from the vocabulary alone: `legacy` then determines the space after special
    tokens, regardless of `tokenizer.json`.

    Args:
        loaded: by `AutoTokenizer`.
        name: folder or hub name from which it was loaded.
    """
    return read_tokenizer(name) if type(loaded) is LlamaTokenizer else loaded


def read_tokenizer(name: str | Path, byte_pairs: type | None = None) -> PreTrainedTokenizerFast:
    """The fast tokenizer in a folder or on the hub; no code of the checkpoint runs.

    It comes from `tokenizer.json`, or else from Llama's `tokenizer.model`, or else from `vocab.json`.

    Args:
        name: folder or hub name.
        byte_pairs: the class that reads `vocab.json` and `merges.txt`.

    Raises:
        InputError: there is none, or it is a `tokenizer.model` and sentencepiece is not installed.
    """
    kinds: dict[str, type] = {"tokenizer.json": PreTrainedTokenizerFast, "tokenizer.model": LlamaTokenizer}
    if byte_pairs is not None:
        kinds["vocab.json"] = byte_pairs
    file = next((kind for kind in kinds if find_file(name, kind)), None)
    if Path(name).is_dir() and file is None:
        raise InputError(f"{name} has no tokenizer: add the {' or '.join(kinds)} of the release")
    if file == "tokenizer.model" and find_spec("sentencepiece") is None:
        raise InputError(f"{name}/{file} can only be read with sentencepiece: pip install sentencepiece")
    loaded = from_files(kinds[file or "tokenizer.json"], name)
    return _as_generic(loaded) if file == "tokenizer.model" else loaded


def _as_generic(loaded: Any) -> PreTrainedTokenizerFast:
    """The same tokenizer in transformers' generic class, which treats spaces as a Llama's `tokenizer.json` does.

    Each text, also after a special token, gets a space before it, even if it already begins with one. transformers 5
    omits this space when it builds the tokenizer from `tokenizer.model`. When saved and loaded again, its
    LlamaTokenizer adds no space after a special token.
    """
    content = json.loads(loaded.backend_tokenizer.to_str())
    metaspace = content.pop("pre_tokenizer")
    prefix = [] if metaspace["prepend_scheme"] == "never" else [normalizers.Prepend("▁")]
    backend = Tokenizer.from_str(json.dumps(content))
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    kept = "name_or_path model_max_length padding_side chat_template response_template extra_special_tokens"
    options = {name: getattr(loaded, name) for name in kept.split()}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options, **loaded.special_tokens_map)
