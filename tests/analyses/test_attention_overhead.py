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
    sys.path.insert(0, str(PATH.parent))  # as for a script of this folder
    spec = importlib.util.spec_from_file_location("attention_overhead_methods", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(PATH.parent))
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


def test_random_weights_of_a_shape_give_the_same_sums_too(methods, tiny_llm_folder, tmp_path):
    from shapes import save_shape

    save_shape("tiny", 2, 64, tiny_llm_folder, tmp_path)
    inputs = methods.make_inputs(tmp_path, TOKENS, "cpu", ROWS)

    @torch.no_grad()
    def sums(name, dtype):
        method = methods.METHODS[name]
        return method.run(method.prepare(methods.load(tmp_path, dtype, "cpu"), tmp_path), inputs).sums

    torch.testing.assert_close(sums("probe", torch.float32).double(), sums("eager", torch.float64), rtol=1e-4, atol=0)
