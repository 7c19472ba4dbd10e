"""Backends: native capture, TransformerLens and nnsight give the same norms, and do not change the model."""

import sys

import numpy as np
import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import lsm_probe
from lsm_probe import cli
from lsm_probe.errors import InputError, SampleFault
from lsm_probe.instruments.backends import open_backend
from lsm_probe.instruments.backends.foreign import CheckedLayers
from lsm_probe.instruments.norms import norm_attention, recompose, wanted_keys
from lsm_probe.probes.attention.result import AttentionResult

LIBRARIES = {"transformer-lens": "transformer_lens", "nnsight": "nnsight"}
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
OPT_SIZE = {"hidden_size": 48, "ffn_dim": 64, "word_embed_proj_dim": 48, "num_hidden_layers": 3}
OPT_SIZE |= {"num_attention_heads": 6, "vocab_size": 120}
MODELS = {
    "value bias": lambda: Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=3, **SIZE)),
    "output bias": lambda: LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, attention_bias=True, **SIZE)),
    "conv1d": lambda: GPT2LMHeadModel(GPT2Config(**GPT2_SIZE)),
    "patterns seen last": lambda: OPTForCausalLM(OPTConfig(**OPT_SIZE)),
    "sliding window": lambda: MistralForCausalLM(MistralConfig(num_key_value_heads=2, sliding_window=4, **SIZE)),
}
ROWS = torch.tensor([[10, 11, 12], [9, 11, 9]])
ROW_MASK = torch.tensor([[True, True, True], [True, True, False]])


@pytest.fixture(params=LIBRARIES)
def backend(request):
    pytest.importorskip(LIBRARIES[request.param])
    return request.param


@pytest.fixture(params=["speech", "text"])
def checkpoint(request, tiny_lsm, tiny_llm):
    return tiny_lsm if request.param == "speech" else tiny_llm


