"""The format of a prompt template's YAML file, and the prompts rendered from it.

A template either spells the prompt, part by part, or names the messages that the tokenizer's own chat template renders.
The source must appear in it once. A template without an instruction works with [`prompt_ids`] and [`logits`] only.

    bos: 1                      # number of BOS tokens before the prompt (default 1; a chat template writes its own);
                                # for BOS at another place, write `- bos` into `prompt`. Text after BOS is tokenised
                                # separately
    split_at_source: false      # tokenise the text before the source, the source, and the text after it separately
    prompt:
      - system: "Answer briefly."
      - template: "\nUSER: "    # or {speech: ..., text: ...} where they differ
      - instruction
      - template: "\n"
      - source
      - template: "\nASSISTANT:"

    messages:
      - {role: user, content: "{instruction}\n{source}"}
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from transformers import PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.formats import load_yaml
from lsm_probe.models.segments import Piece, Segment, SpecialToken
from lsm_probe.models.templates.chat import render_chat

AUDIO_TOKEN = "<|audio|>"
"""Placeholder for the whole speech in a rendered prompt, later replaced by one id for each speech token."""


@dataclass(frozen=True)
class PromptTemplate:
    """The layout of instruction and source for an LLM.

    Args:
        name: its name in results and messages.
        render: from tokenizer, instruction and source (the transcript, or [`AUDIO_TOKEN`]) to the prompt's text, cut
            into segments.
        split_at_source: whether the text before the source, the source and the text after it are tokenised separately.
        is_chat: whether the chat template of the tokenizer writes the prompt.
        has_instruction: whether the instruction stands in it; some released systems are asked by speech alone.
        content: of its YAML file; empty if it comes from none.
    """

    name: str
    render: Callable[[PreTrainedTokenizerBase, str, str], list[Piece]] = field(repr=False, compare=False)
    split_at_source: bool = False
    is_chat: bool = False
    has_instruction: bool = True
    content: str = field(default="", repr=False)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _BySource(_Strict):
    speech: str
    text: str


class _Text(_Strict):
    """Words of the template itself, of the system or of the template segment."""

    system: str | None = None
    template: str | _BySource | None = None

    @model_validator(mode="after")
    def _has_one(self) -> _Text:
        if (self.system is None) == (self.template is None):
            raise ValueError("a part is `instruction`, `source`, `bos`, `system: words` or `template: words`")
        return self

    def piece(self, source: str) -> Piece:
        if self.system is not None:
            return Segment.SYSTEM, self.system
        words = self.template
        if isinstance(words, _BySource):
            words = words.speech if source == AUDIO_TOKEN else words.text
        return Segment.TEMPLATE, words or ""


class _Message(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class _Layout(_Strict):
    description: str = ""
    bos: Annotated[int, Field(ge=0)] | None = None
    split_at_source: bool = False
    prompt: list[Literal["instruction", "source", "bos"] | _Text] = []
    messages: list[_Message] = []

    @model_validator(mode="after")
    def _has_one_source(self) -> _Layout:
        if bool(self.prompt) == bool(self.messages):
            raise ValueError("give either `prompt` or `messages`")
        if self.messages and self.bos is not None:
            raise ValueError("`bos` belongs to `prompt`: a chat template writes its own BOS")
        sources = self.prompt.count("source") + sum(m.content.count("{source}") for m in self.messages)
        if sources != 1:
            raise ValueError(f"the source must stand in it once, and stands in it {sources} times")
        return self

    @property
    def has_instruction(self) -> bool:
        return "instruction" in self.prompt or any("{instruction}" in m.content for m in self.messages)

    def render(self, tokenizer: PreTrainedTokenizerBase, instruction: str, source: str) -> list[Piece]:
        if self.messages:
            options = {"has_instruction": self.has_instruction}
            return render_chat(tokenizer, self._messages, instruction, source, **options)
        bos: list[Piece] = [(Segment.TEMPLATE, SpecialToken(tokenizer.bos_token))] if tokenizer.bos_token else []
        # Without BOS an empty piece: stored hashes of example prompts contain it.
        pieces = bos * (1 if self.bos is None else self.bos) or [(Segment.TEMPLATE, "")]
        for part in self.prompt:
            if isinstance(part, _Text):
                pieces.append(part.piece(source))
            elif part == "instruction":
                pieces.append((Segment.INSTRUCTION, instruction))
            elif part == "bos":
                pieces += bos
            else:
                pieces.append((Segment.SOURCE, source))
        return pieces

    def _messages(self, instruction: str, source: str) -> list[dict[str, Any]]:
        filled = {"{instruction}": instruction, "{source}": source}
        # In one pass: an instruction may hold the words "{source}".
        contents = [re.sub(r"\{(instruction|source)\}", lambda m: filled[m[0]], m.content) for m in self.messages]
        return [{"role": m.role, "content": text} for m, text in zip(self.messages, contents, strict=True)]


def read_template(path: Path, name: str | None = None) -> PromptTemplate:
    """Reads a template's YAML file; its name is the one given, or that of the file without the ending.

    Raises:
        InputError: the file cannot be read, or does not hold a template.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"the prompt template {path} cannot be read ({reason}): check the path") from error
    return parse_template(name or path.stem, content, str(path))


def parse_template(name: str, content: str, where: str) -> PromptTemplate:
    """The template that a YAML text describes.

    Args:
        name: of the template.
        content: the text.
        where: what it was read from, for messages.

    Raises:
        InputError: it does not describe a template.
    """
    try:
        layout = _Layout.model_validate(load_yaml(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the template"
        raise InputError(
            f"{where} is not a prompt template: {place}: {first['msg']}; see docs/checkpoints.md"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise InputError(f"{where} is not valid YAML: {reason}; see docs/checkpoints.md") from error
    options = {"split_at_source": layout.split_at_source, "is_chat": bool(layout.messages)}
    return PromptTemplate(name, layout.render, **options, has_instruction=layout.has_instruction, content=content)
