"""Prompts that the chat template of a tokenizer or processor renders, cut into segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.models.segments import Piece, Segment

# Private-use characters: no real instruction holds them, no chat template treats them specially.
_SYSTEM, _INSTRUCTION, _SOURCE = "\ue000", "\ue001", "\ue002"
_ADVICE = "choose --template vicuna or llama3"
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError)
"""Errors of chat templates. TypeError: unsupported type of content. ValueError: several templates without a default."""

Messages = list[dict[str, Any]]


def render_chat(
    tokenizer: PreTrainedTokenizerBase,
    make_messages: Callable[[str, str], Messages],
    instruction: str,
    source: str,
    *,
    has_instruction: bool = True,
) -> list[Piece]:
    """As [`chat_pieces`], by the chat template of a tokenizer.

    Raises:
        InputError: the tokenizer has no chat template, or one that does not keep the user's words as they are.
    """
    if not tokenizer.chat_template:
        model = tokenizer.name_or_path or "this model"
        raise InputError(f"the tokenizer of {model} has no chat template, and the prompt template needs one: {_ADVICE}")
    apply = chat_template_renderer(tokenizer)
    return chat_pieces(apply, make_messages, instruction, source, has_instruction=has_instruction)


def chat_pieces(
    apply: Callable[[Messages], str],
    make_messages: Callable[[str, str], Messages],
    instruction: str,
    source: str,
    placeholder: str = _SOURCE,
    advice: str = _ADVICE,
    has_instruction: bool = True,
) -> list[Piece]:
    """A chat template's rendering of an instruction and a source, cut into segments.

    Args:
        apply: renders messages, with the opening of the assistant's turn.
        make_messages: makes the messages from instruction and source.
        instruction: what the model is told to do.
        source: what the model is to read, or what stands for the speech.
        placeholder: stands for the source while its place is searched for; for speech the same as `source`.
        advice: what to do about a template that cannot be used; ends the error.
        has_instruction: whether the messages hold the instruction.

    Raises:
        InputError: the template fails, or does not keep the user's words as they are.
    """
    marked = make_messages(_INSTRUCTION, placeholder)
    try:
        rendered, expected = apply(marked), apply(make_messages(instruction, source))
    except TEMPLATE_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the model's chat template fails ({reason}): {advice}") from error
    pieces: list[Piece] = []
    slots = [(placeholder, Segment.SOURCE, source)]
    if has_instruction:
        slots.append((_INSTRUCTION, Segment.INSTRUCTION, instruction))
    if all(rendered.count(mark) == 1 for mark, _, _ in slots):
        slots.sort(key=lambda slot: rendered.index(slot[0]))
        head, rest = rendered.split(slots[0][0])
        pieces = [*_split_system(apply, head, marked, slots[0][0]), slots[0][1:]]
        for mark, segment, text in slots[1:]:
            between, rest = rest.split(mark)
            pieces += [(Segment.TEMPLATE, between), (segment, text)]
        pieces.append((Segment.TEMPLATE, rest))
    if "".join(text for _, text in pieces) != expected:
        raise InputError(f"the model's chat template rewrites the user's words: {advice}")
    return pieces


def chat_template_renderer(tokenizer: Any) -> Callable[[Messages], str]:
    """A function that renders messages with the chat template of a tokenizer or processor."""

    def apply(messages: Messages) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return apply


def _split_system(apply: Callable[[Messages], str], head: str, messages: Messages, mark: str) -> list[Piece]:
    """Finds the default system text in `head`, which ends at `mark`, by rendering a system message of our own."""
    if messages[0]["role"] == "system":  # there is no default one then
        return [(Segment.TEMPLATE, head)]
    try:
        marked = apply([{"role": "system", "content": _SYSTEM}, *messages]).split(mark)[0]
    except TEMPLATE_ERRORS:  # templates without a system role refuse one
        marked = ""
    before, found, after = marked.partition(_SYSTEM)
    has_system = found and head.startswith(before) and head.endswith(after) and len(head) > len(before + after)
    if not has_system:
        return [(Segment.TEMPLATE, head)]
    system = head[len(before) : len(head) - len(after)]
    return [(Segment.TEMPLATE, before), (Segment.SYSTEM, system), (Segment.TEMPLATE, after)]
