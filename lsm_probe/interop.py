"""Hands the LLM inside a checkpoint to TransformerLens and nnsight, together with embedded spoken prompts.

    checkpoint = lsm_probe.load("builtin:untrained")
    prompts = embed_prompts(checkpoint, lsm_probe.read_manifest("builtin:probe")[:2])

    bridge = to_transformer_lens(checkpoint)
    logits, cache = bridge.run_with_cache(prompts.inputs_embeds, attention_mask=prompts.attention_mask)

    model = to_nnsight(checkpoint)
    with model.trace(inputs_embeds=prompts.inputs_embeds, attention_mask=prompts.attention_mask):
        middle = model.model.layers[15].output.save()

Both read the prompt as embeddings, because speech has no token ids. The encoder and the connector run before that, so
only the LLM is patched or traced.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lsm_probe.data.sample import Sample
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.segments import Segment
from lsm_probe.runner.prepared_samples import PreparedSample, check_samples, prepare

if TYPE_CHECKING:
    from nnsight import NNsight
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class EmbeddedPrompts:
    """Prompts as the LLM reads them, right-padded: position `i` is the same token in all attributes.

    Attributes:
        inputs_embeds: text and speech embedded, `[batch, tokens, llm_dim]`, in the model's dtype.
        attention_mask: `[batch, tokens]`, 1 for real tokens.
        segments: stored values of [`Segment`], `[batch, tokens]`; `segments == Segment.SOURCE` are the speech tokens
            (of a text LLM, the transcript).
        labels: the text of each token, without padding; speech tokens are `speech 0`, `speech 1`, ...
        last: position of each prompt's last token, `[batch]`: its logits predict the first response token.
    """

    inputs_embeds: Tensor
    attention_mask: Tensor
    segments: Tensor
    labels: list[list[str]]
    last: Tensor


def embed_prompts(checkpoint: Checkpoint, samples: Sequence[Sample]) -> EmbeddedPrompts:
    """Encodes and embeds the prompts of samples, speech through the checkpoint's own encoder and connector.

    Args:
        checkpoint: what [`lsm_probe.load`] returns.
        samples: with `audio` for an LSM, `text` for a text LLM.

    Raises:
        InputError: if a sample cannot be used; the line names it.
    """
    check_samples(checkpoint, samples, None)
    items, _ = prepare(checkpoint, samples, None, "fail")
    device = items[0].embedded.device
    segments = pad_sequence([torch.tensor(s.prompt.segments) for s in items], batch_first=True).to(device)
    return EmbeddedPrompts(
        inputs_embeds=pad_sequence([s.embedded for s in items], batch_first=True),
        attention_mask=(segments != Segment.PADDING).long(),
        segments=segments,
        labels=[_labels(item) for item in items],
        last=torch.tensor([len(s.prompt) - 1 for s in items], device=device),
    )


def to_transformer_lens(checkpoint: Checkpoint) -> TransformerBridge:
    """The checkpoint's LLM as a TransformerBridge, with its tokenizer, in a few milliseconds and no memory.

    Pass embedded prompts in place of token ids: `bridge(inputs_embeds, attention_mask=mask)`, and the same with
    `run_with_cache`, `run_with_hooks`, `stop_at_layer`. A hook that edits activations should work on a clone, because
    the input of layer 0 is `inputs_embeds` itself. Logits differ from the checkpoint's own by rounding,
    since TransformerLens computes attention step by step.

    The weights are shared with the checkpoint. Reading and patching activations does not change it, and neither does
    `enable_compatibility_mode`. Training the bridge, or writing into its parameters, changes the checkpoint too.

    Raises:
        InputError: if TransformerLens is not installed, or cannot take the model; audio LLMs other than our own LSM
            are refused.
    """
    from lsm_probe.instruments.backends.transformer_lens import bridge_over

    bridge = bridge_over(checkpoint.llm)

    from transformer_lens.model_bridge.sources import detect_tokenizer_bos_eos

    # TransformerLens would load a tokenizer passed to it again, possibly from the hub.
    bridge.tokenizer = copy.deepcopy(checkpoint.tokenizer)
    bridge.cfg.tokenizer_prepends_bos, bridge.cfg.tokenizer_appends_eos = detect_tokenizer_bos_eos(bridge.tokenizer)
    bridge.cfg.default_prepend_bos = False  # the prompt templates say where a BOS belongs
    return bridge


def to_nnsight(checkpoint: Checkpoint) -> NNsight:
    """The checkpoint's LLM as an NNsight model, in a few milliseconds and no memory.

    Pass embedded prompts by name: `with model.trace(inputs_embeds=..., attention_mask=...)`. Attention runs eager, so
    that `model.model.layers[i].self_attn.source.attention_interface_1.output[1]` holds its probabilities
    `[batch, heads, queries, keys]`; logits differ from the checkpoint's own by rounding.

    The weights are shared with the checkpoint. Tracing and patching activations does not change it. Training the
    model, or writing into its parameters, changes the checkpoint too.

    Raises:
        InputError: if nnsight is not installed; audio LLMs other than our own LSM are refused.
    """
    from lsm_probe.instruments.backends.nnsight import wrap

    return wrap(checkpoint.llm)


def _labels(item: PreparedSample) -> list[str]:
    labels = [str(item.checkpoint.tokenizer.decode([token])) for token in item.prompt.input_ids]
    if item.checkpoint.source == "speech":
        for number, position in enumerate(item.prompt.positions(Segment.SOURCE)):
            labels[position] = f"speech {number}"
    return labels
