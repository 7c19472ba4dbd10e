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
# Two arms of this study come with the package. One is trained on transcription alone. The other continues from the same
# start with SmolLM2's own answers to many kinds of instruction. This notebook first measures their responses and their
# attention. Then it shows the results of all arms and seeds from the committed files. Run it from a clone, as a script
# or with jupytext.

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
# Each sentence has an instruction that the second arm was trained on, and one that neither arm was trained on.

# %%
for row in zip(*(results[name].samples for name in names), strict=True):
    print(f"{row[0]['text']}\n  {row[0]['instruction']}")
    for name, sample in zip(names, row, strict=True):
        print(f"    {name}: {sample['response'][:90]!r}")

# %% [markdown]
# Eta by layer. The text LLM gets the transcript, which is shorter than the speech. The dashed line is the
# length-matched control: the same transcript, repeated to the length of the speech. Length alone changes eta, so
# compare with both.

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
# The claims of the papers and our results: means with 95 % intervals over utterances, one row per seed. D_s and the
# word error rate separate the repaired arm from one that ignores the speech (rows heard_...); eta and D_i do not.

# %%
STUDY = Path(lsm_probe.__file__).parents[1] / "analyses" / "speech_anchor_bias"
claims = pd.read_csv(STUDY / "claims.csv")
print(
    claims[["key", "says", "against", "seed", "mean", "ci_low", "ci_high", "utterances", "unit", "verdict"]].to_string(
        index=False
    )
)

# %% [markdown]
# Results of the probes for each arm: eta of the last sixth of the layers compared with the text LLM, the dependence of
# the arm's own responses on instruction and speech (nats per token), and the share of responses in the asked-for form.

# %%
arms = pd.read_csv(STUDY / "arms.csv")
print(arms[["arm", "seed", "against_llm", "own_D_i", "own_D_s", "following", "wer"]].round(2).to_string(index=False))

# %% [markdown]
# Which probe ranks the arms like their instruction following? Spearman's rank correlation over ten arms (five kinds,
# two seeds), and over the eight trained arms.

# %%
print(pd.read_csv(STUDY / "prediction.csv").round(2).to_string(index=False))
