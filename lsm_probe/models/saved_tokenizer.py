"""A saved tokenizer that is loaded as it was."""

from __future__ import annotations

import json
from pathlib import Path

_CONFIG = "tokenizer_config.json"


def keep_tokenizer(folder: str | Path) -> None:
    """Makes the tokenizer saved in a folder load as its `tokenizer.json` says.

    Its own class may make it anew from the vocabulary: a LlamaTokenizer that put a space before the text after special
    tokens would put none there once it is loaded, and the prompts would have other tokens than in training.
    """
    path = Path(folder) / _CONFIG
    if not path.is_file() or not (Path(folder) / "tokenizer.json").is_file():
        return
    settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
