"""A text LLM without its weights: writes prompts for an LLM that runs elsewhere."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.dates import written_date
from lsm_probe.models.identity import ModelIdentity
from lsm_probe.models.prompts import encode_prompt, example_prompt, prompt_sha256
from lsm_probe.models.templates import PromptTemplate
from lsm_probe.models.thinking import has_special_marks, text_after_user_in


@dataclass(frozen=True)
class Prompter:
    """Writes the prompts of a text LLM; `folder` is where its weights are, the rest as in [`Checkpoint`]."""

    name: str
    folder: str
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    template: PromptTemplate
    identity: ModelIdentity = field(default_factory=ModelIdentity)

    @cached_property
    def opening(self) -> str:
        """The end of its prompts, after the user's words."""
        return text_after_user_in(self.tokenizer, self.template)

    @property
    def date(self) -> str | None:
        """As [`Checkpoint.date`]."""
        return written_date(self.template, self.tokenizer)

    def example_prompt(self) -> Sequence[tuple[int, object]]:
        """As [`Checkpoint.example_prompt`]."""
        return example_prompt(self.tokenizer, self.template)

    @cached_property
    def has_special_marks(self) -> bool:
        """Whether the marks round its thinking are special tokens, which servers leave out of their answers."""
        return has_special_marks(self.tokenizer)

    def encode(self, instruction: str, transcript: str) -> list[int]:
        """Token ids of the prompt, those that [`Checkpoint.encode`] gives.

        Raises:
            InputError: instruction or transcript tokenise to nothing.
        """
        return encode_prompt(self.tokenizer, self.template, instruction, transcript).input_ids


def describe_prompt(writer: Checkpoint | Prompter, name: str, date: str | None) -> dict[str, Any]:
    """The fields of [`ModelIdentity`] that distinguish the prompts of one checkpoint from those of another.

    Args:
        writer: the checkpoint.
        name: how the warning calls it.
        date: the date that was asked for, if any.

    Returns:
        `prompt_sha256` and `date`; empty if the template renders no prompt, which encoding a prompt reports.

    Warns:
        UserWarning: a date was asked for that the template does not print.
    """
    try:
        example = writer.example_prompt()
    except InputError:
        return {}
    if date is not None and writer.date is None:
        warnings.warn(f"--date {date} has no effect: the prompt template of {name} writes no date", stacklevel=3)
    return {"prompt_sha256": prompt_sha256(example), "date": writer.date}
