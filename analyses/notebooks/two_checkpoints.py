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
# Before and after a training, or an LSM and the text LLM it was made from, as here: SmolLM2-135M-Instruct reading
# transcripts, and the same behind an untrained connector. Differences are paired: both are drawn together, so that
# what is hard in a sample cancels. Run it as a script, or open it as a notebook with jupytext.

# %%
import lsm_probe
from lsm_probe.plots.eta import eta_figure

samples = lsm_probe.read_manifest("builtin:probe")[:6]
names = ["builtin:llm", "builtin:untrained"]
results = [lsm_probe.attention(lsm_probe.load(name, device="cpu"), samples, response="reference") for name in names]

# %% [markdown]
# The same responses for both (`reference`): otherwise a difference may be of what they said.

# %%
comparison = lsm_probe.compare(results)
pair = comparison["pairs"][0]
print(pair["first"], "->", pair["second"])
print("warning:", pair["warning"])

# %% [markdown]
# The warning is the first thing to read: text and speech have other numbers of source tokens, which moves eta by
# itself. The control is the text LLM once more, its transcript repeated to the speech's length: same responses, same
# positions.

# %%
control = lsm_probe.attention(
    lsm_probe.load("builtin:llm", device="cpu"),
    samples,
    response="reference",
    source_lengths=results[1].source_lengths(),
)
control.checkpoint["name"] = "builtin:llm at length of builtin:untrained"
eta_figure([*results, control])

# %%
fair = lsm_probe.compare([control, results[1]])["pairs"][0]
difference = fair["eta_difference"]["mean"]
held = [
    layer
    for layer, (low, high) in enumerate(zip(difference["ci_low"], difference["ci_high"], strict=True))
    if low > 0 or high < 0
]
print(f"layers whose paired interval excludes 0: {held}")
