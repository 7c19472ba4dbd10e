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
# # Does the LLM represent speech like its transcript?
#
# We compare the hidden states of speech and of its transcript under the same instruction (arXiv 2410.03798, figure 6),
# in a two-dimensional projection and by numbers. The untrained model shows the similarity that comes from length and
# rhythm alone. The second model is trained on speech. For your own model, replace the second name by its folder. Run it
# as a script, or open it as a notebook with jupytext.

# %%
import lsm_probe
from lsm_probe.probes.alignment.plot import alignment_figure

names = ("builtin:untrained", "builtin:self_powered")
samples = lsm_probe.read_manifest("builtin:commands")[:24:2]
results = [lsm_probe.alignment(lsm_probe.load(name, device="cpu"), samples, perplexity=4) for name in names]
alignment_figure(results)

# %% [markdown]
# By layer, with intervals: cosine of matching pairs minus that of other pairs, similarity of the two geometries (CKA),
# and how often the own transcript is the nearest of all. The last state is after the final norm.

# %%
untrained, trained = (result.curves() for result in results)
for name in untrained:
    print(
        name, *(f"{c.mean[-1]:.3f} [{c.ci_low[-1]:.3f}, {c.ci_high[-1]:.3f}]" for c in (untrained[name], trained[name]))
    )
