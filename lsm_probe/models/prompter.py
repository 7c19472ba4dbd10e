"""A text LLM without its weights: enough to write prompts for one that runs elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from lsm_probe.models.prompts import encode_prompt


@dataclass(frozen=True)
class Prompter:
    """The side of a text LLM that faces the text.

    Attributes:
        name: how the user called it.
        folder: folder or hub name that its weights are loaded from.
        tokenizer: its fast tokenizer.
        template: name of the prompt template.
        identity: where the weights come from and their hashes.
    """

    name: str
    folder: str
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    template: str
    identity: dict[str, Any] = field(default_factory=dict)

    def encode(self, instruction: str, transcript: str) -> list[int]:
        """Token ids of the prompt, those that [`Checkpoint.encode`] gives.

        Raises:
            InputError: instruction or transcript tokenise to nothing.
        """
        return encode_prompt(self.tokenizer, self.template, instruction, transcript).input_ids
