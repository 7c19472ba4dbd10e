"""Timelines made without a model."""

import pytest

from lsm_probe.data.identity import DataIdentity
from lsm_probe.models.speech_times import even_times, frame_times
from lsm_probe.probes.timeline.measure import spread_evenly
from lsm_probe.probes.timeline.result import Timeline
from lsm_probe.runner.identity import CheckpointIdentity


@pytest.fixture(scope="session")
def make_timeline():
    """`make_timeline(waveform, norms, **fields)`: speech tokens of one length and frames that lie evenly in them."""

    def make(waveform, norms, **fields):
        times, frames = even_times(norms.shape[2], len(waveform)), frame_times(len(waveform))
        return Timeline(
            checkpoint=CheckpointIdentity(name="made", source="text", template="chat", dtype="float32"),
            data=DataIdentity("data", "x", 1),
            conventions={},
            versions={},
            norms=norms,
            token_times=times,
            shares=spread_evenly(times, frames),
            frame_times=frames,
            words_missing=None,
            self_check={},
            waveform=waveform,
            **fields,
        )

    return make
