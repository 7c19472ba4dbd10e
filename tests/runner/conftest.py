"""Results with random numbers, made without a model."""

import numpy as np
import pytest

from lsm_probe.data.identity import DataIdentity
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.probes.knockout.result import KnockoutConventions, KnockoutResult
from lsm_probe.runner.identity import CheckpointIdentity

CHECKPOINT = CheckpointIdentity(name="first", source="speech", template="chat", dtype="float32")


def common(n, **fields):
    samples = [{"id": f"s{i}", "response_ids": [i, 2]} for i in range(n)]
    about = {"checkpoint": CHECKPOINT, "data": DataIdentity("data", "abc", n), "self_check": {}}
    return {"clusters": np.arange(n), "samples": samples, **about, **fields}


@pytest.fixture(scope="session")
def attention_result():
    """`attention_result(n=..., layers=..., heads=..., **fields)`: a result, the same for the same arguments."""

    def make(n=12, layers=6, heads=3, **fields):
        rng = np.random.default_rng(0)
        head_norms = rng.gamma(2, size=(n, layers, heads, 5)).astype(np.float32)
        fields = {"tokens": rng.integers(3, 9, size=(n, 5)), "conventions": Conventions(), **fields}
        rows = np.ones(n, dtype=int)
        return AttentionResult(norms=head_norms.sum(2), head_norms=head_norms, rows=rows, **common(n, **fields))

    return make


@pytest.fixture(scope="session")
def knockout_result():
    """`knockout_result(fall_heads, head_layers, layers)`: with the given falls of single heads, `[n, 2, layers,
    heads]`."""

    def make(fall_heads, head_layers, layers):
        n = len(fall_heads)
        return KnockoutResult(
            log_prob=np.zeros(n, np.float32),
            fall=np.random.default_rng(0).normal(size=(n, 2, layers)).astype(np.float32),
            fall_all_layers=np.zeros((n, 2), np.float32),
            fall_heads=fall_heads.astype(np.float32),
            head_layers=head_layers,
            **common(n, conventions=KnockoutConventions()),
        )

    return make
