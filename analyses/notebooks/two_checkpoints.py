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
# Two LSMs trained on the same speech, one on transcription alone, one then on the LLM's own answers, and the text LLM
# that both were made from, reading transcripts. Differences are paired: both are drawn together, so that what is hard
# in a sample cancels. Run it as a script, or open it as a notebook with jupytext.

# %%
import lsm_probe
from lsm_probe.probes.attention.plot import eta_figure

samples = lsm_probe.read_manifest("builtin:commands")[:8]
names = ["builtin:llm", "builtin:vanilla_asr", "builtin:self_powered"]
results = [lsm_probe.attention(lsm_probe.load(name, device="cpu"), samples, response="reference") for name in names]

# %% [markdown]
# The same responses for all (`reference`): otherwise a difference may be of what they said.

# %%
for pair in lsm_probe.compare(results)["pairs"]:
    print(pair["first"], "->", pair["second"])
    print("    warning:", pair["warning"])

# %% [markdown]
# The warning is the first thing to read: text and speech have other numbers of source tokens, which moves eta by
# itself. The two LSMs have the same connector, so that they need no control; against the text LLM it is the text LLM
# once more, its transcript repeated to the speech's length: same responses, same positions.

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
