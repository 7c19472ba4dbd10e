"""Samples for the probes: short synthetic speech with transcripts, instructions and references."""

import numpy as np
import pytest
import soundfile

from lsm_probe.data.sample import Sample

TEXTS = [
    "the quick brown fox jumps over the lazy dog",
    "rain falls softly on the old town",
    "she sells sea shells by the sea shore and nobody knows how many she has sold this year",
    "green",
    "the forest in early spring reminds me of my favourite colour",
    "nobody knows",
    "the lazy dog sells shells",
    "he has sold many this year while rain falls on the sea shore of the old town",
]
INSTRUCTIONS = ["Translate the speech into German.", "Write down what the speaker says, and repeat it twice."]


@pytest.fixture(scope="session")
def samples(tmp_path_factory, waveform):
    """Eight utterances of 0.3 to 5 s, under two instructions in turn."""
    folder = tmp_path_factory.mktemp("speech")
    made = []
    for i, text in enumerate(TEXTS):
        path = folder / f"{i}.wav"
        soundfile.write(path, waveform(np.linspace(0.3, 5, len(TEXTS))[i], seed=i), 16_000)
        made.append(
            Sample(id=f"s{i}", instruction=INSTRUCTIONS[i % 2], audio=path, text=text, target=text[:20], task="test")
        )
    return made
