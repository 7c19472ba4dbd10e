"""A second opinion on the probe: other libraries, other code, the same numbers, on a tiny random Llama."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

PATH = Path(__file__).parents[2] / "analyses" / "performance" / "methods.py"
TOKENS, ROWS = 72, 24


@pytest.fixture(scope="module")
def methods():
    spec = importlib.util.spec_from_file_location("attention_overhead_methods", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def outcome(methods, tiny_llm_folder):
    """`outcome(name, dtype)` runs one method on a fresh model."""
    inputs = methods.make_inputs(tiny_llm_folder, TOKENS, "cpu", ROWS)

    @torch.no_grad()
    def run(name, dtype=torch.float32):
        method = methods.METHODS[name]
        if not method.installed:
            pytest.skip(f"{method.needs} is not installed")
        prepared = method.prepare(methods.load(tiny_llm_folder, dtype, "cpu"), tiny_llm_folder)
        return method.run(prepared, inputs)

    return run


@pytest.fixture(scope="module")
def reference(outcome):
    """The definition written out, model and all in float64."""
    return outcome("eager", torch.float64)


@pytest.mark.parametrize("name", ["probe", "eager", "eager_summed", "transformer_lens", "nnsight"])
def test_every_method_gives_the_same_sums(outcome, reference, name):
    found = outcome(name)
    assert found.sums.shape == (3, 4)
    torch.testing.assert_close(found.sums.double(), reference.sums, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.logits.double(), reference.logits, rtol=1e-4, atol=1e-4)


def test_the_probe_in_float64_is_the_definition_to_single_precision(outcome, reference):
    # Its sums are stored in float32.
    torch.testing.assert_close(outcome("probe", torch.float64).sums.double(), reference.sums, rtol=1e-6, atol=0)


def test_the_probe_leaves_the_logits_as_they_were(outcome):
    assert torch.equal(outcome("plain").logits, outcome("probe").logits)


def test_the_sums_tell_segments_apart(reference):
    """Otherwise the tests above could not see a segment taken for another."""
    sums = reference.sums.sort(dim=1).values
    assert (sums.diff(dim=1) > 1e-2 * sums[:, 1:]).all()