def build(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at zero, which would hide mistakes about them
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def probe(checkpoint, samples, **options):
    return lsm_probe.attention(checkpoint, samples, **{"max_new_tokens": 6, "tokens": True, **options})


def assert_same_norms(ours, theirs, rtol=1e-4):
    """Norms per sample, layer and segment, in both head forms, and of every prompt token."""
    np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    np.testing.assert_allclose(theirs.norms, ours.norms, rtol=rtol)
    np.testing.assert_allclose(theirs.head_norms, ours.head_norms, rtol=rtol)
    np.testing.assert_allclose(theirs.token_scores.norms, ours.token_scores.norms, rtol=rtol)


def norms_through(backend, model):
    """A_j of each layer and head at `ROWS`, of a batch with right padding."""
    inputs = torch.randn(2, 15, 48, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(2, 15, dtype=torch.long)
    mask[1, 12:] = 0
    found = []

    def visit(layer):
        weight, keys = ROW_MASK / ROW_MASK.sum(1, True), wanted_keys(mask > 0)
        found.extend(norm_attention(layer.alpha, layer.value, layer.metric, weight, keys))

    with torch.no_grad(), open_backend(backend, model) as run_pass:
        errors = run_pass(inputs, mask, ROWS, ROW_MASK, visit)
    assert [e.shape for e in errors] == [(3, 3), (3, 2)]  # padded rows are not checked
    return found


def test_backends_give_the_same_norms(checkpoint, samples, backend):
    ours = probe(checkpoint, samples)
    theirs = probe(checkpoint, samples, backend=backend)
    assert theirs.responses() == ours.responses()
    assert_same_norms(ours, theirs)


@pytest.mark.parametrize("name", MODELS)
def test_backends_give_the_same_norms_for_every_attention_variant(name, backend):
    model = build(name)
    for ours, theirs in zip(norms_through("native", model), norms_through(backend, model), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-7)


def test_backends_agree_for_given_and_reference_responses_in_any_batch(tiny_lsm, samples, backend):
    ours = probe(tiny_lsm, samples, response="reference")
    assert_same_norms(ours, probe(tiny_lsm, samples, response="reference", backend=backend, batch_size=3))
    assert_same_norms(ours, probe(tiny_lsm, samples, responses=ours.responses(), backend=backend, batch_size=1))


def test_the_model_is_not_changed(checkpoint, samples, backend):
    llm = checkpoint.llm
    inputs = torch.randn(2, 9, 48, generator=torch.Generator().manual_seed(0))
    weights = {name: tensor.clone() for name, tensor in [*llm.named_parameters(), *llm.named_buffers()]}
    modules = [(name, type(module), sorted(vars(module))) for name, module in llm.named_modules()]
    with torch.no_grad():
        before = llm(inputs_embeds=inputs).logits
        with open_backend(backend, llm):
            assert torch.equal(llm(inputs_embeds=inputs).logits, before)
        probe(checkpoint, samples[:2], backend=backend)
        assert torch.equal(llm(inputs_embeds=inputs).logits, before)
    assert [(name, type(module), sorted(vars(module))) for name, module in llm.named_modules()] == modules
    assert llm.config._attn_implementation == "sdpa"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in [*llm.named_parameters(), *llm.named_buffers()])


def test_out_of_memory_halves_the_batch_with_every_backend(tiny_llm, samples, backend, monkeypatch):
    whole = probe(tiny_llm, samples)
    forward, sizes = LlamaForCausalLM.forward, []

    def scarce(self, *args, inputs_embeds=None, **kwargs):
        sizes.append(len(inputs_embeds))
        if len(inputs_embeds) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, *args, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", scarce)
    assert_same_norms(whole, probe(tiny_llm, samples, responses=whole.responses(), backend=backend))
    assert sizes[-3:] == [8, 4, 4]


def test_the_result_names_its_backend(tiny_llm, samples, backend, tmp_path):
    ours = probe(tiny_llm, samples)
    probe(tiny_llm, samples, backend=backend).save(tmp_path)
    theirs = AttentionResult.load(tmp_path)
    assert (ours.self_check["backend"], theirs.self_check["backend"]) == ("native", backend)
    assert backend in theirs.versions
    assert (
        f"through native and {tiny_llm.name} through {backend}"
        in lsm_probe.compare([ours, theirs])["pairs"][0]["warning"]
    )


def test_a_run_is_not_resumed_through_another_backend(tiny_llm, samples, backend, tmp_path):
    probe(tiny_llm, samples, progress_folder=tmp_path)
    with pytest.raises(InputError, match="another checkpoint, data or settings"):
        probe(tiny_llm, samples, progress_folder=tmp_path, backend=backend)


def shown(faulty=lambda pattern, value, w_o, bias, output: (pattern, value, w_o, bias, output), dtype=torch.float32):
    """Passes one layer's attention, made by hand, to the check; `faulty` changes what is passed. Returns the errors."""
    torch.manual_seed(0)
    pattern = torch.randn(2, 6, 15, 15).softmax(-1).to(dtype)
    value, w_o, bias = torch.randn(2, 2, 15, 8).to(dtype), torch.randn(6, 8, 48).to(dtype), torch.randn(48).to(dtype)
    output = recompose(pattern.float(), value, w_o, bias).to(dtype)
    reading = CheckedLayers("Library", ROWS, ROW_MASK, lambda layer: None, {})
    reading.show(0, *faulty(pattern, value, w_o, bias, output))
    return torch.cat(reading.errors_by_sample(), 1)


@pytest.mark.parametrize(
    "fault",
    [
        lambda a, v, w, b, out: (a.roll(1, 2), v, w, b, out),  # probabilities of other rows
        lambda a, v, w, b, out: (a, v.roll(1, 2), w, b, out),  # values of other keys
        lambda a, v, w, b, out: (a, v.flip(1), w, b, out),  # another group's values
        lambda a, v, w, b, out: (a, v, w.roll(1, 0), b, out),  # another head's W_O
        lambda a, v, w, b, out: (a, v, w, None, out),  # no output bias
        lambda a, v, w, b, out: (a, v, w, b, 1.001 * out),  # the output is changed afterwards
    ],
)
def test_captured_activations_must_reproduce_the_attention_output(fault):
    assert shown().max() < 1e-6
    assert shown(dtype=torch.bfloat16).max() < 5e-3
    with pytest.raises(InputError, match="through Library: alpha, v and W_O do not reproduce its output"):
        shown(fault)


def test_an_output_that_is_not_finite_is_a_sample_fault():
    with pytest.raises(SampleFault, match="not finite"):
        shown(lambda a, v, w, b, out: (a, v, w, b, out / 0))


def test_a_wrong_weight_from_transformer_lens_is_refused(tiny_llm, samples, monkeypatch):
    components = pytest.importorskip("transformer_lens.model_bridge.generalized_components.attention")
    right = components.AttentionBridge.W_O.fget
    monkeypatch.setattr(components.AttentionBridge, "W_O", property(lambda self: right(self).flip(0)))
    with pytest.raises(InputError, match="through TransformerLens"):
        probe(tiny_llm, samples, backend="transformer-lens")


def test_adapters_are_measured_by_nnsight_and_refused_by_transformer_lens(tiny_llm, samples):
    """nnsight calls the adapted projection; TransformerLens reads the weight below the adapter."""
    for library in LIBRARIES.values():
        pytest.importorskip(library)
    adapters = LoraConfig(target_modules=["v_proj", "o_proj"], init_lora_weights=False)
    inject_adapter_in_model(adapters, tiny_llm.model)
    assert_same_norms(probe(tiny_llm, samples), probe(tiny_llm, samples, backend="nnsight"))
    with pytest.raises(InputError, match="TransformerLens"):
        probe(tiny_llm, samples, backend="transformer-lens")


def test_models_that_native_capture_refuses_are_refused_by_every_backend(backend):
    model = Olmo2ForCausalLM(Olmo2Config(num_key_value_heads=2, **SIZE)).eval()  # a norm after the attention
    with pytest.raises(InputError, match="passes through"), open_backend(backend, model):
        pass


def test_models_other_than_text_llms_are_refused(tiny_lsm, backend):
    with pytest.raises(InputError, match="more parts than a causal LM"), open_backend(backend, tiny_lsm.model):
        pass


def test_a_model_without_an_adapter_is_refused_in_one_line():
    pytest.importorskip("transformer_lens")

    class UnheardOfForCausalLM(LlamaForCausalLM):
        pass

    model = UnheardOfForCausalLM(LlamaConfig(**SIZE)).eval()
    with (
        pytest.raises(InputError, match=r"^TransformerLens cannot take UnheardOfForCausalLM: .*$"),
        open_backend("transformer-lens", model),
    ):
        pass


def test_a_missing_library_is_reported_with_the_install_command(tiny_llm, samples, backend, monkeypatch):
    for module in [m for m in sys.modules if m.partition(".")[0] == LIBRARIES[backend]]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, LIBRARIES[backend], None)
    with pytest.raises(InputError, match=r"pip install .*transformer-lens"):
        probe(tiny_llm, samples, backend=backend)


