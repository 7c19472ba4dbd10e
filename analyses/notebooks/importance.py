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
# # Importance of weights for the responses, and learning rates by layer
#
# |θ · ∂L/∂θ| of each weight (arXiv 2509.23755): to first order the change of the loss if the weight were 0. Layers of
# the highest textual importance get the lowest rates in `strategy=layerwise_lr`. Run it as a script, or open it as a
# notebook with jupytext.

# %%
import lsm_probe
from lsm_probe.probes.importance.learning_rates import layer_rates

checkpoint = lsm_probe.load("builtin:llm", device="cpu")
samples = lsm_probe.read_manifest("builtin:probe")[:3]
importance = lsm_probe.importance(checkpoint, samples, response="reference", ablate=0.03)
importance.plot()

# %% [markdown]
# To validate the scores by ablation, we set 3 % of the weights of each matrix to 0: the least important ones, random
# ones, and the most important ones. The table has the perplexity of the same answers.

# %%
print(importance.summary()["ablation"])

# %% [markdown]
# The same numbers as learning rates. Each layer's rate is between 1 - λ and 1 times the base rate. The most important
# layers have the lowest rates. `lsm-probe train CONFIG strategy=layerwise_lr layer_rates=rates.yaml` takes the file.

# %%
rates = layer_rates(importance, 0.4)
for layer, rate in enumerate(rates):
    print(f"layer {layer:2d}: {rate:.2f} {'#' * round(40 * rate)}")
