"""A model over all GPUs, and over the CPU where it does not fit: what attention keeps is counted too."""

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from transformers import MambaConfig, MambaForCausalLM

import lsm_probe
from lsm_probe.instruments import capture
from lsm_probe.models.devices import dispatch_over_gpus, is_offloaded

QUICK = {"response": "reference", "batch_size": 2}
KEPT = 3 * 4 * (2 * 6 + 2 * 9) * 8**2  # bytes: 3 layers of 2 groups of 3 heads, 6 pairs inside and 9 with the other
PROBES = {
    "attention": (lsm_probe.attention, {"max_new_tokens": 4, "tokens": True}),
    "alignment": (lsm_probe.alignment, {"batch_size": 4, "perplexity": 2.0}),
    "knockout": (lsm_probe.knockout, {**QUICK, "single_heads": True}),
    "sensitivity": (lsm_probe.sensitivity, {**QUICK, "instructions": lsm_probe.read_pool("probing")}),
    "importance": (lsm_probe.importance, {**QUICK, "mode": "signed"}),
}


@pytest.fixture
def made(monkeypatch):
    """The bytes of the products of output projections, in the order they are made in."""
    sizes, output_metric = [], capture.output_metric

    def note(w_o, kv_heads):
        metric = output_metric(w_o, kv_heads)
        sizes.append(metric.own.nbytes + metric.others.nbytes)
        return metric

    monkeypatch.setattr(capture, "output_metric", note)
    return sizes


def lay(model):
    """Over two GPUs, so that what follows in the model's run mostly lies on the other one."""
    llm = "language_model"
    first = ("multi_modal_projector", f"{llm}.model.embed_tokens", f"{llm}.model.rotary_emb", f"{llm}.model.layers.0")
    second = ("audio_tower", *(f"{llm}.model.layers.{i}" for i in (1, 2)), f"{llm}.model.norm", f"{llm}.lm_head")
    dispatch_model(model, {**dict.fromkeys(first, 0), **dict.fromkeys(second, 1)}, main_device="cuda:0")


def untied(folder, device):
    """The LSM; its head has weights of its own, so that it can lie elsewhere than the embeddings."""
    checkpoint = lsm_probe.load(folder, device=device, dtype="float32")
    head = checkpoint.llm.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    return checkpoint


def layers_off_the_gpus(checkpoint):
    return sum(is_offloaded(layer) for layer in checkpoint.llm.model.layers)


@pytest.mark.parametrize("name", PROBES)
def test_an_lsm_over_two_gpus_gives_the_numbers_of_the_cpu(
    name, tiny_lsm_folder, samples, simulated_device, assert_close
):
    probe, options = PROBES[name]
    samples = samples[: 5 if name == "alignment" else 2]
    expected = probe(untied(tiny_lsm_folder, "cpu"), samples, **options)
    with simulated_device(count=2):
        checkpoint = untied(tiny_lsm_folder, "cpu")
        lay(checkpoint.model)
        found = probe(checkpoint, samples, **options)
    for key, values in expected._arrays().items():
        assert_close(found._arrays()[key], values)


def test_spread_takes_all_gpus(tiny_llm_folder, samples, simulated_device, assert_close):
    expected = lsm_probe.attention(lsm_probe.load(tiny_llm_folder, device="cpu"), samples[:2], **QUICK)
    with simulated_device(count=2):
        checkpoint = lsm_probe.load(tiny_llm_folder, device="spread", dtype="float32")
        assert {parameter.device.index for parameter in checkpoint.model.parameters()} == {0, 1}
        found = lsm_probe.attention(checkpoint, samples[:2], **QUICK)
    assert_close(found.norms, expected.norms)


def test_spread_leaves_no_parameter_of_an_lsm_behind(tiny_lsm_folder, samples, simulated_device, assert_close):
    expected = lsm_probe.attention(lsm_probe.load(tiny_lsm_folder, device="cpu"), samples[:2], **QUICK)
    with simulated_device(count=2):
        checkpoint = lsm_probe.load(tiny_lsm_folder, device="spread", dtype="float32")
        assert {parameter.device.type for parameter in checkpoint.model.parameters()} == {"cuda"}
        found = lsm_probe.attention(checkpoint, samples[:2], **QUICK)
    assert_close(found.norms, expected.norms)


def test_a_model_without_attention_is_spread_too(simulated_device):
    with simulated_device(count=2):
        model = MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=4)).eval()
        dispatch_over_gpus(model)
        assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}


def test_what_attention_keeps_is_counted(tiny_llm_folder, tiny_llm, simulated_device):
    weights = sum(parameter.nbytes for parameter in tiny_llm.model.parameters())
    layer = sum(parameter.nbytes for parameter in tiny_llm.llm.model.layers[0].parameters())
    assert 0.05 * weights < KEPT
    # A tenth is left free, and accelerate leaves room for a layer.
    for memory, off in ((1.12 * (weights + KEPT) + layer, 0), (1.12 * weights, 1)):
        with simulated_device(count=1, memory=int(memory)):
            assert layers_off_the_gpus(lsm_probe.load(tiny_llm_folder, device="spread", dtype="float32")) >= off


def test_of_layers_that_are_off_the_gpu_nothing_is_kept(tiny_llm_folder, samples, simulated_device, made):
    expected = lsm_probe.attention(lsm_probe.load(tiny_llm_folder, device="cpu"), samples[:4], **QUICK)
    made.clear()
    with simulated_device(count=1, memory=300_000):
        checkpoint = lsm_probe.load(tiny_llm_folder, device="spread", dtype="float32")
        off = layers_off_the_gpus(checkpoint)
        assert 0 < off < 3
        found = lsm_probe.attention(checkpoint, samples[:4], **QUICK)
    assert len(made) == (3 - off) + 2 * off  # two batches
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-5)


@pytest.mark.parametrize("free", [0.05, 0.5])
def test_products_are_kept_where_a_tenth_of_the_memory_stays_free(
    tiny_llm_folder, samples, simulated_device, made, monkeypatch, free
):
    expected = lsm_probe.attention(lsm_probe.load(tiny_llm_folder, device="cpu"), samples[:4], **QUICK)
    made.clear()
    with simulated_device():
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(free * 1000), 1000))
        checkpoint = lsm_probe.load(tiny_llm_folder, dtype="float32")
        found = lsm_probe.attention(checkpoint, samples[:4], **QUICK)
    assert len(made) == (3 if free > 0.1 else 6)
    assert sum(made[:3]) == KEPT
    np.testing.assert_allclose(found.norms, expected.norms, rtol=1e-5)
