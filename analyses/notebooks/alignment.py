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
# Hidden states of speech and of its transcript under the same instruction (arXiv 2410.03798, figure 6), in a plane
# and in numbers that a plane cannot give. Two models: an untrained one, which has what length and rhythm alone give,
# and one trained until it hears. Name your own folder instead of the second. Run it as a script, or open it as a
# notebook with jupytext.

# %%
import lsm_probe
from lsm_probe.probes.alignment.plot import alignment_figure

names = ("builtin:untrained", "builtin:self_powered")
samples = lsm_probe.read_manifest("builtin:commands")[:24:2]
results = [lsm_probe.alignment(lsm_probe.load(name, device="cpu"), samples, perplexity=4) for name in names]
alignment_figure(results)

# %% [markdown]
# By layer, with intervals: cosine of pairs minus that of strangers, similarity of the two geometries (CKA), and how
# often speech finds its own transcript among all. The last state is after the final norm.

# %%
untrained, trained = (result.curves() for result in results)
for name in untrained:
    print(
        name, *(f"{c.mean[-1]:.3f} [{c.ci_low[-1]:.3f}, {c.ci_high[-1]:.3f}]" for c in (untrained[name], trained[name]))
    )
