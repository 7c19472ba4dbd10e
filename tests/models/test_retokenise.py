"""Responses of one model as token ids of another."""

import pytest

import lsm_probe
from lsm_probe.models.retokenise import has_same_tokenizer, in_tokens_of

TEXT = "the quick brown fox"


@pytest.fixture
def base(tiny_llm_folder):
    return lsm_probe.load(tiny_llm_folder)


@pytest.fixture
def other(base, save_llm, make_tokenizer, tmp_path):
    """A model whose tokenizer has one token more than that of the base."""
    folder, tokenizer = save_llm(tmp_path / "other"), make_tokenizer()
    tokenizer.add_tokens(["quick brown"])
    tokenizer.save_pretrained(folder)
    return lsm_probe.load(folder)


def test_token_ids_are_kept_if_the_tokenizers_are_equal(base, other) -> None:
    responses = {"a": base.encode_response(TEXT)[:-1], "b": []}
    assert has_same_tokenizer(other, base)  # it has all tokens of the base
    assert in_tokens_of(other, base, responses) == responses


def test_retokenised_responses_keep_text_and_eos(base, other) -> None:
    assert not has_same_tokenizer(base, other)
    ended, eos = other.encode_response(TEXT), other.eos_token_ids
    found = in_tokens_of(base, other, {"ended": ended, "cut": ended[:-1], "empty": eos})
    expected = base.encode_response(TEXT)
    assert len(expected) > len(ended)
    assert expected[-1] in base.eos_token_ids
    assert found == {"ended": expected, "cut": expected[:-1]}
