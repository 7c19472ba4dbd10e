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
# # The verdict on a checkpoint and its evidence
#
# Several measurements of each checkpoint on the same samples are combined into a verdict by fixed rules. Here we
# compare two LSMs that were trained on the same speech: one on transcription alone, the other afterwards on the LLM's
# own answers. The text LLM inside both is the reference.

# %%
import lsm_probe

names = ("builtin:vanilla_asr", "builtin:self_powered")
samples = lsm_probe.read_manifest("builtin:commands")
diagnosis = lsm_probe.diagnose(
    [lsm_probe.load(name, device="cpu") for name in names],
    samples,
    base=lsm_probe.load("builtin:llm", device="cpu"),
    quick=True,  # attention, sensitivity and transcription; without it also knockout and alignment
    max_new_tokens=16,
)
diagnosis

# %% [markdown]
# The evidence of one verdict: each number with its interval, the value it is compared with, and whether it supports
# the verdict.

# %%
diagnosis[names[0]]

# %% [markdown]
# The same as a data frame:

# %%
frame = diagnosis.to_frame()
print(frame[["checkpoint", "label", "value", "ci_low", "ci_high", "side"]].round(2).to_string(index=False))
