"""Speech tokens that were computed earlier, so that several measurements encode each utterance only once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

_KEPT = 2**28
"""Bytes kept: 500 utterances of 30 speech tokens of 4,096 numbers in half precision are half of it."""


Key = tuple[str, torch.dtype]


class SpeechCache:
    """Speech tokens by the model's inputs for the speech. The oldest are dropped when the cache is full."""

    def __init__(self) -> None:
        self._kept: dict[Key, Tensor] = {}

    @staticmethod
    def key(features: Mapping[str, Tensor], dtype: torch.dtype) -> Key:
        """The key of these inputs in a model of this dtype, because a model may also run in float32."""
        return _digest(features), dtype

    def get(self, key: Key) -> Tensor | None:
        """The speech tokens `[speech tokens, llm_dim]`; None if not kept."""
        return self._kept.get(key)

    def put(self, key: Key, speech: Tensor) -> None:
        """Keeps speech tokens."""
        self._kept[key] = speech
        while sum(kept.nbytes for kept in self._kept.values()) > _KEPT:
            del self._kept[next(iter(self._kept))]


def _digest(features: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, values in sorted(features.items()):
        found.update(repr((name, values.dtype, values.shape)).encode())
        found.update(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
