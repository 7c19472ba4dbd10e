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
# # Speech anchor bias, and self-powered training
#
# Two arms of this study come with the package: one trained on transcription alone, one that went on from the same start
# with SmolLM2's own answers to many kinds of instruction. First what they say and where they look, live; then what the
# study found over all arms and seeds, from its committed results. Run it from a clone, as a script or with jupytext.

# %%
from pathlib import Path

import pandas as pd

import lsm_probe
from lsm_probe.probes.attention.plot import eta_figure

names = ["builtin:llm", "builtin:vanilla_asr", "builtin:self_powered"]
samples = lsm_probe.read_manifest("builtin:commands")[:8]
checkpoints = {name: lsm_probe.load(name, device="cpu") for name in names}
results = {
    name: lsm_probe.attention(checkpoint, samples, max_new_tokens=24) for name, checkpoint in checkpoints.items()
}

# %% [markdown]
# Each sentence with an instruction that the second was trained on, and with one that neither was.

# %%
for row in zip(*(results[name].samples for name in names), strict=True):
    print(f"{row[0]['text']}\n  {row[0]['instruction']}")
    for name, sample in zip(names, row, strict=True):
        print(f"    {name}: {sample['response'][:90]!r}")

# %% [markdown]
# Eta by layer. The text LLM reads the transcript, which is shorter than the speech; dashed, the same transcript
# stretched to the speech's length. Length alone changes eta, so look at both.

# %%
control = lsm_probe.attention(
    checkpoints["builtin:llm"],
    samples,
    responses=results["builtin:llm"].responses(),
    source_lengths=results["builtin:vanilla_asr"].source_lengths(),
    source_length_of=["builtin:vanilla_asr"],
)
eta_figure([*results.values(), control])

# %% [markdown]
# ## All arms, two seeds
#
# What the papers claim, and what came out: means with 95 % intervals over utterances, a row for each seed. D_s
# and the word error rate separate the repaired arm from one that hears nothing (rows heard_...); eta and D_i do not.

# %%
STUDY = Path(lsm_probe.__file__).parents[1] / "analyses" / "speech_anchor_bias"
claims = pd.read_csv(STUDY / "claims.csv")
print(
    claims[["key", "says", "against", "seed", "mean", "ci_low", "ci_high", "utterances", "unit", "verdict"]].to_string(
        index=False
    )
)

# %% [markdown]
# What the probes say of each arm: eta of the last sixth of the layers against the text LLM's, what instruction and
# speech are worth to the arm's own words (nats per token), and what became of it (share of responses in the asked-for
# form).

# %%
arms = pd.read_csv(STUDY / "arms.csv")
print(arms[["arm", "seed", "against_llm", "own_D_i", "own_D_s", "following", "wer"]].round(2).to_string(index=False))

# %% [markdown]
# Which probe ranks the arms as their instruction following does? Spearman's rank correlation over ten arms (five kinds,
# two seeds), and over the eight that were trained.

# %%
print(pd.read_csv(STUDY / "prediction.csv").round(2).to_string(index=False))
