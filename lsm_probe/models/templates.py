"""Prompt templates: how instruction and source are laid out for an LLM.

All but `chat_source_first` put the instruction first, as the paper does, so that in a causal LLM the source can see
the instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.models.segments import Piece, Segment
from lsm_probe.registry import Registry

AUDIO_TOKEN = "<|audio|>"
"""Stands for the whole of the speech in a rendered prompt, before it becomes as many ids as speech tokens."""

# Private-use characters: no real instruction holds them, no chat template treats them specially.
_SYSTEM, _INSTRUCTION, _SOURCE = "\ue000", "\ue001", "\ue002"
_ADVICE = "choose --template vicuna or llama3"
TEMPLATE_ERRORS = (TemplateError, TypeError, ValueError)
"""How a chat template fails; TypeError: content of a kind it does not know; ValueError: several, none the default."""

Template = Callable[[PreTrainedTokenizerBase, str, str], list[Piece]]
"""From tokenizer, instruction and source to the prompt's text, cut into segments."""
TEMPLATES: Registry[Template] = Registry("lsm_probe.templates", "prompt template", lambda name, found: callable(found))
"""Prompt templates by name; those of other packages come from the entry-point group `lsm_probe.templates`."""
CHAT_TEMPLATES = ("chat", "chat_source_first")
"""Those that render the chat template of a tokenizer or processor."""


@TEMPLATES.register("vicuna")
def vicuna(tokenizer: PreTrainedTokenizerBase, instruction: str, source: str) -> list[Piece]:
    """The paper's layout (arXiv 2410.03798, released code): Vicuna's system sentence, USER, SPEECH, ASSISTANT."""
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    before_source = "\nSPEECH:" if source == AUDIO_TOKEN else "\nSPEECH: "
    return [
        (Segment.TEMPLATE, _bos(tokenizer)),
        (Segment.SYSTEM, system),
        (Segment.TEMPLATE, " \n\nUSER: "),
        (Segment.INSTRUCTION, instruction),
        (Segment.TEMPLATE, before_source),
        (Segment.SOURCE, source),
        (Segment.TEMPLATE, "\nASSISTANT:"),
    ]


@TEMPLATES.register("vicuna_text")
def vicuna_text(tokenizer: PreTrainedTokenizerBase, instruction: str, source: str) -> list[Piece]:
    """What the paper's released code puts to the text LLM to make self-powered data: no SPEECH, one line."""
    return [
        *vicuna(tokenizer, instruction, source)[:3],
        (Segment.INSTRUCTION, instruction),
        (Segment.TEMPLATE, ": "),
        (Segment.SOURCE, source),
        (Segment.TEMPLATE, " \nASSISTANT:"),
    ]


@TEMPLATES.register("llama3")
def llama3(tokenizer: PreTrainedTokenizerBase, instruction: str, source: str) -> list[Piece]:
    """Llama 3's documented chat markup without a system message; user turn = instruction, newline, source."""
    return [
        (Segment.TEMPLATE, _bos(tokenizer) + "<|start_header_id|>user<|end_header_id|>\n\n"),
        (Segment.INSTRUCTION, instruction),
        (Segment.TEMPLATE, "\n"),
        (Segment.SOURCE, source),
        (Segment.TEMPLATE, "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    ]


@TEMPLATES.register("chat")
def chat(tokenizer: PreTrainedTokenizerBase, instruction: str, source: str) -> list[Piece]:
    """The tokenizer's own chat template; user turn = instruction, newline, source.

    Raises:
        InputError: if the tokenizer has no chat template, or one that does not keep the user's words as they are.
    """
    return _chat(tokenizer, lambda i, s: f"{i}\n{s}", instruction, source)


@TEMPLATES.register("chat_source_first")
def chat_source_first(tokenizer: PreTrainedTokenizerBase, instruction: str, source: str) -> list[Piece]:
    """As [`chat`], but the source comes first, as most audio LLMs were trained: it cannot see the instruction."""
    return _chat(tokenizer, lambda i, s: f"{s}\n{i}", instruction, source)


def chat_pieces(
    apply: Callable[[list[dict[str, Any]]], str],
    make_content: Callable[[str, str], Any],
    instruction: str,
    source: str,
    placeholder: str = _SOURCE,
    advice: str = _ADVICE,
) -> list[Piece]:
    """A chat template's rendering of one user turn, cut into segments.

    Args:
        apply: renders messages, with the opening of the assistant's turn.
        make_content: makes the content of the user's turn from instruction and source.
        instruction: what the model is told to do.
        source: what the model is to read, or what stands for the speech.
        placeholder: stands for the source while its place is searched for; for speech the same as `source`.
        advice: what to do about a template that cannot be used; ends the error.

    Raises:
        InputError: the template fails, or does not keep the user's words as they are.
    """
    user = {"role": "user", "content": make_content(_INSTRUCTION, placeholder)}
    filled = {"role": "user", "content": make_content(instruction, source)}
    try:
        rendered, expected = apply([user]), apply([filled])
    except TEMPLATE_ERRORS as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"template 'chat': the chat template fails ({reason}); {advice}") from error
    pieces: list[Piece] = []
    if rendered.count(_INSTRUCTION) == rendered.count(placeholder) == 1:
        slots = [(_INSTRUCTION, Segment.INSTRUCTION, instruction), (placeholder, Segment.SOURCE, source)]
        slots.sort(key=lambda slot: rendered.index(slot[0]))
        head, rest = rendered.split(slots[0][0])
        between, tail = rest.split(slots[1][0])
        before = _split_system(apply, head, user, slots[0][0])
        pieces = [*before, slots[0][1:], (Segment.TEMPLATE, between), slots[1][1:], (Segment.TEMPLATE, tail)]
    if "".join(text for _, text in pieces) != expected:
        raise InputError(f"template 'chat': the chat template rewrites the user's words; {advice}")
    return pieces


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """`chat` where the tokenizer has a chat template, the paper's `vicuna` where not."""
    return "chat" if tokenizer.chat_template else "vicuna"


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.bos_token or "")


def _chat(
    tokenizer: PreTrainedTokenizerBase, make_content: Callable[[str, str], str], instruction: str, source: str
) -> list[Piece]:
    if not tokenizer.chat_template:
        model = tokenizer.name_or_path or "this model"
        raise InputError(f"template 'chat': the tokenizer of {model} has no chat template; {_ADVICE}")
    return chat_pieces(chat_template_renderer(tokenizer), make_content, instruction, source)


def chat_template_renderer(tokenizer: Any) -> Callable[[list[dict[str, Any]]], str]:
    """A function that renders messages with the chat template of a tokenizer or processor."""

    def apply(messages: list[dict[str, Any]]) -> str:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return apply


def _split_system(
    apply: Callable[[list[dict[str, Any]]], str], head: str, user: dict[str, Any], mark: str
) -> list[Piece]:
    """Finds the default system text in `head`, which ends at `mark`, by rendering a system message of our own."""
    try:
        marked = apply([{"role": "system", "content": _SYSTEM}, user]).split(mark)[0]
    except TEMPLATE_ERRORS:  # templates without a system role refuse one
        marked = ""
    before, found, after = marked.partition(_SYSTEM)
    has_system = found and head.startswith(before) and head.endswith(after) and len(head) > len(before + after)
    if not has_system:
        return [(Segment.TEMPLATE, head)]
    system = head[len(before) : len(head) - len(after)]
    return [(Segment.TEMPLATE, before), (Segment.SYSTEM, system), (Segment.TEMPLATE, after)]
