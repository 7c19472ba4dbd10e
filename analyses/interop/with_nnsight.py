# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A spoken prompt in nnsight
#
# The LLM of a speech-text model as an `NNsight` model, reading speech. Here the model is `builtin:untrained` (Whisper
# tiny.en, a connector nobody trained, SmolLM2-135M-Instruct), so that nothing need be trained first; name your own
# checkpoint instead. Run it as a script, or open it as a notebook with jupytext.

# %%
import torch

import lsm_probe
from lsm_probe import interop
from lsm_probe.models.segments import Segment

torch.set_grad_enabled(False)
samples = lsm_probe.read_manifest("builtin:probe")[:10]
checkpoint = lsm_probe.load("builtin:untrained", device="cpu")
model = interop.to_nnsight(checkpoint)

# %% [markdown]
# ## Which speech does the answer go by?
#
# Two utterances under one instruction. While the model reads the first, the speech positions of the residual stream are
# replaced, after one layer, by those of the second; the question is how much of the way from the first answer to the
# second this goes (difference of the logits of the first response token along the line between the two: 0 = still the
# first, 1 = the second). The layer from which on it is 0 no longer needs the speech positions: later tokens hold by
# then what they took. Of an untrained connector the two answers differ little, and not for what was said.

# %%
instruction = "Write down every word of the speech, exactly as it was spoken."
prompts = [interop.embed_prompts(checkpoint, [s.model_copy(update={"instruction": instruction})]) for s in samples]
lengths = [p.inputs_embeds.shape[1] for p in prompts]
i, j = next((i, j) for j in range(len(lengths)) for i in range(j) if lengths[i] == lengths[j])
first, second = prompts[i], prompts[j]
print(f"first:  {samples[i].text}\nsecond: {samples[j].text}")

speech = (first.segments[0] == Segment.SOURCE).nonzero()[:, 0]
layers = model.model.layers


def read(prompt):
    """The logits of the first response token, `[vocab]`, and the residual stream after each layer at the speech."""
    residuals = []
    with model.trace(inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask):
        for layer in layers:
            residuals.append(layer.output[:, speech].clone())
        logits = model.output.logits[0, -1].save()
    return logits, residuals


def read_patched(prompt, number, residual):
    """The same logits with the speech replaced after a layer."""
    with model.trace(inputs_embeds=prompt.inputs_embeds, attention_mask=prompt.attention_mask):
        layers[number].output[:, speech] = residual
        logits = model.output.logits[0, -1].save()
    return logits


start, _ = read(first)
end, donated = read(second)
way = end - start
for number in [*range(0, len(layers), 4), len(layers) - 1]:
    moved = (read_patched(first, number, donated[number]) - start) @ way / (way @ way)
    print(f"speech replaced after layer {number:2}: {float(moved):6.3f} of the way")

# %% [markdown]
# ## Where the last prompt token looks
#
# Attention probabilities from the trace, by segment; raw weights, which the norms of the attention probe correct for
# what the values weigh.

# %%
with model.trace(inputs_embeds=first.inputs_embeds, attention_mask=first.attention_mask):
    shares = []
    for layer in layers:
        pattern = layer.self_attn.source.attention_interface_1.output[1]  # [batch, heads, queries, keys]
        shares.append(pattern[0, :, -1].mean(0))
    shares = torch.stack(shares).save()

print("layer  " + "  ".join(f"{s.name.lower():>11}" for s in Segment if (first.segments == s).any()))
for number in [*range(0, len(layers), 5), len(layers) - 1]:
    row = [shares[number, first.segments[0] == s].sum() for s in Segment if (first.segments == s).any()]
    print(f"{number:5}  " + "  ".join(f"{float(share):11.3f}" for share in row))

# %% [markdown]
# ## A second opinion on the attention probe
#
# The same norms from probabilities and values of an nnsight trace.

# %%
ours = lsm_probe.attention(checkpoint, samples[:2], max_new_tokens=16)
theirs = lsm_probe.attention(checkpoint, samples[:2], responses=ours.responses(), backend="nnsight")
print(f"largest difference of eta in any layer: {abs(ours.eta().mean - theirs.eta().mean).max():.0e}")
