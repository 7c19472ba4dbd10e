"""Probes that read attention wait for the device, and upload to it, once a pass and not once a layer."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

import lsm_probe
from lsm_probe.instruments.norms import norm_attention, output_metric, wanted_keys

PLACES = ("instruments/capture.py", "instruments/norms.py", "instruments/self_check.py", "probes/")
SHALLOW, DEEP = 2, 6
RESPONSE = [5, 6, 7, 8]
# For each probe its options, and the most waits and uploads of a pass and operations of a layer. Those of knockout
# include the layer itself, with the prompt and with the response.
PROBES = {
    "attention": (lsm_probe.attention, {}, 2, 3, 60),
    "attention of tokens": (lsm_probe.attention, {"tokens": True}, 3, 3, 60),
    "knockout": (lsm_probe.knockout, {"window": 1, "single_heads": True, "layers": [0]}, 2, 5, 130),
}


@pytest.fixture
def count(tiny_llm_folder, samples, simulated_device):
    """`count(name, layers, number)` measures samples one by one on a model of so many layers: what was counted."""

    def run(name, layers, number):
        probe, options, *_ = PROBES[name]
        with simulated_device() as device:
            checkpoint = lsm_probe.load(tiny_llm_folder, dtype="float32")
            config = deepcopy(checkpoint.model.config)
            config.num_hidden_layers = layers
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval().to(device.name)
            responses = {sample.id: RESPONSE for sample in samples[:number]}
            device.reset()
            probe(replace(checkpoint, model=model), samples[:number], responses=responses, batch_size=1, **options)
        # transformers starts the caches of its layers with empty tensors, which are not counted.
        return [
            sum(number for place, number in events.items() if place.startswith(PLACES) and events.elements[place])
            for events in (device.waits, device.uploads, device.operations)
        ]

    return run


@pytest.mark.parametrize("name", PROBES)
def test_a_pass_waits_and_uploads_no_more_often_where_there_are_more_layers(name, count):
    def count_pass(layers):  # what a sample more adds
        return [more - one for more, one in zip(count(name, layers, 2), count(name, layers, 1), strict=True)]

    *_, most_waits, most_uploads, most_operations = PROBES[name]
    waits, uploads, operations = count_pass(SHALLOW)
    deep_waits, deep_uploads, deep_operations = count_pass(DEEP)
    assert (deep_waits, deep_uploads) == (waits, uploads)
    assert 0 < waits <= most_waits
    assert uploads <= most_uploads
    assert (deep_operations - operations) / (DEEP - SHALLOW) <= most_operations


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (32, 8)])
def test_the_norms_of_a_large_batch_are_few_operations(heads, kv_heads, simulated_device):
    batch, keys, rows, width = 8, 900, 2, 8
    with torch.no_grad(), simulated_device() as device:
        alpha = torch.rand(batch, heads, rows, keys, device=device.name)
        value = torch.rand(batch, kv_heads, keys, width, device=device.name)
        metric = output_metric(torch.rand(heads, width, 4, device=device.name), kv_heads)
        row_weight = torch.rand(batch, rows, device=device.name)
        key_mask = torch.ones(batch, keys, dtype=torch.bool)
        key_mask[0, -5:] = False
        wanted = wanted_keys(key_mask).to(device.name)
        device.reset()
        norm_attention(alpha, value, metric, row_weight, wanted)
    assert sum(device.waits.values()) == sum(device.uploads.values()) == 0
    assert sum(device.operations.values()) <= 40
