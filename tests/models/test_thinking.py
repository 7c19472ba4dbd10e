"""Where the thinking in a response ends: the marks of several model families, as special tokens and as text."""

import pytest
from transformers import AddedToken

from lsm_probe.models.prompts import encode_prompt
from lsm_probe.models.thinking import (
    find_thought,
    find_thought_in_text,
    has_special_marks,
    text_after_user,
    text_after_user_in,
)

THINK = [("<think>", False), ("</think>", False)]
MAGISTRAL = [("[THINK]", True), ("[/THINK]", True)]
HARMONY = [(f"<|{name}|>", True) for name in ("channel", "message", "end", "start")]
GEMMA = [("<|channel>", True), ("<channel|>", True)]


@pytest.fixture
def tokenizer_with(make_tokenizer):
    """`tokenizer_with(tokens)`: the tiny tokenizer with added tokens; the values say which are special."""

    def make(tokens=()):
        tokenizer = make_tokenizer()
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token, special in tokens if not special])
        special = [token for token, special in tokens if special]
        tokenizer.add_special_tokens({"extra_special_tokens": special}, replace_extra_special_tokens=False)
        return tokenizer

    return make


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("tokens", "opening", "thinking", "answer"),
    [
        (THINK, "", "<think>\nIs it green? No.\n</think>", "\n\nIt is brown.</s>"),
        ((), "", "<think>\nIs it green? No.\n</think>", "\n\nIt is brown.</s>"),
        (THINK, "", "<think>\n\n</think>", "\n\nIt is brown.</s>"),
        (THINK, "<|im_start|>assistant\n<think>\n", "Is it green? No.\n</think>", "\nIt is brown.</s>"),
        (THINK, "", "Is it green? No.</think>", "It is brown.</s>"),
        (THINK, "", "<think>Do I close with </think>", "It is brown.</s>"),
        (THINK, "", "<think>Is it green? No, it is not green.</think><response>", "It is brown.</response></s>"),
        (MAGISTRAL, "", "[THINK]Is it green?[/THINK]", "It is brown.</s>"),
        (
            HARMONY,
            "<|start|>assistant",
            "<|channel|>analysis<|message|>Is it green?<|end|><|start|>assistant<|channel|>final<|message|>",
            "It is brown.</s>",
        ),
        (GEMMA, "", "<|channel>thought\nIs it green?<channel|>", "It is brown.</s>"),
    ],
)
def test_the_answer_follows_the_thinking(tokenizer_with, tokens, opening, thinking, answer):
    tokenizer = tokenizer_with(tokens)
    response = ids_of(tokenizer, thinking + answer)
    found = find_thought(tokenizer, response, opening, ended=True)
    assert (found.text, found.answer) == (thinking, "It is brown.")
    assert tokenizer.decode(response[found.tokens :], skip_special_tokens=True).startswith("It is brown.")
    if opening or thinking.startswith(("<", "[")):  # without a mark at either end it looks like an answer
        cut = response[: max(2, found.tokens // 2)]
        found = find_thought(tokenizer, cut, opening, ended=False)
        assert (found.tokens, found.answer) == (len(cut), None)


@pytest.mark.parametrize(
    ("tokens", "opening", "response"),
    [
        (THINK, "", "It is brown.</s>"),
        # A model that does not know the mark may repeat it.
        ((), "", "Write </think> behind it.</s>"),
        # So may one whose prompt has closed the thinking, because it is turned off.
        (THINK, "<|im_start|>assistant\n<think>\n\n</think>\n\n", "Write </think> behind it.</s>"),
        # Trained to answer directly, with a template that opens the thinking.
        (THINK, "<|im_start|>assistant\n<think>\n", "It is brown.</s>"),
    ],
)
def test_a_response_without_thinking_is_not_split(tokenizer_with, tokens, opening, response):
    tokenizer = tokenizer_with(tokens)
    assert find_thought(tokenizer, ids_of(tokenizer, response), opening, ended=True) is None


@pytest.mark.parametrize("response", ["<think>Is it green?</s>", "<think>Is it green?</think>"])
def test_a_response_that_ends_with_its_thinking_has_no_answer(tokenizer_with, response):
    tokenizer = tokenizer_with(THINK)
    ids = ids_of(tokenizer, response)
    found = find_thought(tokenizer, ids, "", ended=response.endswith("</s>"))
    assert (found.tokens, found.answer) == (len(ids), None)


def test_text_in_the_same_token_as_the_end_mark_is_kept(make_tokenizer):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(">It", normalized=False)])
    response = ids_of(tokenizer, "<think>No.</think>It is brown.</s>")
    assert find_thought(tokenizer, response, "", ended=True).answer == "It is brown."


def test_marks_are_read_from_the_response_template(tokenizer_with):
    tokenizer = tokenizer_with()
    tokenizer.response_template = {
        "fields": {"reasoning_content": {"open": "{mull}", "close": ["{/mull}", "{done}"]}, "content": {}}
    }
    response = ids_of(tokenizer, "{mull}Is it green?{done} It is brown.</s>")
    assert find_thought(tokenizer, response, "", ended=True).answer == "It is brown."


def test_an_opening_mark_in_the_prompt_is_found_after_the_users_text(tokenizer_with):
    tokenizer, plain = tokenizer_with(THINK), tokenizer_with(THINK)
    tokenizer.chat_template = plain.chat_template.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    prompt = encode_prompt(tokenizer, "chat", "Say it.", "the sea")
    assert text_after_user(tokenizer, prompt) == "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert text_after_user_in(tokenizer, "chat") == text_after_user(tokenizer, prompt)
    assert "<think>" not in text_after_user(plain, encode_prompt(plain, "chat", "Say it.", "the sea"))


def test_text_from_a_server_is_split_like_token_ids(tokenizer_with):
    tokenizer = tokenizer_with(MAGISTRAL)
    assert has_special_marks(tokenizer)
    assert not has_special_marks(tokenizer_with(THINK))
    found = find_thought_in_text(tokenizer, "[THINK]Is it?[/THINK]It is brown.</s>", "", ended=True)
    assert found == ("[THINK]Is it?[/THINK]", "It is brown.")
