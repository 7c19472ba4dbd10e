"""Tokenizers of releases."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lsm_probe.errors import InputError
from lsm_probe.models.published.release import read_tokenizer


@pytest.mark.parametrize("legacy", [True, False, None])
def test_spaces_after_special_tokens_are_those_of_tokenizer_json(
    tmp_path: Path, save_sentencepiece: Callable[..., None], legacy: bool | None
) -> None:
    save_sentencepiece(tmp_path, legacy)
    (tmp_path / "config.json").write_text("{}")
    tokenizer = read_tokenizer(tmp_path)
    # Another space than the written one before each text, also where it begins with one.
    pieces = {"q": ["▁", "q"], " q": ["▁", "▁", "q"], "<s>q": ["<s>", "▁", "q"], "<s> q": ["<s>", "▁", "▁", "q"]}
    for text, expected in pieces.items():
        found = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert [token.replace("<0x71>", "q") for token in tokenizer.convert_ids_to_tokens(found)] == expected
    tokenizer.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text("{}")
    saved = read_tokenizer(tmp_path / "saved")
    for text in pieces:
        assert saved(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(InputError, match=r"has no tokenizer: add the tokenizer\.json or tokenizer\.model"):
        read_tokenizer(tmp_path)
