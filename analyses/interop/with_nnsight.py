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
# This notebook passes speech to the LLM of a speech-text model, wrapped as an `NNsight` model. The model is
# `builtin:untrained` (Whisper tiny.en, an untrained connector, SmolLM2-135M-Instruct), so no training is needed. To use
# your own checkpoint, replace the name. Run it as a script, or open it as a notebook with jupytext.

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
# ## Patching speech between utterances
#
# Two utterances have the same instruction. In the run on the first utterance, the residual stream at the speech
# positions is replaced after one layer by that of the second. We project the logits of the first response token on the
# line between the two runs: 0 is the first utterance's answer, 1 the second's. From the layer on where the value is 0,
# later tokens no longer use the speech positions. With an untrained connector the two answers differ little, and the
# difference does not depend on the words.

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
# ## Attention of the last prompt token
#
# Attention probabilities from the trace, by segment. These are raw weights. The attention probe also includes the norms
# of the transformed value vectors.

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
# ## Comparison with the attention probe
#
# The same norms from probabilities and values of an nnsight trace.

# %%
ours = lsm_probe.attention(checkpoint, samples[:2], max_new_tokens=16)
theirs = lsm_probe.attention(checkpoint, samples[:2], responses=ours.responses(), backend="nnsight")
print(f"largest difference of eta in any layer: {abs(ours.eta().mean - theirs.eta().mean).max():.0e}")
