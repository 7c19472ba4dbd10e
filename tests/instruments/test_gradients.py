"""Gradients taken during the backward pass: freed at once, nothing left on the model, and scores that predict the
loss."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.instruments.gradients import Parameter, absolute_sum, gradients_taken

RESPONSE = [88, 261, 303, 2]


@pytest.fixture(params=["speech", "text"])
def checkpoint(request, tiny_lsm, tiny_llm):
    return tiny_lsm if request.param == "speech" else tiny_llm


def probe(checkpoint, samples, **options):
    return lsm_probe.importance(checkpoint, samples, **options)


def names(result):
    return [parameter["name"] for parameter in result.parameters]


def assert_model_unchanged(model, flags):
    """Check that no gradient and no hook is left, and that the same parameters are trainable as before."""
    parameters = dict(model.named_parameters())
    assert not [name for name, p in parameters.items() if p.grad is not None]
    assert not [name for name, p in parameters.items() if p._post_accumulate_grad_hooks]
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert {name: p.requires_grad for name, p in parameters.items()} == flags


def flags_of(model):
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


# The context manager alone


@pytest.fixture
def net():
    """Two layers of which the second is used twice."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"first": nn.Linear(3, 4), "second": nn.Linear(4, 4), "unused": nn.Linear(2, 2)})
    return model.double()


def loss_of(net, x=None):
    hidden = net["second"](net["second"](net["first"](torch.ones(2, 3).double() if x is None else x)).tanh())
    return hidden.pow(2).sum()


def parameters_of(net, *chosen):
    return [Parameter(name, None, name, p) for name, p in net.named_parameters() if not chosen or name in chosen]


def test_each_gradient_is_complete_when_it_is_taken(net):
    expected = dict(
        zip(
            dict(net.named_parameters()),
            torch.autograd.grad(loss_of(net), net.parameters(), allow_unused=True),
            strict=True,
        )
    )
    taken = {}

    def take(parameter, gradient):
        assert parameter.name not in taken
        taken[parameter.name] = gradient.clone()

    with gradients_taken(net, parameters_of(net), take):
        loss_of(net).backward()
    assert set(taken) == {name for name, gradient in expected.items() if gradient is not None}
    for name, gradient in taken.items():
        torch.testing.assert_close(gradient, expected[name])


def test_parameters_that_were_not_requested_have_no_gradient(net):
    flags = flags_of(net)
    taken = []
    with gradients_taken(net, parameters_of(net, "second.weight"), lambda p, g: taken.append(p.name)):
        assert [name for name, p in net.named_parameters() if p.requires_grad] == ["second.weight"]
        loss_of(net).backward()
    assert taken == ["second.weight"]
    assert_model_unchanged(net, flags)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["in the block", "while taking"])
def test_the_models_state_is_restored_after_an_error(net, error, where):
    net["first"].bias.requires_grad_(False)
    flags = flags_of(net)

    def take(parameter, gradient):
        if where == "while taking":
            raise error

    def run():
        with gradients_taken(net, parameters_of(net, "second.weight", "second.bias"), take):
            loss_of(net).backward()
            raise error

    with pytest.raises(type(error)):
        run()
    assert_model_unchanged(net, flags)
    # It can still be trained.
    loss_of(net).backward()
    assert net["first"].weight.grad is not None
    assert net["first"].bias.grad is None


def test_quantised_parameters_are_refused_in_one_line(net):
    net["first"].weight = nn.Parameter(torch.ones(4, 3, dtype=torch.int8), requires_grad=False)
    flags = flags_of(net)
    with pytest.raises(
        InputError,
        match=r"^first.weight is quantised \(.*int8\) and has no gradient: load it in float32$",
    ):
        gradients_taken(net, parameters_of(net), lambda p, g: None).__enter__()
    assert_model_unchanged(net, flags)


