"""What a response is worth to the LLM after several prompts, what the prompts share computed once."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

NOT_FINITE = (
    "the log-probability of its response is not finite: the weights hold NaN, or the dtype overflows (try --dtype "
    "float32 or bfloat16)"
)
"""Why a sample is unusable."""


@torch.no_grad()
def log_probabilities(llm: PreTrainedModel, embedded: Sequence[Tensor], response: Sequence[int]) -> Tensor:
    """`log P(t_m | prompt, t_<m)` of the same response after each prompt, in nats.

    The longest beginning that all prompts share runs once; its key-value cache is repeated for the rest, which is
    padded on the left so that the response stands in the same columns for all.

    Args:
        llm: a causal LM.
        embedded: the prompts, `[tokens, llm_dim]` each.
        response: its token ids, at least one.

    Returns:
        `[prompts, response tokens]`, float32; sums over the vocabulary accumulated in float32.
    """
    ids = torch.tensor(response, device=embedded[0].device)
    said = llm.get_input_embeddings()(ids[:-1])
    rows = [torch.cat([prompt, said]) for prompt in embedded]
    shared = _shared_tokens(embedded)
    cache = _run_shared(llm, embedded, shared) if shared else None
    if cache is None:
        shared = 0
    rest = [row[shared:] for row in rows]
    longest = max(map(len, rest))
    inputs = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in rest])
    mask = torch.tensor([[1] * shared + [0] * (longest - len(row)) + [1] * len(row) for row in rest]).to(ids.device)
    logits = llm(
        inputs_embeds=inputs,
        attention_mask=mask,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=len(response),
        **_positions(llm, mask, longest),
    ).logits
    return gathered_log_probabilities(logits, ids)


def gathered_log_probabilities(logits: Tensor, ids: Tensor) -> Tensor:
    """`log softmax(logits)[ids]`, float32: logits `[rows, tokens, vocabulary]`, ids `[tokens]` -> `[rows, tokens]`."""
    # Row by row: a float32 copy of all logits would be the largest tensor of the run.
    return torch.stack([-torch.nn.functional.cross_entropy(row.float(), ids, reduction="none") for row in logits])


def _shared_tokens(embedded: Sequence[Tensor]) -> int:
    """Length of the beginning that all prompts share; a prompt's last token, whose logits are wanted, is none of it."""
    shortest = min(map(len, embedded)) - 1
    if len(embedded) < 2 or shortest < 1:
        return 0
    first = embedded[0][:shortest]
    same = torch.stack([(other[:shortest] == first).all(-1) for other in embedded[1:]]).all(0)
    return int(same.long().cumprod(0).sum())


def _run_shared(llm: Any, embedded: Sequence[Tensor], shared: int) -> Any | None:
    """The key-value cache of the shared beginning, repeated for each prompt; None where the model's cannot be."""
    cache = llm(inputs_embeds=embedded[0][None, :shared], use_cache=True, logits_to_keep=1).past_key_values
    if not all(hasattr(layer, "batch_repeat_interleave") for layer in getattr(cache, "layers", [cache])):
        return None
    cache.batch_repeat_interleave(len(embedded))
    return cache


def _positions(llm: PreTrainedModel, mask: Tensor, columns: int) -> dict[str, Tensor]:
    """Positions count the tokens that are not padding, for models with positions."""
    if "position_ids" not in signature(llm.forward).parameters:
        return {}
    return {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)[:, -columns:]}
