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
# # A spoken prompt in TransformerLens
#
# This notebook passes speech to the LLM of a speech-text model, wrapped as a `TransformerBridge`. The model is
# `builtin:untrained` (Whisper tiny.en, an untrained connector, SmolLM2-135M-Instruct), so no training is needed. To use
# your own checkpoint, replace the name. Run it as a script, or open it as a notebook with jupytext.

# %%
import torch

import lsm_probe
from lsm_probe import interop
from lsm_probe.models.segments import Segment

torch.set_grad_enabled(False)
samples = lsm_probe.read_manifest("builtin:probe")[:2]
checkpoint = lsm_probe.load("builtin:untrained", device="cpu")
bridge = interop.to_transformer_lens(checkpoint)
prompts = interop.embed_prompts(checkpoint, samples)
positions = prompts.segments[0] == Segment.SOURCE
print(f"{samples[0].instruction!r}, spoken: {samples[0].text!r}")
print(f"{int(positions.sum())} of {int(prompts.attention_mask[0].sum())} tokens are speech")

# %% [markdown]
# ## Logit lens
#
# The final norm and the unembedding are applied to the residual stream after each layer. This gives the prediction of
# the model if it stopped there. We show it at the position of the first response token and at a speech token in the
# middle. With a trained connector, speech tokens may show words of the utterance. With an untrained one they show none.

# %%
logits, cache = bridge.run_with_cache(prompts.inputs_embeds, attention_mask=prompts.attention_mask)
own = checkpoint.llm(inputs_embeds=prompts.inputs_embeds, attention_mask=prompts.attention_mask).logits
real = prompts.attention_mask.bool()
difference = float((logits - own)[real].norm() / own[real].norm())
print(f"logits differ from the checkpoint's own by {difference:.0e} relative")


def lens(layer: int, position: int) -> list[str]:
    """The three likeliest tokens of the first prompt at a position after a layer."""
    residual = cache[f"blocks.{layer}.hook_resid_post"][:1, position : position + 1]
    likeliest = bridge.unembed(bridge.ln_final(residual))[0, 0].topk(3).indices
    return [bridge.tokenizer.decode([token]) for token in likeliest]


speech = positions.nonzero()[:, 0]
answer, spoken = int(prompts.last[0]), int(speech[len(speech) // 2])
print(f"{'layer':>5}  {'first response token':40}  {prompts.labels[0][spoken]}")
for layer in [*range(0, bridge.cfg.n_layers, 5), bridge.cfg.n_layers - 1]:
    print(f"{layer:5}  {lens(layer, answer)!s:40}  {lens(layer, spoken)}")

# %% [markdown]
# ## Replacing speech tokens by their mean
#
# At the input of a layer, all speech tokens are replaced by their mean. We measure the change of the distribution of
# the first response token (Kullback-Leibler divergence, in nats). Without a change, earlier layers have already used
# the differences between speech tokens.

# %%
before = logits[0, answer].log_softmax(-1)


def flatten(residual, hook):
    residual = residual.clone()  # before layer 0: the prompt embeddings
    residual[0, positions] = residual[0, positions].mean(0)
    return residual


for layer in [*range(0, bridge.cfg.n_layers, 5), bridge.cfg.n_layers - 1]:
    changed = bridge.run_with_hooks(
        prompts.inputs_embeds,
        attention_mask=prompts.attention_mask,
        fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", flatten)],
    )
    after = changed[0, answer].log_softmax(-1)
    print(f"before layer {layer:2}: {float((before.exp() * (before - after)).sum()):.4f} nats")

# %% [markdown]
# ## Comparison with the attention probe
#
# The same norms from TransformerLens's own `hook_pattern`, `hook_v` and `W_O`.

# %%
ours = lsm_probe.attention(checkpoint, samples, max_new_tokens=16)
theirs = lsm_probe.attention(checkpoint, samples, responses=ours.responses(), backend="transformer-lens")
print(f"largest difference of eta in any layer: {abs(ours.eta().mean - theirs.eta().mean).max():.0e}")
