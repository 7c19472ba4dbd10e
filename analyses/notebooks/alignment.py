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
# # Does speech come to look like its transcript?
#
# Hidden states of speech and of its transcript under the same instruction (arXiv 2410.03798, figure 6), in a plane
# and in numbers that a plane cannot give. The model here is untrained: what it reaches is what length and rhythm
# alone give, to hold yours against. Name your own folder instead. Run it as a script, or open it as a notebook with
# jupytext.

# %%
import lsm_probe
from lsm_probe.plots.alignment import alignment_figure

checkpoint = lsm_probe.load("builtin:untrained", device="cpu")
samples = lsm_probe.read_manifest("builtin:probe")[:12]
alignment = lsm_probe.alignment(checkpoint, samples, perplexity=4)
alignment_figure([alignment])

# %% [markdown]
# By layer, with intervals: cosine of pairs minus that of strangers, similarity of the two geometries (CKA), and how
# often speech finds its own transcript among all. The last state is after the final norm.

# %%
for name, curve in alignment.curves().items():
    print(f"{name}: {curve.mean[-1]:.3f} [{curve.ci_low[-1]:.3f}, {curve.ci_high[-1]:.3f}]")