def test_earlier_gradients_are_not_included(net):
    """A model that was just trained still has its last step's gradients."""
    fresh, stale = {}, {}
    for taken in (fresh, stale):
        with gradients_taken(net, parameters_of(net), lambda p, g, taken=taken: taken.update({p.name: g.clone()})):
            loss_of(net).backward()
        loss_of(net).backward()  # what the second round finds
    for name in fresh:
        torch.testing.assert_close(stale[name], fresh[name])


def test_a_failed_gradient_is_not_added_to_the_next(net):
    taken = []

    def take(parameter, gradient):
        taken.append(gradient.clone())
        if len(taken) == 1:
            raise RuntimeError("out of memory")

    with gradients_taken(net, parameters_of(net, "second.weight"), take):
        with pytest.raises(RuntimeError):
            loss_of(net).backward()
        loss_of(net).backward()
    torch.testing.assert_close(taken[1], taken[0])


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4), (300, 4000)])
def test_sums_are_exact_for_any_shape(shape):
    """A large matrix summed in float32 at once is off by whole per cents."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert absolute_sum(values).item() == pytest.approx(values.double().abs().sum().item(), rel=1e-6)


# In the probe


def test_only_few_gradients_are_held_at_once(checkpoint, samples):
    parameters, held = list(checkpoint.model.parameters()), []
    # Hooks run in the order in which they came: this one sees what the probe has not freed yet.
    handles = [
        parameter.register_post_accumulate_grad_hook(lambda _: held.append(sum(p.grad is not None for p in parameters)))
        for parameter in parameters
    ]
    result = probe(checkpoint, samples[:2])
    for handle in handles:
        handle.remove()
    assert len(held) == 2 * len(result.parameters)
    assert max(held) <= 2
    assert_model_unchanged(checkpoint.model, dict.fromkeys(flags_of(checkpoint.model), True))


@pytest.mark.parametrize("modality", ["own", "text"])
def test_the_model_is_not_changed(checkpoint, samples, modality):
    checkpoint.llm.model.layers[0].mlp.requires_grad_(False)
    flags = flags_of(checkpoint.model)
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    probe(checkpoint, samples[:2], modality=modality, mode="signed", masks=0.1, ablate=0.1)
    assert_model_unchanged(checkpoint.model, flags)
    assert all(torch.equal(tensor, before[name]) for name, tensor in checkpoint.model.state_dict().items())


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["response_loss", "absolute_sum"])
def test_the_model_is_not_changed_after_an_error(checkpoint, samples, monkeypatch, error, place):
    def fail(*args):
        raise error

    checkpoint.llm.model.layers[0].mlp.requires_grad_(False)
    flags = flags_of(checkpoint.model)
    monkeypatch.setattr(f"lsm_probe.probes.importance.measure.{place}", fail)
    with pytest.raises(type(error)):
        probe(checkpoint, samples[:1])
    assert_model_unchanged(checkpoint.model, flags)


def test_existing_gradients_of_the_model_do_not_change_the_result(tiny_llm, samples):
    expected = probe(tiny_llm, samples[:2])
    ids = torch.tensor([[3, 4, 5, 6]])
    tiny_llm.model(input_ids=ids, labels=ids).loss.backward()
    np.testing.assert_allclose(probe(tiny_llm, samples[:2]).sums, expected.sums, rtol=1e-6)


def test_no_grad_around_the_probe_does_not_change_the_result(tiny_llm, samples):
    expected = probe(tiny_llm, samples[:1])
    with torch.no_grad():
        np.testing.assert_array_equal(probe(tiny_llm, samples[:1]).sums, expected.sums)
        assert not torch.is_grad_enabled()


def test_frozen_parameters_are_reported_as_not_trained(tiny_lsm, samples):
    """Matrices, norms, embeddings and a part of the connector."""
    llm, connector = tiny_lsm.llm, tiny_lsm.model.multi_modal_projector
    whole = probe(tiny_lsm, samples[:1])
    frozen = {
        "model.layers.1.mlp.up_proj.weight": llm.model.layers[1].mlp.up_proj.weight,
        "model.layers.2.input_layernorm.weight": llm.model.layers[2].input_layernorm.weight,
        "model.embed_tokens.weight": llm.model.embed_tokens.weight,
        "multi_modal_projector.linear.weight": connector.linear.weight,
    }
    for tensor in frozen.values():
        tensor.requires_grad_(False)
    result = probe(tiny_lsm, samples[:1])
    assert names(result) == [name for name in names(whole) if name not in frozen]
    kept = [names(whole).index(name) for name in names(result)]
    np.testing.assert_allclose(result.sums, whole.sums[:, kept], rtol=1e-6)
    assert result.not_trained == {
        "audio_tower": whole.not_trained["audio_tower"],
        "multi_modal_projector": connector.linear.weight.numel(),
        "language_model": sum(t.numel() for name, t in frozen.items() if name.startswith("model.")),
    }
    assert np.isnan(result.by_module()[1, result.modules.index("mlp.up_proj")])


def test_a_completely_frozen_model_is_refused_in_one_line(checkpoint, samples):
    checkpoint.llm.requires_grad_(False)
    with pytest.raises(InputError, match="has no layer that is trained"):
        probe(checkpoint, samples[:1])


LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def with_adapters(llm):
    torch.manual_seed(1)
    return get_peft_model(llm, LoraConfig(r=2, target_modules=LINEARS, init_lora_weights=True)).eval()


def unfreeze_the_base(llm):
    llm.requires_grad_(True)
    return {name: p for name, p in llm.named_parameters() if "lora_" in name}


def inside_lsm(tiny_lsm, llm):
    tiny_lsm.model.language_model = llm
    return tiny_lsm


@pytest.mark.parametrize("modality", ["own", "text"])
def test_a_model_with_only_adapters_trained_is_refused_in_one_line(tiny_llm, tiny_lsm, samples, modality):
    """The LSM's connector is trainable then, but it has no layers."""
    for checkpoint in (
        replace(tiny_llm, model=with_adapters(tiny_llm.model)),
        inside_lsm(tiny_lsm, with_adapters(tiny_lsm.llm)),
    ):
        flags = flags_of(checkpoint.model)
        with pytest.raises(InputError, match=r"only adapters, or all frozen\): merge them"):
            probe(checkpoint, samples[:1], modality=modality)
        assert_model_unchanged(checkpoint.model, flags)


