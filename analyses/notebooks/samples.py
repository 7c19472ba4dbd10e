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
# # Your own data: from a table or arrays to attention
#
# `lsm_probe.samples` makes samples from a pandas `DataFrame`, waveforms in memory, a Hugging Face `Dataset` or a lhotse
# `CutSet`. You name the columns. Nothing is written to disk, and audio is read only when it is needed.
#
# Here the table lists clips that come with lsm-probe: a path and a transcript.

# %%
import pandas as pd
import soundfile

import lsm_probe

clips = lsm_probe.read_manifest("builtin:commands")[:6:2]
frame = pd.DataFrame({"clip": [str(clip.audio) for clip in clips], "sentence": [clip.text for clip in clips]})
frame[["sentence"]]

# %% [markdown]
# One instruction is used for all samples. A list of instructions is used in turn, and the name of a column works too.

# %%
samples = lsm_probe.samples(
    frame, audio="clip", text="sentence", instruction="Answer with one word: which device is it about?"
)
print(samples[0].id, samples[0].instruction, samples[0].text, sep="\n")

# %% [markdown]
# All further steps are the same as with a manifest. A result is displayed as a line, a table and a figure.

# %%
checkpoint = lsm_probe.load("builtin:self_powered", device="cpu")
attention = lsm_probe.attention(checkpoint, samples, max_new_tokens=8)
attention

# %% [markdown]
# Waveforms in memory give the same numbers, bit for bit. Any sampling rate works.

# %%
waveforms = [soundfile.read(clip.audio) for clip in clips]  # (samples, sampling rate) each
in_memory = lsm_probe.samples(waveforms, instruction="Answer with one word: which device is it about?")
again = lsm_probe.attention(checkpoint, in_memory, max_new_tokens=8)
print("equal:", (again.norms == attention.norms).all())
in_memory[0].audio

# %% [markdown]
# A Hugging Face dataset and lhotse cuts work the same way:
#
# ```python
# data = datasets.load_dataset("audiofolder", data_dir="my-clips", split="train")
# samples = lsm_probe.samples(data, text="transcription", instruction="Write down what the speaker says.")
#
# cuts = lhotse.CutSet.from_file("cuts.jsonl.gz")
# samples = lsm_probe.samples(cuts, instruction="Write down what the speaker says.")
# ```
#
# Data that cannot be used raises an error whose message says what to do:

# %%
try:
    lsm_probe.samples(frame, instruction="Write down what the speaker says.")
except lsm_probe.InputError as error:
    print(error)
