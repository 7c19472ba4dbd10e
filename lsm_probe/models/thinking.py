"""Reasoning models: separates the thinking in a response from the answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import regex as re  # response templates are written for it

from lsm_probe.models.segments import Segment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lsm_probe.models.prompts import Prompt
    from lsm_probe.models.templates import PromptTemplate

UNFINISHED = "unfinished thought"
"""The reason why a sample has no answer."""


@dataclass(frozen=True)
class Marks:
    """The marks of thinking in a family of models.

    Attributes:
        begin: pattern of the text that opens the thinking.
        end: pattern of everything between the thinking and the answer.
        is_known: whether the tokenizer or its chat template names these marks, so that `end` counts without `begin`.
    """

    begin: str
    end: str
    is_known: bool = False


FAMILIES = (
    # Qwen3, DeepSeek-R1, SmolLM3, GLM and most others; Granite writes <response> round the answer.
    Marks(r"<think>", r"</think>(\s*<response>)?"),
    Marks(r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    Marks(r"<\|channel\|>", r"<\|channel\|>final.*?<\|message\|>"),  # gpt-oss
    Marks(r"<\|channel>thought", r"<channel\|>"),  # Gemma 4
    Marks(r"<seed:think>", r"</seed:think>"),  # Seed-OSS
)

_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
"""Names of the thinking in transformers' response templates."""


@dataclass(frozen=True)
class Thought:
    """The thinking at the start of a response.

    Attributes:
        text: the thinking with its marks; empty thinking also counts.
        tokens: number of response tokens before the answer.
        answer: the text after the thinking, without special tokens; None if the response ends within the thinking.
    """

    text: str
    tokens: int
    answer: str | None


def find_thought(
    tokenizer: PreTrainedTokenizerBase, response: Sequence[int], opening: str, *, ended: bool
) -> Thought | None:
    """Separates the thinking from the answer.

    Args:
        tokenizer: of the response.
        response: token ids.
        opening: the end of the prompt; see [`text_after_user`].
        ended: whether the model ended the response itself.

    Returns:
        None where the response holds no thinking.
    """

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False))

    found = split_thought(decode(response), marks_of(tokenizer), opening, ended=ended)
    if found is None:
        return None
    thinking, answer = found
    # A token that holds the last character of the thinking belongs to it.
    tokens = bisect_left(range(len(response) + 1), True, key=lambda n: decode(response[:n]).startswith(thinking))
    while tokens < len(response) and not decode([response[tokens]]).strip():
        tokens += 1
    if answer is None or tokens >= len(response):
        return Thought(thinking, len(response), None)
    shared = decode(response[:tokens])[len(thinking) :]
    rest = str(tokenizer.decode(list(response[tokens:]), skip_special_tokens=True))
    return Thought(thinking, tokens, _unwrapped(shared + rest))


def find_thought_in_text(
    tokenizer: PreTrainedTokenizerBase, response: str, opening: str, *, ended: bool
) -> tuple[str, str | None] | None:
    """As [`find_thought`], for a text with its special tokens.

    Returns:
        The thinking and the answer (None for an unfinished thought); None where the response holds no thinking.
    """
    found = split_thought(response, marks_of(tokenizer), opening, ended=ended)
    if found is None or found[1] is None:
        return found
    return found[0], _unwrapped(without_special_tokens(tokenizer, found[1]))


def without_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text without its token ids, so special tokens are recognised by their spelling."""
    special = "|".join(re.escape(token) for token in tokenizer.all_special_tokens)
    return re.sub(special, "", text) if special else text


def split_thought(
    response: str, marks: Sequence[Marks], opening: str = "", *, ended: bool
) -> tuple[str, str | None] | None:
    """The thinking with its marks, and the text behind it; see [`find_thought`].

    A response has thinking if it begins with the opening mark, if the prompt ends with that mark, or if it contains the
    closing mark of the model's own family. A response that the prompt has opened and that ends by itself without a
    closing mark is an answer: a model that was trained to answer directly does this.

    Args:
        response: text with its special tokens.
        marks: see [`marks_of`].
        opening, ended: as in [`find_thought`].

    Returns:
        The thinking, and the text behind it (None for an unfinished thought); None where the response holds no
        thinking.
    """
    for own in marks:
        opened = _is_open(own, opening)
        begins = re.match(rf"\s*(?:{own.begin})", response) is not None
        end = re.search(own.end, response, re.DOTALL)
        closed = not opened and re.search(own.end, opening, re.DOTALL) is not None
        if end and (begins or opened or (own.is_known and not closed)):
            return response[: end.end()], response[end.end() :]
        if begins or (opened and not ended):
            return response, None
    return None


def text_after_user(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """The template's text after the user's words: DeepSeek-R1's template opens the thinking there."""
    users = [i for i, own in enumerate(prompt.segments) if own in (Segment.INSTRUCTION, Segment.SOURCE)]
    behind = prompt.input_ids[users[-1] + 1 :] if users else []
    return str(tokenizer.decode(behind, skip_special_tokens=False)) if behind else ""


def text_after_user_in(tokenizer: PreTrainedTokenizerBase, template: PromptTemplate) -> str:
    """As [`text_after_user`], of any prompt of a text LLM."""
    from lsm_probe.models.prompts import encode_prompt  # imports torch, which saved responses are read without

    return text_after_user(tokenizer, encode_prompt(tokenizer, template, "Listen.", "Hello."))


def marks_of(tokenizer: PreTrainedTokenizerBase) -> list[Marks]:
    """The marks that its response template declares, if it has one, and those of the families we know."""
    named = "\n".join([str(getattr(tokenizer, "chat_template", "")), *getattr(tokenizer, "added_tokens_encoder", {})])
    families = [replace(marks, is_known=re.search(marks.end, named, re.DOTALL) is not None) for marks in FAMILIES]
    return [*_declared(getattr(tokenizer, "response_template", None)), *families]


def has_special_marks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text without special tokens has lost the marks."""
    patterns = [pattern for marks in marks_of(tokenizer) for pattern in (marks.begin, marks.end)]
    return any(re.search(pattern, token, re.DOTALL) for token in tokenizer.all_special_tokens for pattern in patterns)


def _is_open(marks: Marks, opening: str) -> bool:
    """Whether the text opens thinking without ending it."""
    begun = [found.end() for found in re.finditer(marks.begin, opening)]
    return bool(begun) and re.search(marks.end, opening[begun[-1] :], re.DOTALL) is None


def _declared(template: Any) -> list[Marks]:
    """The marks in a `response_template`, transformers' description of how a model lays its messages out."""
    fields = template.get("fields", {}) if isinstance(template, dict) else {}
    thinking: dict[str, Any] = next((fields[name] for name in _REASONING_FIELDS if name in fields), {})
    begin = _pattern(thinking, "open")
    # Where the answer has a mark of its own, other regions may stand before it.
    end = _pattern(fields.get("content", {}), "open") or _pattern(thinking, "close")
    return [Marks(begin, end, is_known=True)] if begin and end else []


def _pattern(field: dict[str, Any], side: str) -> str | None:
    if f"{side}_pattern" in field:
        return str(field[f"{side}_pattern"])
    literals = field.get(side, [])
    return "|".join(re.escape(mark) for mark in ([literals] if isinstance(literals, str) else literals)) or None


def _unwrapped(answer: str) -> str:
    """Without the closing tag of Granite's answers."""
    return answer.strip().removesuffix("</response>").strip()