def test_an_unknown_backend_is_refused_with_the_known_names(tiny_llm, samples):
    with pytest.raises(InputError, match="native, transformer-lens, nnsight"):
        probe(tiny_llm, samples, backend="pyvene")


def test_the_command_has_a_backend_option(tiny_llm_folder, samples, backend, tmp_path, monkeypatch, capsys):
    manifest = tmp_path / "clips.jsonl"
    rows = [f'{{"id": "{s.id}", "instruction": "{s.instruction}", "text": "{s.text}"}}\n' for s in samples[:2]]
    manifest.write_text("".join(rows))
    asked = ["attention", "--ckpt", tiny_llm_folder, "--data", manifest, "--out", tmp_path / "out"]

    def command(*more):
        monkeypatch.setattr(sys, "argv", ["lsm-probe", *map(str, [*asked, "--max-new-tokens", 4, *more])])
        with pytest.raises(SystemExit) as info:
            cli.main()
        return info.value.code or 0

    assert command("--backend", "pyvene") == 2
    assert "'pyvene' is not one of 'native', 'transformer-lens', 'nnsight'" in capsys.readouterr().err
    assert command("--backend", backend) == 0
    assert AttentionResult.load(tmp_path / "out").self_check["backend"] == backend


@pytest.mark.real
@pytest.mark.parametrize("name", ["builtin:llm", "builtin:untrained"])
def test_backends_agree_on_the_embedded_models(name, backend, builtin):
    checkpoint = builtin(name)
    samples = lsm_probe.read_manifest("builtin:probe")[:2]
    ours = probe(checkpoint, samples, max_new_tokens=6)
    theirs = probe(checkpoint, samples, responses=ours.responses(), backend=backend)
    assert_same_norms(ours, theirs)
    np.testing.assert_allclose(theirs.eta().mean, ours.eta().mean, rtol=1e-5)
    assert theirs.self_check["worst"] < 0.2 * theirs.self_check["worst_bound"]
