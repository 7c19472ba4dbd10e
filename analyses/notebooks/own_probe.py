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
# # A probe of your own in one file
#
# A probe is a function from a checkpoint and samples to a result, a class that names what the result stores, and a
# `Measurement` that names both. lsm-probe does the rest: prompts, responses, batches, memory, samples that cannot be
# used, resuming, several processes, the command, the table, the figure, paired comparison, and a section of the report.
#
# This probe measures how much the distribution of the first response token changes when the embeddings of the
# instruction are replaced by their mean. A model that ignores the instruction predicts the same token either way. We
# compare a model trained on transcription alone with one that was repaired with self-powered data.

# %%
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch

import lsm_probe


# %%
@dataclass(frozen=True, kw_only=True)
class ShiftResult(lsm_probe.MeasurementResult):
    """How far the first token's distribution moves without the words of the instruction: `shift`, nats, `[samples]`."""

    NAME = "shift"
    BY_SAMPLE = ("shift",)

    shift: np.ndarray


def shift(checkpoint, samples, **options):
    """KL divergence of the first token's distribution without the instruction's words from that with them."""
    options = lsm_probe.RunOptions(**options)
    run = lsm_probe.MeasurementRun(
        checkpoint=checkpoint,
        samples=samples,
        responses=None,  # it looks at prompts alone
        options=options,
        settings={},  # options of its own belong here: an interrupted run continues only under the same
    )
    records, common = run.run(lambda items: [measure(checkpoint, item) for item in items])
    return ShiftResult(**common, **lsm_probe.stack(records, "shift"))


@torch.no_grad()
def measure(checkpoint, item):
    """The arrays of one sample: `item` holds its prompt with segments, and the prompt's embeddings."""
    blank = item.embedded.clone()
    positions = item.prompt.positions(lsm_probe.Segment.INSTRUCTION)
    blank[positions] = blank[positions].mean(0)
    pair = torch.stack([item.embedded, blank])
    told, untold = checkpoint.llm(inputs_embeds=pair).logits[:, -1].double().log_softmax(-1)
    return {"shift": (told.exp() * (told - untold)).sum().numpy()}


PROBE = lsm_probe.Measurement(
    name="shift",
    help="How much the first response token depends on the words of the instruction (nats).",
    measure=shift,
    result=ShiftResult,
)

# %% [markdown]
# To get the command `lsm-probe shift`, register the probe in the `pyproject.toml` of your package:
#
# ```toml
# [project.entry-points."lsm_probe.probes"]
# shift = "my_package.my_module:PROBE"
# ```
#
# Here we run it from Python, as the command does. An interrupted run continues with `resume=True`.

# %%
samples = lsm_probe.read_manifest("builtin:commands")[:12]
out = Path(mkdtemp()) / "shift"
names = ("builtin:vanilla_asr", "builtin:self_powered")
checkpoints = [lsm_probe.named_checkpoint(name, {"device": "cpu"}) for name in names]
results, comparison = lsm_probe.run_measurement(PROBE, checkpoints, samples, out, options={"batch_size": 4})
for result in results:
    print(result.to_frame().round(2).to_string(index=False))
print("difference:", comparison["pairs"][0]["shift_difference"])

# %%
PROBE.make_figures(results)[0]
