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
# # A probe of your own in 20 lines
#
# A probe is a function from a batch of items (sample, prompt with its segments, embedded prompt, response) to
# arrays. The round through the samples does the rest: prompts, answers, batches, memory, faulty samples, resuming,
# several processes.
#
# This one asks how sure the model is of its first token, with its instruction and with the instruction's embeddings
# set to their mean: a model that ignores the instruction is as sure of the same token either way. Asked of a model
# trained on transcription alone, and of one that then learned from the LLM's own answers. Run it as a script, or open
# it as a notebook with jupytext.

# %%
from functools import partial

import numpy as np
import torch

import lsm_probe
from lsm_probe.bootstrap import cluster_weights, interval
from lsm_probe.models.segments import Segment
from lsm_probe.runner.measurement_run import MeasurementRun, stack
from lsm_probe.runner.prepared_samples import ResponseSource

samples = lsm_probe.read_manifest("builtin:commands")[:12]


# %%
@torch.no_grad()
def shift(checkpoint, items):
    """KL divergence (nats) of the first token's distribution without the instruction's words from that with them."""
    measured = []
    for item in items:
        blank = item.embedded.clone()
        positions = item.prompt.positions(Segment.INSTRUCTION)
        blank[positions] = blank[positions].mean(0)
        pair = torch.stack([item.embedded, blank])
        told, untold = checkpoint.llm(inputs_embeds=pair).logits[:, -1].double().log_softmax(-1)
        measured.append({"shift": (told.exp() * (told - untold)).sum().numpy()})
    return measured


def measure(name):
    """What the probe says of each sample, and the utterance each speaks of."""
    checkpoint = lsm_probe.load(name, device="cpu")
    measuring = MeasurementRun(
        checkpoint,
        samples,
        ResponseSource("none"),
        settings={"probe": "shift"},
        batch_size=4,
        on_error="fail",
        data=None,
        progress_folder=None,
        on_progress=lambda done: print(f"{done} of {len(samples)}"),
    )
    records, common = measuring.run(partial(shift, checkpoint))
    return stack(records, "shift")["shift"], common["clusters"]


# %% [markdown]
# A mean with its bootstrap interval over utterances, as every probe of the package gives it.

# %%
for name in ("builtin:vanilla_asr", "builtin:self_powered"):
    values, clusters = measure(name)
    weights = cluster_weights(clusters, seed=0)
    low, high = interval(weights @ values / weights.sum(1))
    print(f"{name}: shift {np.mean(values):.2f} [{low:.2f}, {high:.2f}] nats over {len(values)} samples")
