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
# alone), which has the bias; name your own folder instead. Run it as a script, or open it as a notebook with jupytext.

# %%
import lsm_probe

checkpoint = lsm_probe.load("builtin:vanilla_asr", device="cpu")
samples = lsm_probe.read_manifest("builtin:commands")[:6]
attention = lsm_probe.attention(checkpoint, samples, max_new_tokens=16)

# %% [markdown]
# Look at the answers before any number: what was asked, and what it says.

# %%
for row in attention.samples[:5]:
    print(f"{row['instruction']}\n    {row['response'][:100]!r}")

# %% [markdown]
# ## Where does the answer look?
#
# eta is the instruction's share of the norm-based attention of the response, against the speech: 0.5 is balanced, low
# is speech anchor bias.

# %%
attention

# %% [markdown]
# Longer speech raises eta under `mean` and lowers it under `sum`, whatever the model does: believe what both say.

# %%
both = {segment: attention.with_conventions(segment=segment).eta_groups() for segment in ("mean", "sum")}
for segment, groups in both.items():
    print(segment, [f"{group['layers'][0]}-{group['layers'][1]}: {group['eta']:.2f}" for group in groups])
print("every run checks itself:", attention.self_check)

# %% [markdown]
# ## Do the responses depend on it?
#
# How many nats likelier is each token of its own answer under its own instruction than under those of the other tasks
# (D_i), and after its own speech than after other samples' (D_s)? D_i near 0: the instruction is ignored. D_s near 0:
# it does not hear, and a high eta is worth nothing (`builtin:untrained` is of that kind). This one hears, and ignores.

# %%
sensitivity = lsm_probe.sensitivity(checkpoint, samples, responses=attention.responses())
for name, curve in (("D_i", sensitivity.instruction()), ("D_s", sensitivity.source())):
    print(f"{name} = {curve.mean:.3f} [{curve.ci_low:.3f}, {curve.ci_high:.3f}] nats per token")
sensitivity
