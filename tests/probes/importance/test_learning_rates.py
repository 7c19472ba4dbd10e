"""Learning rates by layer: the formula, and a file that says what it was made from."""

import math

import numpy as np
import pytest
import yaml

import lsm_probe
from lsm_probe.data.identity import DataIdentity
from lsm_probe.errors import InputError
from lsm_probe.probes.importance.learning_rates import check_strength, layer_rates, write_rates
from lsm_probe.probes.importance.result import ImportanceConventions, ImportanceResult
from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.training.config import Stage


def made(profile, signed=None):
    """A result of two samples whose layers have this importance, and norms and embeddings much more."""
    parameters, sums = [], []
    for layer, value in enumerate(profile):
        for module, shape, share in (("q_proj", [4, 4], 0.25), ("up_proj", [8, 2], 0.75), ("norm", [4], 100)):
            parameters.append({"name": f"layers.{layer}.{module}", "layer": layer, "module": module, "shape": shape})
            sums.append(value * share)
    parameters.append({"name": "embed_tokens.weight", "layer": None, "module": "embed_tokens", "shape": [9, 4]})
    sums.append(1e6)
    return ImportanceResult(
        sums=np.array([sums, sums]) * np.array([[0.5], [1.5]]),
        parameters=parameters,
        not_trained={},
        clusters=np.arange(2),
        samples=[{"id": f"s{i}", "response_ids": [2]} for i in range(2)],
        checkpoint=CheckpointIdentity(name="llm", source="text", template="chat", dtype="float32"),
        data=DataIdentity("data", "abc", 2),
        conventions=ImportanceConventions(modality="text"),
        signed=None if signed is None else np.array(signed),
    )


@pytest.mark.parametrize("strength", [0, 0.4, 0.9])
def test_rates_fall_with_a_layers_importance(strength):
    profile = [3.0, 7.0, 1.0, 5.0]
    expected = [1 - strength * (value - 1) / 6 for value in profile]
    assert layer_rates(made(profile), strength) == pytest.approx(expected, abs=1e-6)


def test_the_least_important_layer_learns_at_the_base_rate_and_the_most_important_one_slowest():
    rates = layer_rates(made([2, 8, 4]), 0.4)
    assert (rates[0], rates[1]) == (1.0, 0.6)
    assert 0.6 < rates[2] < 1.0


def test_the_scale_of_importance_does_not_matter():
    assert layer_rates(made([2e6, 8e6, 4e6]), 0.4) == layer_rates(made([2e-6, 8e-6, 4e-6]), 0.4)


def test_signed_importance_makes_rates_too():
    signed = np.ones(10)
    signed[[1, 4, 7]] = [3, 1, 2]  # the up projections
    assert layer_rates(made([1, 2, 3], signed), 0.4) == pytest.approx([0.6, 1, 0.8])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_importance_slows_no_layer(value):
    assert layer_rates(made([value] * 4), 0.4) == [1.0] * 4


@pytest.mark.parametrize("strength", [-0.1, 1, 1.5, math.nan, math.inf])
def test_a_strength_out_of_range_is_refused(strength, tmp_path):
    for refused in (
        lambda: check_strength(strength),
        lambda: layer_rates(made([1, 2]), strength),
        lambda: write_rates(made([1, 2]), strength, tmp_path / "rates.yaml"),
    ):
        with pytest.raises(InputError, match=rf"--strength {strength} is out of range"):
            refused()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strength", [0.0, 0.4, 0.999, 0.9999999])
def test_any_strength_that_is_taken_makes_rates_that_training_takes(strength, tmp_path):
    try:
        write_rates(made([1, 5, 3]), strength, tmp_path / "rates.yaml")
    except InputError:  # or it is not taken
        assert strength > 0.999
        return
    stage = Stage(strategy="layerwise_lr", layer_rates=tmp_path / "rates.yaml")
    assert stage.layer_rates == layer_rates(made([1, 5, 3]), strength)
    assert min(stage.layer_rates) > 0


def test_the_file_holds_the_rates_and_what_they_were_made_from(tmp_path):
    result = made([1, 5, 3])
    write_rates(result, 0.4, tmp_path / "new" / "rates.yaml")
    stored = yaml.safe_load((tmp_path / "new" / "rates.yaml").read_text())
    assert stored == {
        "rates": [1.0, 0.6, 0.8],
        "strength": 0.4,
        "importance": {
            "checkpoint": "llm",
            "data": {"name": "data", "sha256": "abc", "n_samples": 2},
            "conventions": {"mode": "abs", "modality": "text", "response": "reference"},
            "n_samples": 2,
        },
    }


def test_rates_of_a_run_are_those_of_its_layers(tiny_llm, samples):
    result = lsm_probe.importance(tiny_llm, samples[:2], modality="text")
    importance = result.by_layer().mean
    rates = layer_rates(result, 0.4)
    assert len(rates) == 3
    assert rates[int(importance.argmax())] == 0.6
    assert rates[int(importance.argmin())] == 1.0
