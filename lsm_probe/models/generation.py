"""Greedy generation for a batch; rows leave the batch when they have ended."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.cache_utils import LinearAttentionCacheLayerMixin

from lsm_probe.errors import InputError, SampleFault
from lsm_probe.models.audio_llm import forget_positions
from lsm_probe.models.kv_cache import CACHE
from lsm_probe.models.rotary import frequencies_unchanged

_STAGE_TOKENS = 8
"""New tokens between two checks of which rows have ended. 16 took 9 to 24 % longer for answers of 13 to 225 tokens."""


@torch.no_grad()
def generate_greedily(
    llm: PreTrainedModel, embedded: list[Tensor], *, max_new_tokens: int, eos_token_ids: list[int]
) -> list[list[int]]:
    """Generates greedy responses to embedded prompts, left-padded.

    In a plain batch every row computes until the longest response ends. Here `llm.generate` runs a few tokens at a
    time, and rows that have ended are removed from the key-value cache. The responses are the same, in half the time
    for a batch of 48 whose responses differ much in length.

    If rotary frequencies depend on the length, cached keys become invalid when the frequencies change. The sequence
    then runs again without the cache. The response equals that of `generate(use_cache=False)` for one prompt.

    Args:
        llm: the causal LM.
        embedded: one `[tokens, llm_dim]` for each prompt.
        max_new_tokens: maximum length of a response.
        eos_token_ids: tokens that end a response.

    Returns:
        The new token ids of each prompt, EOS included where it was produced.

    Raises:
        InputError: the model cannot generate from embeddings, or its cache does not keep rows apart (linear attention,
            state space).
        SampleFault: a logit is NaN, so no token is the largest.
    """
    model: Any = llm
    if "inputs_embeds" not in signature(model.prepare_inputs_for_generation).parameters:
        raise InputError(f"{type(model).__name__} cannot answer embedded prompts in transformers: give another LLM")
    longest = max(len(e) for e in embedded)
    inputs = torch.stack([torch.nn.functional.pad(e, (0, 0, longest - len(e), 0)) for e in embedded])
    mask = torch.tensor([[0] * (longest - len(e)) + [1] * len(e) for e in embedded], device=inputs.device)
    answers: list[list[int]] = [[] for _ in embedded]
    rows, lengths = list(range(len(embedded))), [len(e) for e in embedded]  # of the rows still in the batch
    cache: Any = None
    made = 0
    seen_nan = _SeenNan()
    # A checkpoint's own settings (such as repetition penalties) would give a text LLM and its LSM different decoding
    # rules; generate() uses these settings unless they are overridden.
    own, model.generation_config = model.generation_config, GenerationConfig()
    try:
        while True:
            # Not the model's own generate(): Granite-Speech's disables its adapter if there is no audio.
            # Always pass the whole sequence as embeddings, even with a cache: Phi-3's class may drop the cache.
            output: Any = GenerationMixin.generate(
                model,
                inputs_embeds=inputs,
                attention_mask=mask,
                do_sample=False,
                logits_processor=LogitsProcessorList([seen_nan]),
                max_new_tokens=_stage_tokens(llm, lengths, max_new_tokens - made),
                eos_token_id=eos_token_ids or None,
                pad_token_id=eos_token_ids[0] if eos_token_ids else 0,
                return_dict_in_generate=True,
                **{CACHE: cache},
            )
            new = output.sequences
            # Tokens and NaN flags together, because reading them waits for the device.
            *tokens, has_nan = torch.cat([new.flatten(), seen_nan.found.to(new).view(1)]).tolist()
            if has_nan:
                raise SampleFault(
                    "the model's logits are NaN: the weights hold NaN, or the dtype overflows (try --dtype float32)"
                )
            number = new.shape[1]
            made += number
            for i, row in enumerate(rows):
                answers[row] += _until_eos(tokens[i * number : (i + 1) * number], eos_token_ids)
            going = [i for i, row in enumerate(rows) if answers[row][-1] not in eos_token_ids]
            if not going or made >= max_new_tokens:
                return answers
            rows, lengths = [rows[i] for i in going], [lengths[i] + number for i in going]
            cache = getattr(output, CACHE)
            if not keeps_rows_apart(cache):
                raise InputError(
                    f"{type(model).__name__} has a cache whose rows cannot be selected, which batched generation "
                    "needs: give another LLM"
                )
            kept = _select_rows(cache, going, mask.device)
            mask = torch.cat([mask[kept], mask.new_ones(len(going), number)], dim=1)
            inputs = torch.cat([inputs[kept], model.get_input_embeddings()(new[kept])], dim=1)
            if not frequencies_unchanged(llm, [length - 1 for length in lengths], 1):
                cache = None
    finally:
        model.generation_config = own
        forget_positions(model)


class _SeenNan(LogitsProcessor):
    """Detects NaN on the device. Read `found` only once per stage, because this waits for the device."""

    found = torch.tensor(False)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.found = scores.isnan().any() | self.found
        return scores


def _select_rows(cache: Any, rows: list[int], device: torch.device) -> Tensor:
    """Removes all other rows from a cache; returns the row numbers on a device. Each device gets them once."""
    on: dict[torch.device, Tensor] = {device: torch.tensor(rows, device=device)}
    for layer in getattr(cache, "layers", [cache]):
        place = getattr(getattr(layer, "keys", None), "device", device)
        if place not in on:
            on[place] = on[device].to(place)
        layer.batch_select_indices(on[place])
    return on[device]


def _stage_tokens(llm: PreTrainedModel, lengths: list[int], left: int) -> int:
    """Number of tokens that one cache allows: until any row's rotary frequencies change."""
    stages = range(min(_STAGE_TOKENS, left), 1, -1)
    return next((tokens for tokens in stages if frequencies_unchanged(llm, lengths, tokens - 1)), 1)


def keeps_rows_apart(cache: Any) -> bool:
    """Whether rows of a batch can be selected and repeated in a cache; False if a layer also keeps a state."""
    layers = getattr(cache, "layers", [cache])
    methods = ("batch_select_indices", "batch_repeat_interleave")
    return all(
        all(hasattr(layer, method) for method in methods) and not isinstance(layer, LinearAttentionCacheLayerMixin)
        for layer in layers
    )


def _until_eos(ids: list[int], eos: list[int]) -> list[int]:
    end = next((i + 1 for i, token in enumerate(ids) if token in eos), len(ids))
    return ids[:end]
