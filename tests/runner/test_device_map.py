"""Weights that are on a device only while their layer runs, and the division of layers among devices."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models import devices as device_map

CPU = torch.device("cpu")
QUICK = {"max_new_tokens": 4, "batch_size": 4}
PROBES = {
    "attention": (lsm_probe.attention, {**QUICK, "max_new_tokens": 10, "tokens": True}),
    "sensitivity": (lsm_probe.sensitivity, QUICK),
    "knockout": (lsm_probe.knockout, {**QUICK, "single_heads": True}),
    "alignment": (lsm_probe.alignment, {**QUICK, "perplexity": 2.0}),
    "importance": (lsm_probe.importance, QUICK),
}


def load(folder):
    """The model; its head has its own weights, so that it can be on another device than the embeddings."""
    checkpoint = lsm_probe.load(folder, device="cpu", dtype="float32")
    head = checkpoint.llm.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return checkpoint


@pytest.fixture(scope="module")
def six_samples(samples):
    """Six samples, each instruction a separate task."""
    return [sample.model_copy(update={"task": None}) for sample in samples[:6]]


@pytest.fixture(scope="module")
def in_place(tiny_lsm_folder, six_samples):
    return {name: probe(load(tiny_lsm_folder), six_samples, **options) for name, (probe, options) in PROBES.items()}


def assert_same(result, expected):
    assert result.samples == expected.samples
    for name in expected.BY_SAMPLE:
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=1e-6, atol=1e-6)


# Off the devices


def offload(model, kind, folder):
    if kind == "memory":
        cpu_offload(model, execution_device="cpu")
    elif kind == "disk":
        disk_offload(model, folder, execution_device="cpu")
    else:  # every other layer
        places = {f"language_model.model.layers.{i}": ("disk", "cpu")[i % 2] for i in range(3)}
        parts = ("embed_tokens", "norm", "rotary_emb")
        places |= {f"language_model.model.{part}": "cpu" for part in parts} | {"language_model.lm_head": "cpu"}
        places |= {"audio_tower": "disk", "multi_modal_projector": "cpu"}
        dispatch_model(model, places, main_device="cpu", offload_dir=folder)


@pytest.mark.parametrize("kind", ["memory", "disk", "some layers"])
@pytest.mark.parametrize("name", [name for name in PROBES if name != "importance"])
def test_offloaded_weights_give_the_same_results(tiny_lsm_folder, six_samples, in_place, tmp_path, name, kind):
    checkpoint = load(tiny_lsm_folder)
    offload(checkpoint.model, kind, tmp_path)
    assert device_map.is_offloaded(checkpoint.model)
    probe, options = PROBES[name]
    assert_same(probe(checkpoint, six_samples, **options), in_place[name])


@pytest.mark.parametrize("kind", ["memory", "disk", "some layers"])
def test_importance_refuses_weights_without_gradients(tiny_lsm_folder, six_samples, tmp_path, kind):
    checkpoint = load(tiny_lsm_folder)
    offload(checkpoint.model, kind, tmp_path)
    with pytest.raises(InputError, match="get no gradients: use more GPUs"):
        lsm_probe.importance(checkpoint, six_samples, **QUICK)


# The split


@pytest.fixture
def split(monkeypatch):
    """`split(model, {0: bytes, 1: bytes})`: the device map of a model on GPUs of these sizes."""

    def made(model, sizes):
        found = {}
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr(device_map, "get_balanced_memory", lambda model, **_: {**sizes, "cpu": 0})
        monkeypatch.setattr(device_map, "dispatch_model", lambda model, places, **_: found.update(places))
        device_map.dispatch_over_gpus(model)
        return found

    return made


def test_whole_layers_are_placed_on_gpus_and_the_rest_stays_on_the_cpu(tiny_lsm, split):
    layers = tiny_lsm.llm.model.layers
    size = sum(parameter.numel() * 4 for parameter in layers[0].parameters())
    rest = sum(parameter.numel() * 4 for parameter in tiny_lsm.model.parameters()) - 3 * size
    places = split(tiny_lsm.model, {0: rest + size, 1: 2 * size})
    assert set(places.values()) == {0, 1, "cpu"}
    inside = [name for name in places if name.startswith("language_model.model.layers.")]
    assert inside
    assert all(name.count(".") == 3 for name in inside)


def test_without_gpus_a_model_is_not_changed(tiny_lsm_folder, tiny_lsm):
    checkpoint = lsm_probe.load(tiny_lsm_folder, device="spread")
    assert device_map.input_device(checkpoint.model) == CPU
    for mine, theirs in zip(checkpoint.model.parameters(), tiny_lsm.model.parameters(), strict=True):
        assert mine.equal(theirs)


def test_several_processes_are_refused_in_one_line(tiny_lsm_folder, monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="start a single process"):
        lsm_probe.load(tiny_lsm_folder, device="spread")
