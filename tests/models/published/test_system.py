"""What the importers of all systems share: finding parts, and the tokens that end a response."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from lsm_probe.errors import InputError
from lsm_probe.models.published.release import Release
from lsm_probe.models.published.system import Parts, eos_token_ids


def test_eos_tokens_come_from_the_first_source_that_has_them(
    tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    release, tokenizer = Release(tmp_path), make_tokenizer()
    tokenizer.eos_token = "</s>"
    own = [tokenizer.eos_token_id]
    assert eos_token_ids(release, {"eos_token_id": [7, 8]}, LlamaConfig(eos_token_id=3), tokenizer) == [7, 8]
    assert eos_token_ids(release, {}, LlamaConfig(eos_token_id=3), tokenizer) == [3]
    assert eos_token_ids(release, {"eos_token_id": []}, LlamaConfig(eos_token_id=None), tokenizer) == own
    tokenizer.eos_token = None
    with pytest.raises(InputError, match=r"no token is known that ends a response: write it as eos_token"):
        eos_token_ids(release, {}, LlamaConfig(eos_token_id=None), tokenizer)


@pytest.mark.parametrize("value", ["x", ["x"], True, -1, 2.5, {"a": 1}])
def test_an_invalid_eos_token_id_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InputError, match=r"its eos_token_id is .*, which is not a token id"):
        eos_token_ids(Release(tmp_path), {"eos_token_id": value})


def test_a_generation_config_may_be_missing_but_not_damaged(tmp_path: Path) -> None:
    assert Release(tmp_path).generation == {}
    for content, words in (
        ("{", "cannot be read"),
        ("[]", "holds no settings"),
        ("[" * 100_000, "cannot be read"),
        ('{"eos_token_id": 1, "eos_token_id": 2}', "cannot be read"),
    ):
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises(InputError, match=rf"generation_config\.json {words}"):
            _ = Release(tmp_path).generation
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": 4}))
    assert Release(tmp_path).generation["eos_token_id"] == 4


@pytest.mark.parametrize("named", [["whisper"], {"path": "whisper"}, 3])
def test_a_release_that_names_no_path_for_a_part_is_refused(tmp_path: Path, named: Any) -> None:
    with pytest.raises(InputError, match=r"its settings name .* as its encoder: give it with --encoder"):
        Parts().need("encoder", Release(tmp_path), "Whisper", named)
    assert Parts(encoder="here").need("encoder", Release(tmp_path), "Whisper", named) == "here"


def test_a_path_that_is_too_long_counts_as_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not hold its encoder: give it with --encoder. It is Whisper"):
        Parts().need("encoder", Release(tmp_path), "Whisper", "a" * 300)