def test_adapters_beside_trained_weights_are_reported_as_not_trained(tiny_llm, samples):
    """New adapters add 0: the weights have the same importance as without them."""
    plain = probe(tiny_llm, samples[:2])
    checkpoint = replace(tiny_llm, model=with_adapters(deepcopy(tiny_llm.model)))
    adapters = unfreeze_the_base(checkpoint.model)
    result = probe(checkpoint, samples[:2])
    stripped = [name.removeprefix("base_model.model.").replace(".base_layer", "") for name in names(result)]
    assert stripped == names(plain)
    np.testing.assert_allclose(result.sums, plain.sums, rtol=1e-5)
    assert [p["layer"] for p in result.parameters] == [p["layer"] for p in plain.parameters]
    assert result.not_trained == {"base_model": sum(p.numel() for p in adapters.values())}
    np.testing.assert_allclose(result.by_layer().mean, plain.by_layer().mean, rtol=1e-5)


def test_adapters_inside_an_lsm_are_reported_as_not_trained(tiny_lsm, samples):
    plain = probe(tiny_lsm, samples[:1])
    checkpoint = inside_lsm(tiny_lsm, with_adapters(tiny_lsm.llm))
    adapters = unfreeze_the_base(checkpoint.llm)
    result = probe(checkpoint, samples[:1])
    assert not any("lora_" in name for name in names(result))
    np.testing.assert_allclose(result.sums, plain.sums, rtol=1e-5)
    assert result.not_trained == plain.not_trained | {"language_model": sum(p.numel() for p in adapters.values())}


