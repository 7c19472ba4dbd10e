"""Prompt templates: how instruction and source are laid out for an LLM.

All put the instruction first, as the paper does, so that in a causal LLM the source can see the instruction.
"""

from __future__ import annotations

from collections.abc import Callable

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.models.segments import Piece, Segment

AUDIO_TOKEN = "<|audio|>"
"""Stands for the whole of the speech in a rendered prompt, before it becomes as many ids as speech tokens."""

# Private-use characters: no real instruction holds them, no chat template treats them specially.
_SYSTEM, _INSTRUCTION, _SOURCE = "\ue000", "\ue001", "\ue002"


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


def vicuna_text(tokenizer: PreTrainedTokenizerBase, instruction: str, source: str) -> list[Piece]:
    """What the paper's released code puts to the text LLM to make self-powered data: no SPEECH, one line."""
    return [
        *vicuna(tokenizer, instruction, source)[:3],
        (Segment.INSTRUCTION, instruction),
        (Segment.TEMPLATE, ": "),
        (Segment.SOURCE, source),
        (Segment.TEMPLATE, " \nASSISTANT:"),
    ]


def llama3(tokenizer: PreTrainedTokenizerBase, instruction: str, source: str) -> list[Piece]:
    """Llama 3's documented chat markup without a system message; user turn = instruction, newline, source."""
    return [
        (Segment.TEMPLATE, _bos(tokenizer) + "<|start_header_id|>user<|end_header_id|>\n\n"),
        (Segment.INSTRUCTION, instruction),
        (Segment.TEMPLATE, "\n"),
        (Segment.SOURCE, source),
        (Segment.TEMPLATE, "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"),
    ]


def chat(tokenizer: PreTrainedTokenizerBase, instruction: str, source: str) -> list[Piece]:
    """The tokenizer's own chat template; user turn = instruction, newline, source.

    Raises:
        InputError: if the tokenizer has no chat template, or one that does not keep the user's words as they are.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"template 'chat': the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template; "
            "choose --template vicuna or llama3"
        )
    user = {"role": "user", "content": f"{_INSTRUCTION}\n{_SOURCE}"}
    said = {"role": "user", "content": f"{instruction}\n{source}"}
    try:
        rendered, expected = _apply(tokenizer, [user]), _apply(tokenizer, [said])
    except TemplateError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"template 'chat': the tokenizer's chat template fails ({reason}); choose --template vicuna or llama3"
        ) from error
    pieces: list[Piece] = []
    if rendered.count(_INSTRUCTION) == rendered.count(_SOURCE) == 1:
        head, rest = rendered.split(_INSTRUCTION)
        between, _, tail = rest.partition(_SOURCE)
        pieces = [
            *_split_system(tokenizer, head, user),
            (Segment.INSTRUCTION, instruction),
            (Segment.TEMPLATE, between),
            (Segment.SOURCE, source),
            (Segment.TEMPLATE, tail),
        ]
    if "".join(text for _, text in pieces) != expected:
        raise InputError(
            "template 'chat': the tokenizer's chat template rewrites the user's words; "
            "choose --template vicuna or llama3"
        )
    return pieces


TEMPLATES: dict[str, Callable[[PreTrainedTokenizerBase, str, str], list[Piece]]] = {
    "vicuna": vicuna,
    "vicuna_text": vicuna_text,
    "llama3": llama3,
    "chat": chat,
}


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """`chat` where the tokenizer has a chat template, the paper's `vicuna` where not."""
    return "chat" if tokenizer.chat_template else "vicuna"


def _bos(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.bos_token or "")


def _apply(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _split_system(tokenizer: PreTrainedTokenizerBase, head: str, user: dict[str, str]) -> list[Piece]:
    """Tells the default system text in `head` from the markup round it, by rendering a system message of our own."""
    try:
        marked = _apply(tokenizer, [{"role": "system", "content": _SYSTEM}, user]).split(_INSTRUCTION)[0]
    except TemplateError:  # templates without a system role refuse one
        marked = ""
    before, found, after = marked.partition(_SYSTEM)
    has_system = found and head.startswith(before) and head.endswith(after) and len(head) > len(before + after)
    if not has_system:
        return [(Segment.TEMPLATE, head)]
    return [
        (Segment.TEMPLATE, before),
        (Segment.SYSTEM, head[len(before) : len(head) - len(after)]),
        (Segment.TEMPLATE, after),
    ]
