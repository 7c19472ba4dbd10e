"""Every family of decoder-only LMs is measured exactly, or refused with the reason.

Tiny random models of the real classes. The brute force is a float64 copy with the family's own eager attention. Its
attention weights and value tensors, captured while it runs, and the weights of the output projection give the vectors
`alpha v W_O`; their norms are computed one by one.
"""

import json
import re
import sys
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import lsm_probe
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.instruments.capture import capture, find_attention_layers
from lsm_probe.instruments.norms import norm_attention, wanted_keys
from lsm_probe.instruments.scoring import log_probabilities
from lsm_probe.models.audio_llm import check_reads_embeddings
from lsm_probe.models.generation import generate_greedily
from lsm_probe.models.loading import pretrained_model
from lsm_probe.probes.knockout.result import SEGMENTS

LAYERS, TOKENS, VOCABULARY = 4, 15, 120
SIZE = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
LATENT = {  # DeepSeek's multi-head latent attention: a value is wider than a query
    "num_key_value_heads": 6,
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "head_dim": 4,
    "v_head_dim": 16,
    "n_group": 1,
    "topk_group": 1,
}
GPT2 = {"n_embd": 48, "n_layer": LAYERS, "n_head": 6, "n_positions": 64}
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
PHI4_TOWERS = {  # there, though not used
    "vision_config": {**TOWER, "num_hidden_layers": 1, "image_size": 28, "patch_size": 14, "crop_size": 28},
    "audio_config": {
        **TOWER,
        "num_blocks": 1,
        "ext_pw_out_channel": 16,
        "depthwise_separable_out_channel": 16,
        "nemo_conv_channels": 16,
    },
}
WINDOW = {"sliding_window": 4}
LOCAL_AND_FULL = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}

EXACT = {
    "apertus": {},
    "arcee": {},
    "biogpt": {},
    "cohere": {},
    "cohere2": LOCAL_AND_FULL,
    "cohere2_moe": {**EXPERTS, **LOCAL_AND_FULL},
    "cwm": LOCAL_AND_FULL,
    "deepseek_v2": {**EXPERTS, **LATENT, "topk_method": "greedy"},
    "deepseek_v3": {**EXPERTS, **LATENT},
    "deepseek_v32": {**EXPERTS, **LATENT, "index_topk": 4, "index_n_heads": 2, "index_head_dim": 8},
    "doge": {},
    "dots1": {**EXPERTS, "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
    "ernie4_5": {},
    "ernie4_5_moe": {**EXPERTS, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1},
    "exaone_moe": {**EXPERTS, **LOCAL_AND_FULL},
    "flint": {**EXPERTS, **LOCAL_AND_FULL},
    "gemma": {},
    "glm": {},
    "glm4_moe": EXPERTS,
    "glm4_moe_lite": {**EXPERTS, **LATENT},
    "glm_moe_dsa": {**EXPERTS, **LATENT, "index_topk": 4, "index_n_heads": 2, "index_head_dim": 8},
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neox": {},
    "gpt_oss": {**EXPERTS, **LOCAL_AND_FULL},
    "granite": {"residual_multiplier": 0.22, "attention_multiplier": 0.1},
    "granite_swa": {"residual_multiplier": 0.22, **LOCAL_AND_FULL},
    "granitemoe": {**EXPERTS, "residual_multiplier": 0.22},
    "granitemoe_swa": {**EXPERTS, "residual_multiplier": 0.22, **LOCAL_AND_FULL},
    "granitemoehybrid": {
        **EXPERTS,
        "layer_types": ["full_attention"] * LAYERS,
        "residual_multiplier": 0.22,
        "mamba_n_heads": 6,
    },
    "granitemoeshared": {**EXPERTS, "residual_multiplier": 0.22},
    "helium": {},
    "hunyuan_v1_dense": {},
    "hunyuan_v1_moe": EXPERTS,
    "hy_v3": EXPERTS,
    "jais2": {},
    "llama": {},
    "llama4_text": {**EXPERTS, "intermediate_size_mlp": 64, "attention_chunk_size": 4},
    "mellum": EXPERTS,
    "minicpm3": LATENT,
    "minimax_m2": EXPERTS,
    "minimax_m3_vl_text": EXPERTS,
    "ministral": LOCAL_AND_FULL,
    "ministral3": {},
    "mistral": WINDOW,
    "mixtral": {**EXPERTS, **WINDOW},
    "modernbert-decoder": {"local_attention": 4, "global_attn_every_n_layers": 2},
    "nanochat": {},
    "nemotron": {},
    "olmo": {"clip_qkv": 0.05},
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 48},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "phi4_multimodal": {
        **PHI4_TOWERS,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
    },
    "phimoe": EXPERTS,
    "qwen2": {},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3": {**LOCAL_AND_FULL, "use_sliding_window": True},
    "qwen3_moe": EXPERTS,
    "seed_oss": {},
    "smollm3": {},
    "solar_open": EXPERTS,
    "stablelm": {},
    "starcoder2": WINDOW,
    "youtu": LATENT,
}