# First order: scores predict changes of the loss


@pytest.fixture
def gpt2(tiny_llm):
    """From a family that computes in float64 throughout if requested: Llama's norms are always float32."""
    torch.manual_seed(0)
    size = tiny_llm.llm.config.vocab_size
    config = GPT2Config(vocab_size=size, n_embd=32, n_layer=3, n_head=4, n_positions=512, initializer_range=0.2)
    return replace(tiny_llm, model=GPT2LMHeadModel(config).double().eval())


def text_loss(checkpoint, sample):
    """Mean negative log-likelihood of the response, from a whole pass without any code of the probe."""
    prompt = checkpoint.encode(sample.instruction, sample.text)
    logits = checkpoint.model(input_ids=torch.tensor([[*prompt.input_ids, *RESPONSE]])).logits[0]
    rows = logits[len(prompt) - 1 : len(prompt) - 1 + len(RESPONSE)]
    return -rows.log_softmax(-1).gather(1, torch.tensor(RESPONSE)[:, None]).mean()


PLACES = [
    "transformer.wte.weight",  # tied
    "transformer.h.0.attn.c_attn.weight",
    "transformer.h.1.mlp.c_proj.weight",
    "transformer.h.2.mlp.c_fc.weight",
    "transformer.ln_f.weight",
]


def gradients_of(checkpoint, sample):
    model = deepcopy(checkpoint.model)
    text_loss(replace(checkpoint, model=model), sample).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", PLACES)
def test_the_signed_sum_predicts_the_loss_change_from_shrinking_a_matrix(gpt2, samples, name):
    result = probe(gpt2, samples[:1], responses={"s0": RESPONSE})
    weight = dict(gpt2.model.named_parameters())[name]
    slope = -(weight.detach() * gradients_of(gpt2, samples[0])[name]).sum().item()
    before, kept, errors = text_loss(gpt2, samples[0]).item(), weight.detach().clone(), []
    with torch.no_grad():
        for step in (1e-2, 1e-3, 1e-4):
            weight.copy_(kept * (1 - step))
            errors.append(abs(text_loss(gpt2, samples[0]).item() - before - step * slope))
    # A tenth of the step gives a hundredth of the error.
    assert errors[1] < 0.02 * errors[0]
    assert errors[2] < 0.02 * errors[1]
    assert errors[2] < 1e-2 * abs(1e-4 * slope)
    # The probe stores absolute values for each weight, so the change can only be smaller.
    assert abs(slope) <= result.values()[names(result).index(name)] * (1 + 1e-6)


@pytest.mark.parametrize("name", PLACES[1:4])
def test_the_score_of_a_weight_is_the_loss_change_when_it_shrinks(gpt2, samples, tmp_path, name):
    """The scores come from the probe's own files; the error of a linear estimate shrinks with the step."""
    probe(gpt2, samples[:1], responses={"s0": RESPONSE}, masks=0.05, scratch=tmp_path)
    before = text_loss(gpt2, samples[0]).item()
    scores = np.fromfile(tmp_path / f"{name}.f32", dtype=np.float32)
    flat = dict(gpt2.model.named_parameters())[name].detach().view(-1)
    product = (flat * gradients_of(gpt2, samples[0])[name].view(-1)).abs().numpy()
    np.testing.assert_allclose(scores, product, rtol=1e-5, atol=1e-7 * product.max())
    # The most important weight, and one in the middle.
    for place in np.argsort(product)[[-1, len(product) // 2]]:
        own, errors = flat[place].item(), []
        for step in (0.1, 0.01, 0.001):
            flat[place] = own * (1 - step)
            change = text_loss(gpt2, samples[0]).item() - before
            errors.append(abs(abs(change) / step - product[place]))
        flat[place] = own
        assert errors[1] < 0.15 * errors[0]
        assert errors[2] < 0.15 * errors[1]
        assert errors[2] < 0.01 * product[place]
