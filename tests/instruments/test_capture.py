"""Capturing attention in whole models: exact, invisible to the model, and refusing what it cannot measure."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lsm_probe.errors import InputError
from lsm_probe.instruments import capture as capture_module
from lsm_probe.instruments.capture import capture
from lsm_probe.instruments.norms import norm_attention

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
    "multi-head with value bias": lambda: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=6, **SIZE)),
    "grouped with value bias": lambda: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=3, **SIZE)),
    "output bias": lambda: LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, attention_bias=True, **SIZE)),
    "conv1d": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZE)),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=4, **SIZE)),
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


def measured(model, inputs, rows=ROWS):
    """A_j of each layer, `[layers, batch, keys]`, its heads, the logits and the capture."""
    found = []

    def visit(layer):
        found.append(
            norm_attention(
                layer.alpha, layer.value, layer.metric, REAL / REAL.sum(1, True), inputs["attention_mask"] > 0
            )
        )

    with torch.no_grad(), capture(model) as captured, captured.at_rows(rows, REAL, visit):
        logits = model(**inputs).logits
    return torch.stack([a for a, _ in found]), torch.stack([h for _, h in found]), logits, captured


def additive_mask(model, inputs):
    """Causal, within the window, no padding; written out. A row of padding sees itself, so that it stays finite."""
    step = torch.arange(15)
    seen = (step <= step[:, None]) & (step > step[:, None] - (getattr(model.config, "sliding_window", None) or 15))
    seen = (seen & (inputs["attention_mask"] > 0)[:, None]) | torch.eye(15, dtype=torch.bool)
    return torch.zeros(2, 1, 15, 15, dtype=torch.float64).masked_fill(~seen[:, None], -1e9)


def reference(model, inputs):
    """The same by brute force: a float64 copy with eager attention, the equation written out over values caught
    at the value projection."""
    config = model.config
    double = type(model)(config).double().eval()
    double.load_state_dict(model.state_dict())
    double.set_attn_implementation("eager")
    values, hooks = {}, []
    for name, module in double.named_modules():
        if name.endswith("v_proj"):
            hooks.append(module.register_forward_hook(lambda m, i, o, n=name: values.__setitem__(n, o)))
        if name.endswith("c_attn"):
            hooks.append(module.register_forward_hook(lambda m, i, o, n=name: values.__setitem__(n, o.chunk(3, -1)[2])))
    with torch.no_grad():
        attentions = double(
            input_ids=inputs["input_ids"], attention_mask=additive_mask(model, inputs), output_attentions=True
        ).attentions
    layers = []
    for (name, value), attention in zip(values.items(), attentions, strict=True):
        parent = double.get_submodule(name.rpartition(".")[0])
        w_o = parent.o_proj.weight.T if hasattr(parent, "o_proj") else parent.c_proj.weight
        heads = attention.shape[1]
        width = w_o.shape[0] // heads
        value = value.view(2, 15, -1, width)
        total = torch.zeros(2, 3, 15, w_o.shape[1], dtype=torch.float64)
        for h in range(heads):
            f = value[:, :, h * value.shape[2] // heads] @ w_o[h * width : (h + 1) * width]
            alpha = torch.stack([attention[b, h, ROWS[b]] for b in range(2)])
            total += alpha[..., None] * f[:, None]
        layers.append(total.norm(dim=-1).mean(1) * inputs["attention_mask"])
    return torch.stack(layers)


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_equals_brute_force_in_float64(name, padding):
    model, inputs = build(name), batch(padding)
    a, _, _, _ = measured(model, inputs)
    expected = reference(model, inputs)
    torch.testing.assert_close(a.double(), expected, rtol=1e-5, atol=1e-9)
    assert expected.count_nonzero() > 30


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_bit_identical_with_the_probe_on_and_off(name):
    model = build(name)
    for padding in ("none", "right", "left"):
        inputs = batch(padding)
        with torch.no_grad():
            plain = model(**inputs).logits
        assert torch.equal(measured(model, inputs)[2], plain)


def test_the_self_check_reports_every_real_row_of_every_layer():
    captured = measured(build("grouped"), batch("none"))[3]
    errors = captured.errors_by_sample()
    assert [tuple(e.shape) for e in errors] == [(3, 3), (3, 3)]
    assert 0 < max(e.max() for e in errors) < 1e-5


def test_half_precision_is_held_to_its_own_rounding():
    model = build("grouped").to(torch.bfloat16)
    captured = measured(model, batch("right"))[3]
    worst = max(e.max() for e in captured.errors_by_sample())
    assert 1e-5 < worst < 2e-2


def test_a_lora_adapter_on_the_output_projection_counts():
    model = build("grouped")
    adapted = get_peft_model(model, LoraConfig(target_modules=["o_proj"], r=4, init_lora_weights=False)).eval()
    through_adapter = measured(adapted.base_model.model, batch("none"))[0]
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(through_adapter, measured(merged, batch("none"))[0], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(through_adapter, measured(build("grouped"), batch("none"))[0], rtol=1e-2)


def refused(model, match, inputs=None):
    with pytest.raises(InputError, match=match) as info:
        measured(model, inputs or batch("none"))
    assert "\n" not in str(info.value)
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class GatedProjection(nn.Linear):
    """An output gate between alpha v and W_O, as Qwen3-Next has one."""

    def forward(self, x):
        return super().forward(x * torch.sigmoid(x.mean(-1, keepdim=True)))


def test_a_gate_before_the_output_projection_is_refused():
    model = build("grouped")
    attention = model.model.layers[1].self_attn
    gated = GatedProjection(48, 48, bias=False)
    gated.load_state_dict(attention.o_proj.state_dict())
    attention.o_proj = gated
    refused(model, r"layer 1 \(model.layers.1.self_attn\).*do not reproduce its output")


@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_a_wrong_head_map_is_refused(padding, monkeypatch):
    honest = capture_module.recompose
    monkeypatch.setattr(capture_module, "recompose", lambda alpha, value, *rest: honest(alpha, value.flip(1), *rest))
    refused(build("grouped"), r"layer 0 .*do not reproduce its output", batch(padding))


def test_a_missing_mask_is_refused(monkeypatch):
    honest = capture_module.attention_weights
    monkeypatch.setattr(
        capture_module,
        "attention_weights",
        lambda *args, **kwargs: honest(*args, **{**kwargs, "mask": None, "causal": False}),
    )
    refused(build("grouped"), r"layer 0 .*do not reproduce its output", batch("left"))


def test_an_attention_that_scales_its_scores_in_secret_is_refused(monkeypatch):
    monkeypatch.setattr(
        capture_module,
        "sdpa_attention_forward",
        lambda module, query, *args, **kwargs: sdpa_attention_forward(module, query * 1.01, *args, **kwargs),
    )
    refused(build("grouped"), r"layer 0 .*do not reproduce its output")


def test_a_norm_after_attention_is_refused_by_name():
    torch.manual_seed(0)
    model = Olmo2ForCausalLM(Olmo2Config(num_key_value_heads=6, pad_token_id=0, **SIZE)).eval()
    refused(model, r"passes through model.layers.0.post_attention_layernorm before the residual stream")


def test_a_softcap_is_refused_by_name(monkeypatch):
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(num_key_value_heads=2, head_dim=8, **SIZE)).eval()
    with pytest.raises(InputError, match=r"cannot run sdpa attention|softcap"):
        measured(model, batch("none"))
    monkeypatch.setattr(Gemma2ForCausalLM, "_supports_sdpa", True)
    monkeypatch.setattr(type(model.model), "_supports_sdpa", True)
    model.set_attn_implementation("sdpa")
    refused(model, "layer 0 .*softcap")


def test_another_attention_implementation_is_refused():
    model = build("grouped")
    model.set_attn_implementation("eager")
    with pytest.raises(InputError, match="runs attn_implementation='eager'"):
        measured(model, batch("none"))


def test_an_attention_that_bypasses_the_interface_is_refused(monkeypatch):
    model = build("grouped")
    attention = model.model.layers[2].self_attn
    monkeypatch.setattr(attention, "forward", lambda hidden_states, **_: (hidden_states, None))
    refused(model, r"layer 2 .*does not go through transformers' attention interface")


def test_training_mode_is_refused():
    model = build("grouped").train()
    refused(model, "training mode")


def test_an_error_in_the_visitor_leaves_the_model_as_it_was():
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
