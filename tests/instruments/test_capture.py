"""Capturing attention in whole models: the self-check, adapters, and refusals that do not depend on the model.

`test_families.py` compares the values with brute force for each family.
"""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lsm_probe.errors import InputError
from lsm_probe.instruments import capture as capture_module
from lsm_probe.instruments.capture import capture
from lsm_probe.instruments.norms import norm_attention, wanted_keys

SIZE = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "vocab_size": 120,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT2_SIZE = {"n_embd": 48, "n_layer": 3, "n_head": 6, "vocab_size": 120, "bos_token_id": 1, "eos_token_id": 2}
MODELS = {
    "grouped": lambda: LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **SIZE)),
    "conv1d": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZE)),
}
ROWS = torch.tensor([[10, 11, 12], [9, 11, 13]])
REAL = torch.ones(2, 3, dtype=torch.bool)


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at zero, which would hide mistakes about them
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def batch(padding):
    ids = torch.randint(0, 120, (2, 15), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 15, dtype=torch.long)
    if padding == "right":
        mask[0, 13:] = 0
    if padding == "left":
        mask[0, :4] = 0
    return {"input_ids": ids, "attention_mask": mask}


def measured(model, inputs):
    """A_j of each layer, `[layers, batch, keys]`, its heads, the logits and the capture."""
    found = []

    def visit(layer):
        weights, keys = REAL / REAL.sum(1, True), wanted_keys(inputs["attention_mask"] > 0)
        found.append(norm_attention(layer.alpha, layer.value, layer.metric, weights, keys))

    with torch.no_grad(), capture(model) as captured, captured.at_rows(ROWS, REAL, visit):
        logits = model(**inputs).logits
    return torch.stack([a for a, _ in found]), torch.stack([h for _, h in found]), logits, captured


def test_the_self_check_covers_every_row_of_every_layer():
    captured = measured(build("grouped"), batch("none"))[3]
    errors = captured.errors_by_sample()
    assert [tuple(e.shape) for e in errors] == [(3, 3), (3, 3)]
    assert 0 < max(e.max() for e in errors) < 1e-5


def test_a_lora_adapter_on_the_output_projection_is_included():
    model = build("grouped")
    adapted = get_peft_model(model, LoraConfig(target_modules=["o_proj"], r=4, init_lora_weights=False)).eval()
    through_adapter = measured(adapted.base_model.model, batch("none"))[0]
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(through_adapter, measured(merged, batch("none"))[0], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(through_adapter, measured(build("grouped"), batch("none"))[0], rtol=1e-2)


def refused(model, match, inputs=None):
    with pytest.raises(InputError, match=match):
        measured(model, inputs or batch("none"))
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_a_wrong_head_map_is_refused(padding, monkeypatch):
    original = capture_module.recompose
    monkeypatch.setattr(capture_module, "recompose", lambda alpha, value, *rest: original(alpha, value.flip(1), *rest))
    refused(build("grouped"), r"layer 0 .*do not reproduce its output", batch(padding))


def test_a_missing_mask_is_refused(monkeypatch):
    original = capture_module.attention_weights
    monkeypatch.setattr(
        capture_module,
        "attention_weights",
        lambda *args, **kwargs: original(*args, **{**kwargs, "mask": None, "causal": False}),
    )
    refused(build("grouped"), r"layer 0 .*do not reproduce its output", batch("left"))


def test_an_attention_that_rescales_its_scores_is_refused(monkeypatch):
    monkeypatch.setattr(
        capture_module,
        "sdpa_attention_forward",
        lambda module, query, *args, **kwargs: sdpa_attention_forward(module, query * 1.01, *args, **kwargs),
    )
    refused(build("grouped"), r"layer 0 .*do not reproduce its output")


def test_another_attention_implementation_is_refused():
    model = build("grouped")
    model.set_attn_implementation("eager")
    with pytest.raises(InputError, match="runs attn_implementation='eager'"):
        measured(model, batch("none"))


def test_training_mode_is_refused():
    model = build("grouped").train()
    refused(model, "training mode")


def test_the_model_is_restored_after_an_error_in_the_visitor():
    model, inputs = build("grouped"), batch("none")
    with torch.no_grad():
        plain = model(**inputs).logits

    def visit(layer):
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        torch.no_grad(),
        capture(model) as captured,
        captured.at_rows(ROWS, REAL, visit),
    ):
        model(**inputs)
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, plain)


def test_other_models_running_inside_the_block_are_not_captured():
    model, other, inputs = build("grouped"), build("conv1d"), batch("none")
    seen = []
    with torch.no_grad(), capture(model) as captured, captured.at_rows(ROWS, REAL, seen.append):
        other(**inputs)
        model(**inputs)
    assert [layer.layer for layer in seen] == [0, 1, 2]
