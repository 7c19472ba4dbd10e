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
# # Speech anchor bias of one checkpoint
#
# Does a model attend to its instruction or to the speech, and do its responses depend on the instruction? Here the
# model is `builtin:vanilla_asr` (Whisper tiny.en, a small connector, SmolLM2-135M-Instruct, trained on transcription
# alone), which has the bias. For your own model, give its folder. Run it as a script, or open it as a notebook with
# jupytext.

# %%
import lsm_probe

checkpoint = lsm_probe.load("builtin:vanilla_asr", device="cpu")
samples = lsm_probe.read_manifest("builtin:commands")[:6]
attention = lsm_probe.attention(checkpoint, samples, max_new_tokens=16)

# %% [markdown]
# First look at the instructions and the answers.

# %%
for row in attention.samples[:5]:
    print(f"{row['instruction']}\n    {row['response'][:100]!r}")

# %% [markdown]
# ## Attention of the response
#
# eta is the instruction's share of the norm-based attention of the response, against the speech: 0.5 is balanced, and
# low values can mean speech anchor bias.

# %%
attention

# %% [markdown]
# Longer speech raises eta under `mean` and lowers it under `sum`, for any model. Rely on results that hold under both.

# %%
both = {segment: attention.with_conventions(segment=segment).eta_groups() for segment in ("mean", "sum")}
for segment, groups in both.items():
    print(segment, [f"{group['layers'][0]}-{group['layers'][1]}: {group['eta']:.2f}" for group in groups])
print("every run checks itself:", attention.self_check)

# %% [markdown]
# ## Dependence of the response on instruction and speech
#
# D_i: how many nats more likely is each token of the answer under its own instruction than under those of the other
# tasks? D_s is the same for the speech, compared with that of other samples. If D_i is near 0, the model ignores the
# instruction. If D_s is near 0, it does not use the speech, and a high eta is meaningless (for example
# `builtin:untrained`). This model uses the speech and ignores the instruction.

# %%
sensitivity = lsm_probe.sensitivity(checkpoint, samples, responses=attention.responses())
for name, curve in (("D_i", sensitivity.instruction()), ("D_s", sensitivity.source())):
    print(f"{name} = {curve.mean:.3f} [{curve.ci_low:.3f}, {curve.ci_high:.3f}] nats per token")
sensitivity
