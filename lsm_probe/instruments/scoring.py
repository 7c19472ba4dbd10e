"""Log-probabilities of a response after several prompts; the beginning that prompts share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lsm_probe.models.generation import keeps_rows_apart
from lsm_probe.models.kv_cache import CACHE
from lsm_probe.models.rotary import group_by_frequencies, sequence_length

NOT_FINITE = (
    "the log-probability of its response is not finite: the weights hold NaN, or the dtype overflows (try --dtype "
    "float32 or bfloat16)"
)
"""The reason why a sample is unusable."""


@torch.no_grad()
def log_probabilities(llm: PreTrainedModel, embedded: Sequence[Tensor], response: Sequence[int]) -> Tensor:
    """`log P(t_m | prompt, t_<m)` of the same response after each prompt, in nats.

    The longest beginning that all prompts share runs once. Its key-value cache is repeated for the rest of each prompt,
    padded on the right, because padding before or inside a prompt would count towards the window of local attention.
    Prompts run separately if their rotary frequencies differ, which depend on the length of prompt and response.

    Args:
        llm: a causal LM.
        embedded: the prompts, `[tokens, llm_dim]` each.
        response: its token ids, at least one.

    Returns:
        `[prompts, response tokens]`, float32; sums over the vocabulary accumulated in float32.
    """
    lengths = [len(prompt) + len(response) for prompt in embedded]
    groups = group_by_frequencies(llm, lengths)
    parts = []
    for group in groups:
        with sequence_length(lengths[group[0]]):
            parts.append(_score_together(llm, [embedded[i] for i in group], response))
    order = torch.tensor([i for group in groups for i in group])
    return torch.cat(parts)[order.argsort()]


def _score_together(llm: PreTrainedModel, embedded: Sequence[Tensor], response: Sequence[int]) -> Tensor:
    ids = torch.tensor(response, device=embedded[0].device)
    said = llm.get_input_embeddings()(ids[:-1])
    rows = [torch.cat([prompt, said]) for prompt in embedded]
    shared = _shared_tokens(embedded)
    cache = _run_shared(llm, embedded, shared) if shared else None
    if cache is None:
        shared = 0
    rest = [row[shared:] for row in rows]
    lengths = [len(row) for row in rest]
    mask = torch.arange(shared + max(lengths)) < shared + torch.tensor(lengths)[:, None]
    logits = llm(
        inputs_embeds=pad_sequence(rest, batch_first=True),
        attention_mask=mask.long().to(ids.device),
        use_cache=cache is not None,
        logits_to_keep=max(lengths) - min(lengths) + len(ids),
        **{CACHE: cache},
    ).logits
    first = max(lengths) - logits.shape[1] + len(ids)  # the response of a row with this length is in the first columns
    chosen = [line[n - first : n - first + len(ids)] for line, n in zip(logits, lengths, strict=True)]
    return gathered_log_probabilities(chosen, ids)


def gathered_log_probabilities(logits: Tensor | Sequence[Tensor], ids: Tensor) -> Tensor:
    """`log softmax(logits)[ids]`, float32: logits `[rows, tokens, vocabulary]`, ids `[tokens]` -> `[rows, tokens]`."""
    # Row by row: a float32 copy of all logits would be the largest tensor of the run.
    ids = ids.to(logits[0].device)  # a model on several devices may place logits elsewhere than its inputs
    return torch.stack([-torch.nn.functional.cross_entropy(row.float(), ids, reduction="none") for row in logits])


def _shared_tokens(embedded: Sequence[Tensor]) -> int:
    """Length of the beginning that all prompts share, without a prompt's last token, whose logits are needed."""
    shortest = min(map(len, embedded)) - 1
    if len(embedded) < 2 or shortest < 1:
        return 0
    first = embedded[0][:shortest]
    same = torch.stack([(other[:shortest] == first).all(-1) for other in embedded[1:]]).all(0)
    return int(same.long().cumprod(0).sum())


def _run_shared(llm: Any, embedded: Sequence[Tensor], shared: int) -> Any | None:
    """The key-value cache of the shared beginning, repeated for each prompt; None if the cache cannot be repeated."""
    output = llm(inputs_embeds=embedded[0][None, :shared], use_cache=True, logits_to_keep=1)
    cache: Any = getattr(output, CACHE, None)
    if not keeps_rows_apart(cache):
        return None
    cache.batch_repeat_interleave(len(embedded))
    return cache
