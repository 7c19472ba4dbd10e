"""Results of the attention probe with a curve of one's choice, made without a model."""

import json
from dataclasses import replace

import numpy as np
import pytest

from lsm_probe.data.identity import DataIdentity
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.runner.identity import CheckpointIdentity

CURVE = np.linspace(0.8, 0.3, 6)
UTTERANCES = 24


def scatter(seed=0, utterances=UTTERANCES, size=0.05):
    """Eta of each utterance, `[utterances, layers]`, about `CURVE` on average."""
    return CURVE + np.random.default_rng(seed).uniform(-size, size, (utterances, len(CURVE)))


def with_eta(eta, **changes):
    """A result with this eta by sample and layer, `[samples, layers]`, under `sum_then_norm` and `mean`."""
    samples, layers = eta.shape
    tokens = np.tile([8, 6, 10, 30, 1], (samples, 1))
    norms = np.ones((samples, layers, 5))
    norms[..., 2], norms[..., 3] = eta * tokens[0, 2], (1 - eta) * tokens[0, 3]
    fields = {
        "norms": norms,
        "head_norms": np.repeat(norms[:, :, None], 2, axis=2),
        "tokens": tokens,
        "rows": np.full(samples, 5),
        "clusters": np.arange(samples),
        "samples": [{"id": f"s{i}", "response_ids": [i, 2]} for i in range(samples)],
        "checkpoint": CheckpointIdentity(name="model", source="speech", template="chat", dtype="float32"),
        "data": DataIdentity("clips", "abc", samples),
        "conventions": Conventions(response="reference"),
        "self_check": {"backend": "native"},
    }
    return AttentionResult(**{**fields, **changes})


def edit(folder, **changes):
    """Changes a saved `result.json`: `data__sha256="x"` is `["data"]["sha256"]`; None takes the key out."""
    content = json.loads((folder / "result.json").read_text())
    for key, value in changes.items():
        *parents, last = key.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
        if value is None:
            del place[last]
    (folder / "result.json").write_text(json.dumps(content))
    return folder


# `tests` is not a package to import from.


@pytest.fixture(name="scatter")
def scatter_fixture():
    return scatter


@pytest.fixture(name="with_eta")
def with_eta_fixture():
    return with_eta


@pytest.fixture(name="edit")
def edit_fixture():
    return edit


@pytest.fixture
def baseline():
    """The result that is held."""
    return with_eta(scatter())


@pytest.fixture
def pair(tmp_path, baseline):
    """`pair(current, **flags)`: folders of the baseline and of another result."""

    def save(current=None, **changes):
        current = replace(current or baseline, **changes)
        return baseline.save(tmp_path / "baseline"), current.save(tmp_path / "current")

    return save
