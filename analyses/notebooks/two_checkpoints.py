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
# # Two checkpoints on the same samples
#
# We compare two LSMs that were trained on the same speech: one on transcription alone, the other afterwards on the
# LLM's own answers. We also compare them with the text LLM that both are built on, which gets transcripts. Differences
# are paired by sample, so that the difficulty of a sample cancels. Run it as a script, or open it as a notebook with
# jupytext.

# %%
import lsm_probe
from lsm_probe.probes.attention.plot import eta_figure

samples = lsm_probe.read_manifest("builtin:commands")[:8]
names = ["builtin:llm", "builtin:vanilla_asr", "builtin:self_powered"]
results = [lsm_probe.attention(lsm_probe.load(name, device="cpu"), samples, response="reference") for name in names]

# %% [markdown]
# All models get the same responses (`reference`). Otherwise a difference could come from different responses.

# %%
for pair in lsm_probe.compare(results)["pairs"]:
    print(pair["first"], "->", pair["second"])
    print("    warning:", pair["warning"])

# %% [markdown]
# Read the warning first: text and speech have different numbers of source tokens, which changes eta. The two LSMs have
# the same connector and need no control. For the comparison with the text LLM, the control is the text LLM with its
# transcript repeated to the length of the speech. It has the same responses and positions.

# %%
control = lsm_probe.attention(
    lsm_probe.load("builtin:llm", device="cpu"),
    samples,
    response="reference",
    source_lengths=results[1].source_lengths(),
    source_length_of=["builtin:vanilla_asr"],
)
eta_figure([*results, control])

# %%
for pair in lsm_probe.compare([control, *results[1:]])["pairs"]:
    difference = pair["eta_difference"]["mean"]
    below = [layer for layer, high in enumerate(difference["ci_high"]) if high is not None and high < 0]
    above = [layer for layer, low in enumerate(difference["ci_low"]) if low is not None and low > 0]
    print(f"{pair['first']} -> {pair['second']}: eta falls in layers {below} and rises in {above}")
