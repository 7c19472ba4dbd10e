"""Sequence lengths up to which sparse attention equals full attention."""

from __future__ import annotations

from typing import Any


def find_exact_length(config: Any) -> tuple[str, int] | None:
    """The setting of a text LLM's `config` that limits how many keys sparse attention sees, and that number of tokens.

    Beyond it, transformers counts padding and the tokens of a key-value cache among the keys to choose from, so that
    what a token sees depends on the batch. None where attention chooses no keys.
    """
    for name in ("keep_window_size", "index_topk", "indexer_budget"):  # Doge; DeepSeek 3.2 and its kin; Qwen 4
        tokens = getattr(config, name, None)
        if tokens is not None:
            return name, int(tokens)
    blocks = getattr(config, "index_topk_blocks", None)  # MiniMax M3
    return None if blocks is None else ("index_topk_blocks x index_block_size", int(blocks * config.index_block_size))