# Before transformers 5.24 they had their own attention code, and were refused for it.
WITH_THE_INTERFACE_SINCE_5_24 = {
    "codegen": {**GPT2, "num_attention_heads": 4, "n_head": 4, "rotary_dim": 4},
    "gptj": {**GPT2, "rotary_dim": 4},
}
HAVE_THE_INTERFACE = Version(transformers.__version__) >= Version("5.24")
if HAVE_THE_INTERFACE:
    EXACT |= WITH_THE_INTERFACE_SINCE_5_24

# What a layer's attention output is multiplied with on its way: the same for all rows, so it cancels in eta.
MULTIPLIED = {family: 0.22 for family in EXACT if family.startswith("granite")} | {"minicpm3": 1.4 / LAYERS**0.5}

MAMBA = {"mamba_n_heads": 6, "mamba_d_head": 16}
DELTA_NET = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"] * 2}
CONV_AND_FULL = {"layer_types": ["conv", "full_attention"] * 2}
PER_LAYER_INPUT = {
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
}

GATE = "layer 0 .*do not reproduce its output .*such as a gate or a norm$"
POST_NORM = r"layer 0 .*its output passes through model.layers.0.post_\w*norm\w* before the residual stream"
OWN_CODE = "layer 0 .*does not go through transformers' attention interface"
LINEAR = r"has layers of kind linear_attention \(. of 4\), through which tokens exchange information"
REFUSED = {
    "afmoe": (EXPERTS, "layer 0 .*its output passes through .*post_attention_layernorm"),
    "bamba": ({**MAMBA, "attn_layer_indices": [1, 3]}, LINEAR),
    "bitnet": ({}, GATE),
    "bloom": ({"n_layer": LAYERS, "n_head": 6}, OWN_CODE),
    "deepseek_v4": (EXPERTS, "0 attention modules with a known output projection for 4 layers"),
    "diffllama": ({}, "layer 0 .*attends more than once in a pass"),
    "exaone4": (LOCAL_AND_FULL, POST_NORM),
    "falcon": ({"head_dim": None}, OWN_CODE),
    "falcon_h1": ({**MAMBA, "mamba_d_ssm": 96}, r"layers of kind hybrid \(4 of 4\)"),
    "falcon_mamba": ({}, LINEAR),
    "flex_olmo": (EXPERTS, POST_NORM),
    "gemma2": (LOCAL_AND_FULL, "layer 0 .*a softcap on its scores"),
    "gemma3_text": (LOCAL_AND_FULL, POST_NORM),
    "gemma3n_text": ({**LOCAL_AND_FULL, **PER_LAYER_INPUT, "activation_sparsity_pattern": None}, POST_NORM),
    "gemma4_text": (PER_LAYER_INPUT, POST_NORM),
    "glm4": ({}, POST_NORM),
    "gpt_neo": (
        {"num_layers": LAYERS, "num_heads": 6, "attention_types": [[["global", "local"], 2]]},
        "0 attention modules with a known output projection for 4 layers",
    ),
    "granitemoehybrid": ({**EXPERTS, **LINEAR_AND_FULL, **MAMBA}, LINEAR),
    "jamba": ({"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False}, LINEAR),
    "jetmoe": ({"kv_channels": 8}, "0 attention modules with a known output projection for 4 layers"),
    "lfm2": (CONV_AND_FULL, r"layers of kind conv \(2 of 4\)"),
    "lfm2_moe": ({**EXPERTS, **CONV_AND_FULL}, r"layers of kind conv \(2 of 4\)"),
    "mamba": ({}, LINEAR),
    "mamba2": ({"num_heads": 6, "head_dim": 16, "state_size": 8, "chunk_size": 8, "n_groups": 1}, LINEAR),
    "minimax": (EXPERTS, LINEAR),
    "mpt": ({"d_model": 48, "n_heads": 6, "n_layers": LAYERS, "max_seq_len": 64}, OWN_CODE),
    "olmo2": ({}, POST_NORM),
    "olmo3": (LOCAL_AND_FULL, POST_NORM),
    "olmo_hybrid": ({}, LINEAR),
    "openai-gpt": (GPT2, "0 attention modules with a known output projection for 4 layers"),
    "qwen3_5_text": (DELTA_NET, LINEAR),
    "qwen3_next": ({**EXPERTS, **DELTA_NET}, LINEAR),
    "recurrent_gemma": ({}, LINEAR),
    "rwkv": ({}, "0 attention modules with a known output projection for 4 layers"),
    "vaultgemma": ({}, "layer 0 .*a softcap on its scores"),
    "xglm": ({"d_model": 48, "num_layers": LAYERS, "attention_heads": 6, "ffn_dim": 64}, OWN_CODE),
    "zamba": ({"layers_block_type": ["linear_attention", "hybrid"] * 2}, "layers of kind hybrid, linear_attention"),
    "zamba2": (
        {"layers_block_type": ["linear_attention", "hybrid"] * 2, "num_key_value_heads": 6, "n_mamba_heads": 6},
        "layers of kind hybrid, linear_attention",
    ),
}
if not HAVE_THE_INTERFACE:
    REFUSED |= {family: (changes, OWN_CODE) for family, changes in WITH_THE_INTERFACE_SINCE_5_24.items()}


ROOT = Path(__file__).parents[2]


def test_the_page_lists_each_family_once():
    """A family that is refused in some configurations is listed as exact, with the condition."""
    rows = re.findall(r"^\| ([^|]+) \|[^|]*\| (exact|refused)", (ROOT / "docs/families.md").read_text(), re.MULTILINE)
    listed = [(family, kind) for families, kind in rows for family in families.split(", ")]
    exact, refused = listed_families()
    assert sorted(listed) == sorted((dict.fromkeys(refused, "refused") | dict.fromkeys(exact, "exact")).items())


@pytest.mark.parametrize("page", ["README.md", "docs/comparison.md"])
def test_pages_that_count_the_families_count_right(page):
    counts = re.findall(r"(\d+) families (?:are )?exact, (\d+) (?:are )?refused", (ROOT / page).read_text())
    assert counts == [tuple(str(len(families)) for families in listed_families())]


def listed_families():
    """Exact and refused families as the pages have them: for transformers before 5.24."""
    exact = EXACT.keys() - WITH_THE_INTERFACE_SINCE_5_24.keys()
    return exact, (REFUSED.keys() | WITH_THE_INTERFACE_SINCE_5_24.keys()) - exact


def build(family, changes):
    torch.manual_seed(0)
    sizes = {key: value for key, value in {**SIZE, **changes}.items() if value is not None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases, norms and sinks start at constants, which would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def batch(padding):
    ids = torch.randint(3, VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    if padding == "right":
        mask[0, 13:] = 0
    if padding == "left":
        mask[0, :4] = 0
    return {"input_ids": ids, "attention_mask": mask}


ROWS = torch.tensor([[10, 11, 12], [9, 11, 14]])
REAL = torch.ones(2, 3, dtype=torch.bool)


def measured(model, inputs):
    """A_j of each layer `[layers, batch, keys]`, that of its heads, the logits and the capture."""
    found = []

    def visit(layer):
        weights, keys = REAL / REAL.sum(1, True), wanted_keys(inputs["attention_mask"] > 0)
        found.append(norm_attention(layer.alpha, layer.value, layer.metric, weights, keys))

    with torch.no_grad(), capture(model) as captured, captured.at_rows(ROWS, REAL, visit):
        logits = model(**inputs).logits
    return torch.stack([a for a, _ in found]), torch.stack([h for _, h in found]), logits, captured


def in_double(model, replace_eager, monkeypatch):
    """A float64 copy and its attention layers; `replace_eager(eager)` returns a replacement for the family's own
    function."""
    double = deepcopy(model).double()
    double.set_attn_implementation("eager")
    double.set_experts_implementation("eager")
    layers = find_attention_layers(double)
    file = sys.modules[type(layers[0].module).__module__]
    monkeypatch.setattr(file, "eager_attention_forward", replace_eager(file.eager_attention_forward))
    return double, layers


def brute_force(model, inputs, monkeypatch):
    """A_j `[layers, batch, keys]` and that of the heads `[layers, batch, heads, keys]`, float64."""
    caught, outputs = {}, {}

    def replace_eager(eager):
        def catch(module, query, key, value, attention_mask=None, **kwargs):
            if attention_mask is not None:
                attention_mask = attention_mask.clamp_min(-1e9)  # rows of padding see no keys, and must not be NaN
            one_hot = torch.eye(TOKENS, dtype=value.dtype).expand(*value.shape[:2], -1, -1)
            weights = eager(module, query, key, one_hot, attention_mask, **kwargs)[0]
            caught[id(module)] = value, weights.transpose(1, 2)
            return eager(module, query, key, value, attention_mask, **kwargs)

        return catch

    def keep(module, args, output):
        outputs[id(module)] = output[0] if isinstance(output, tuple) else output

    with monkeypatch.context() as patch, torch.no_grad():
        double, layers = in_double(model, replace_eager, patch)
        for layer in layers:
            layer.module.register_forward_hook(keep)
        double(**inputs)
    summed, by_head = [], []
    for layer in layers:
        value, weights = caught[id(layer.module)]
        heads, width = weights.shape[1], value.shape[-1]
        weight = layer.projection.weight if isinstance(layer.projection, nn.Linear) else layer.projection.weight.T
        bias = 0 if layer.projection.bias is None else layer.projection.bias
        vectors = torch.zeros(2, 3, TOKENS, len(weight), dtype=torch.float64)
        norms = torch.zeros(2, heads, TOKENS, dtype=torch.float64)
        for h in range(heads):
            f = value[:, h * value.shape[1] // heads] @ weight[:, h * width : (h + 1) * width].T
            alpha = torch.stack([weights[b, h, ROWS[b]] for b in range(2)])
            sent = alpha[..., None] * f[:, None]
            norms[:, h] = sent.norm(dim=-1).mean(1) * inputs["attention_mask"]
            vectors += sent
        attention_output = torch.stack([outputs[id(layer.module)][b, ROWS[b]] for b in range(2)])
        torch.testing.assert_close(vectors.sum(2) + bias, attention_output)
        summed.append(vectors.norm(dim=-1).mean(1) * inputs["attention_mask"])
        by_head.append(norms)
    return torch.stack(summed), torch.stack(by_head)


@pytest.mark.parametrize("family", EXACT)
def test_norms_of_a_supported_family_are_exact(family, monkeypatch):
    model = build(family, EXACT[family])
    for padding in ("none", "right", "left"):
        inputs = batch(padding)
        with torch.no_grad():
            plain = model(**inputs).logits
        a, a_heads, logits, _ = measured(model, inputs)
        assert torch.equal(logits, plain)
        expected, expected_heads = brute_force(model, inputs, monkeypatch)
        torch.testing.assert_close(a.double(), expected, rtol=2e-5, atol=1e-8)
        torch.testing.assert_close(a_heads.double(), expected_heads, rtol=2e-5, atol=1e-8)
        assert expected.count_nonzero() > 30


@pytest.mark.parametrize("family", EXACT)
def test_the_self_check_passes_in_half_precision(family):
    captured = measured(build(family, EXACT[family]).to(torch.bfloat16), batch("right"))[3]
    worst = max(e.max() for e in captured.errors_by_sample())
    assert 1e-5 < worst < 2e-2


# Doge's layer multiplies the whole stream with a learned vector after the sum, as a norm of the stream would.
@pytest.mark.parametrize("family", [family for family in EXACT if family != "doge"])
def test_the_measured_output_is_added_to_the_residual_stream_up_to_a_constant(family):
    """Nothing after the module rescales its rows: compares a layer's output with and without it, all else set to
    zero."""
    model = build(family, EXACT[family])
    for layer in find_attention_layers(model):
        block = model.get_submodule(layer.name.rpartition(".")[0])
        for name, sibling in block.named_children():
            if sibling is not layer.module and "norm" not in name:
                sibling.apply(zero)
        with_it, attention = outputs_of(model, block, layer.module)
        hook = layer.module.register_forward_hook(zero_output)
        without, _ = outputs_of(model, block, layer.module)
        hook.remove()
        torch.testing.assert_close(with_it - without, MULTIPLIED.get(family, 1) * attention, rtol=1e-3, atol=1e-5)


def zero(module):
    for parameter in module.parameters(recurse=False):
        parameter.data.zero_()


def zero_output(module, args, output):
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)


def outputs_of(model, *modules):
    found = {}
    hooks = [
        module.register_forward_hook(lambda m, a, o: found.__setitem__(m, o[0] if isinstance(o, tuple) else o))
        for module in modules
    ]
    with torch.no_grad():
        model(**batch("none"))
    for hook in hooks:
        hook.remove()
    return [found[module] for module in modules]


@pytest.mark.parametrize("family", REFUSED)
def test_an_unsupported_family_is_refused_with_the_right_reason(family):
    changes, reason = REFUSED[family]
    model = build(family, changes)
    with torch.no_grad():
        model(**batch("right"))
    with pytest.raises(InputError, match=reason):
        measured(model, batch("right"))
    assert model.config._attn_implementation == ("sdpa" if model._supports_sdpa else "eager")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gated_attention_and_linear_attention_are_distinguished():
    """Qwen3-Next's attention alone: even if all layers had full attention, the gate would forbid it."""
    changes = {**EXPERTS, **DELTA_NET, "layer_types": ["full_attention"] * LAYERS}
    with pytest.raises(InputError, match=GATE):
        measured(build("qwen3_next", changes), batch("right"))


# One for each kind of cache, mask and attention among those that are exact.
KINDS = [
    "cohere2",
    "deepseek_v3",
    "doge",
    "gemma",
    "glm_moe_dsa",
    "gpt2",
    "gpt_oss",
    "granite_swa",
    "llama",
    "llama4_text",
    "minicpm3",
    "mistral",
    "modernbert-decoder",
    "opt",
    "phi3",
    "qwen3_moe",
]
KINDS_OF_MASK = ["deepseek_v3", "doge", "glm_moe_dsa", "gpt_oss", "llama4_text", "modernbert-decoder"]
RESPONSE = [5, 17, 99, 33]


def build_with_large_weights(family):
    """Weights large enough that responses depend on the prompt. The sparse ones see more than 4 keys: with fewer,
    transformers' own cache and left padding change what they choose."""
    changes = EXACT[family] if family in EXACT else REFUSED[family][0]
    model = build(family, {**changes, "index_topk": 64} if "index_topk" in changes else changes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "embed" not in name:
                parameter.mul_(3)
    return model


def prompts():
    """Three prompts with a common beginning, `[tokens]` each."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, VOCABULARY, (3, 23), generator=generator)
    ids[1:, :6] = ids[0, :6]
    return [ids[0, :18], ids[1, :15], ids[2]]


def plain_logits(model, *ids):
    whole = torch.cat([torch.as_tensor(part, dtype=torch.long) for part in ids])
    with torch.no_grad():
        return model(input_ids=whole[None], use_cache=False).logits[0]


# Attention of the last ones is refused, but scoring does not need it; they keep a state beside keys and values.
@pytest.mark.parametrize("family", [*KINDS, "falcon_h1", "jamba", "lfm2", "qwen3_next"])
def test_scores_of_responses_equal_those_of_plain_passes(family):
    model = build_with_large_weights(family)
    embedding = model.get_input_embeddings()
    expected = torch.stack(
        [
            plain_logits(model, prompt, RESPONSE)[len(prompt) - 1 : -1].log_softmax(-1)[range(len(RESPONSE)), RESPONSE]
            for prompt in prompts()
        ]
    )
    with torch.no_grad():
        scored = log_probabilities(model, [embedding(prompt) for prompt in prompts()], RESPONSE)
    torch.testing.assert_close(scored, expected, rtol=0, atol=2e-5)
    assert expected.std(0).max() > 0.01


@pytest.mark.parametrize("family", KINDS)
def test_generated_answers_equal_plain_passes_token_by_token(family):
    model = build_with_large_weights(family)
    expected = []
    for prompt in prompts():
        answer = []
        for _ in range(12):
            answer.append(int(plain_logits(model, prompt, answer)[-1].argmax()))
        expected.append(answer)
    end = expected[0][2]  # the first leaves the batch
    expected = [answer[: answer.index(end) + 1] if end in answer else answer for answer in expected]
    with torch.no_grad():
        embedded = [model.get_input_embeddings()(prompt) for prompt in prompts()]
    assert generate_greedily(model, embedded, max_new_tokens=12, eos_token_ids=[end]) == expected


def test_a_model_that_cannot_generate_from_embeddings_is_refused_in_one_line():
    model = build("bamba", REFUSED["bamba"][0])
    with pytest.raises(InputError, match="BambaForCausalLM cannot answer embedded prompts"):
        generate_greedily(model, [torch.zeros(3, 48)], max_new_tokens=2, eos_token_ids=[])


@pytest.mark.parametrize("family", ["deepseek_v4", "gemma3n_text", "gemma4_text"])
def test_models_that_need_token_ids_are_refused_when_loaded(family):
    """Speech tokens have no ids, and embeddings alone give other results in such a model."""
    model = build(family, REFUSED[family][0])
    with pytest.raises(InputError, match=r"reads no embeddings|uses its input ids for more than embeddings"):
        check_reads_embeddings(model, family)


@pytest.mark.parametrize("family", EXACT)
def test_saved_weights_are_loaded_without_an_error_about_unused_tensors(family, tmp_path):
    """Unused tensors are an error; no family has any of its own. Those saved from a model that runs eager run the same
    attention as a fresh one."""
    model = build(family, EXACT[family])
    expected = model.config._attn_implementation
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"attn_implementation": "eager"}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = pretrained_model(AutoModelForCausalLM, tmp_path, torch.float32)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert loaded.config._attn_implementation == expected


SPARSE_UP_TO_60 = {
    "doge": {"keep_window_size": 60},
    "deepseek_v32": {"index_topk": 60},
    "glm_moe_dsa": {"index_topk": 60},
    "minimax_m3_vl_text": {"index_topk_blocks": 10, "index_block_size": 6},
}


@pytest.mark.parametrize("family", SPARSE_UP_TO_60)
def test_sparse_attention_is_refused_beyond_its_full_window(family, tiny_llm):
    sizes = {"vocab_size": tiny_llm.llm.config.vocab_size, "max_position_embeddings": 256}
    model = build(family, {**EXACT[family], **SPARSE_UP_TO_60[family], **sizes})
    checkpoint = replace(tiny_llm, model=model, name="sparse")
    sample = Sample(id="s", instruction="Say it.", text="rain")
    tokens = len(checkpoint.encode(sample.instruction, sample.text))
    for probe in (lsm_probe.attention, lsm_probe.knockout):
        probe(checkpoint, [sample], responses={"s": [5] * (60 - tokens)})
        message = f"too long for sparse: beyond 60 tokens .* the sparse attention of '{family}' models depends"
        with pytest.raises(InputError, match=message):
            probe(checkpoint, [sample], responses={"s": [5] * (61 - tokens)})


def test_doges_attention_depends_on_the_batch_beyond_its_window():
    """The reason for refusing it there: keys tie, and padding decides which of them are kept."""
    ids = torch.randint(3, VOCABULARY, (6, 40), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[:, :15] = 0
    for window, differs in ((40, False), (8, True)):
        model = build("doge", {"keep_window_size": window})
        with torch.no_grad():
            alone = model(input_ids=ids[:, 15:]).logits
            padded = model(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits[:, 15:]
        assert ((alone - padded).abs().max() > 1e-4) == differs


@pytest.mark.parametrize("family", KINDS_OF_MASK)
def test_knockouts_equal_passes_with_a_mask_edited_by_hand(family, tiny_llm, monkeypatch):
    wide = {"sliding_window": 24, "attention_chunk_size": 24, "local_attention": 24, "index_topk": 256}
    changes = {key: wide.get(key, value) for key, value in EXACT[family].items()}
    model = build(family, {**changes, "vocab_size": tiny_llm.llm.config.vocab_size, "max_position_embeddings": 256})
    checkpoint = replace(tiny_llm, model=model, name=family)
    sample = Sample(id="s", instruction="Translate the speech.", text="rain falls on the old town")
    response = [5, 9, 300]
    result = lsm_probe.knockout(checkpoint, [sample], window=3, responses={"s": response})
    prompt = checkpoint.encode(sample.instruction, sample.text)
    first = len(prompt) - 1

    def by_hand(segment, cut):
        columns = [i for i, own in enumerate(prompt.segments) if own is segment]

        def replace_eager(eager):
            def edit(module, query, key, value, attention_mask=None, **kwargs):
                mask = attention_mask.clamp_min(-1e9)
                mask[..., first:, columns] = -1e9 if module.layer_idx in cut else mask[..., first:, columns]
                return eager(module, query, key, value, mask, **kwargs)

            return edit

        with monkeypatch.context() as patch:
            logits = plain_logits(in_double(model, replace_eager, patch)[0], prompt.input_ids, response)
        return logits[first:-1].log_softmax(-1)[range(3), response].mean().item()

    plain = by_hand(None, [])
    assert result.log_prob[0] == pytest.approx(plain, abs=2e-5)
    for s, segment in enumerate(SEGMENTS):
        assert result.fall[0, s, 2] == pytest.approx(plain - by_hand(segment, [1, 2, 3]), abs=2e-5)
        assert result.fall_all_layers[0, s] == pytest.approx(plain - by_hand(segment, range(LAYERS)), abs=2e-5)
    assert abs(result.fall_all_layers).max() > 1e-3
