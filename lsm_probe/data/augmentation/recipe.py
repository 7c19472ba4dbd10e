"""Settings of a self-powered data set, and the filter on its responses."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from lsm_probe.data.augmentation import Keep, Thinking
from lsm_probe.data.pools import Pool, read_pool
from lsm_probe.errors import InputError

POOLS = ("generation", "transcription")
"""The paper's mix: six tasks answered by the LLM and one by the transcript, in equal parts."""


@dataclass(frozen=True)
class Recipe:
    """Settings of a self-powered data set; the defaults are those of the paper's released code.

    Args:
        pool: instructions to draw from; each sample gets one task, and all tasks are equally frequent.
        seed: of the random choices.
        max_new_tokens: maximum length of a response, in tokens.
        max_prompt_tokens: maximum length of a prompt, in tokens; samples with a longer one are dropped.
        keep: which responses are kept. `punctuation`: those whose last character is punctuation (any script's), as in
            the paper; `finished`: those that the model ended itself; `all`: those that are not empty.
        thinking: treatment of a reasoning model's thinking. `drop`: the target is the text after it, and samples whose
            thinking does not end are dropped; `keep`: it stays in the target.

    Raises:
        InputError: a length is not positive, or `keep` or `thinking` is unknown.
    """

    pool: Pool = field(default_factory=lambda: read_pool(*POOLS))
    seed: int = 0
    max_new_tokens: int = 225
    max_prompt_tokens: int = 149
    keep: Keep = "punctuation"
    thinking: Thinking = "drop"

    def __post_init__(self) -> None:
        for name, value, choices in (("thinking", self.thinking, Thinking), ("keep", self.keep, Keep)):
            if value not in get_args(choices):
                raise InputError(f"--{name} {value!r} is unknown; choose one of: {', '.join(get_args(choices))}")
        if self.max_new_tokens < 1 or self.max_prompt_tokens < 1:
            raise InputError("--max-new-tokens and --max-prompt-tokens must be at least 1")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the output folder's config."""
        values = {**asdict(self), "pool": [task.model_dump(exclude_defaults=True) for task in self.pool.tasks]}
        if self.thinking == "drop":  # so that folders from before this option can be resumed
            del values["thinking"]
        return values

    def drop_reason(self, response: str, finish_reason: str) -> str | None:
        """Why a response is dropped, or None; `finish_reason` is `stop` if the model ended it."""
        response = response.strip()
        if not response:
            return "empty"
        if self.keep == "punctuation" and not unicodedata.category(response[-1]).startswith("P"):
            return "no final punctuation"
        if self.keep == "finished" and finish_reason != "stop":
            return "unfinished"
        return None
