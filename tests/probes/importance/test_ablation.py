"""Weights set to 0 for a while: which, what it costs, and that every bit is back afterwards."""

from copy import deepcopy

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.probes.importance.ablation import perplexities, zeroed
from lsm_probe.probes.importance.masks import top_share


def bits(tensor):
    return tensor.detach().clone().view(torch.int32)


def tricky():
    """Numbers that a sum or a comparison would not give back as they were."""
    weights = {"a": torch.randn(4, 6), "b": torch.randn(5, 3)}
    weights["a"][0] = torch.tensor([-0.0, torch.nan, torch.inf, 1e-45, -1e38, 0.0])
    return weights


def all_of(weights):
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights.items()}


def test_marked_weights_are_zero_inside_the_block_and_restored_exactly_after_it():
    weights = tricky()
    before = {name: bits(weight) for name, weight in weights.items()}
    masks = {name: torch.rand(weight.shape) < 0.5 for name, weight in weights.items()}
    with zeroed(weights, masks):
        for name, weight in weights.items():
            assert (weight[masks[name]] == 0).all()
            assert torch.equal(bits(weight)[~masks[name]], before[name][~masks[name]])
    assert all(torch.equal(bits(weight), before[name]) for name, weight in weights.items())
    with zeroed(weights, all_of(weights)):
        assert not any(weight.any() for weight in weights.values())
    assert all(torch.equal(bits(weight), before[name]) for name, weight in weights.items())


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
def test_weights_are_restored_exactly_after_an_error(error):
    weights = tricky()
    before = {name: bits(weight) for name, weight in weights.items()}

    def fail():
        with zeroed(weights, all_of(weights)):
            assert not weights["a"].any()
            raise error

    with pytest.raises(type(error)):
        fail()
    assert all(torch.equal(bits(weight), before[name]) for name, weight in weights.items())


def test_weights_are_restored_exactly_if_a_later_mask_does_not_fit():
    weights = tricky()
    before = bits(weights["a"])
    masks = {"a": torch.ones(4, 6, dtype=torch.bool), "b": torch.ones(9, 9, dtype=torch.bool)}
    with pytest.raises(IndexError), zeroed(weights, masks):
        raise AssertionError("the block must not run")
    assert torch.equal(bits(weights["a"]), before)


def test_trainable_parameters_can_be_zeroed():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    with zeroed({"x": weight}, {"x": torch.eye(3, dtype=torch.bool)}):
        assert weight.sum() == 6
    assert weight.requires_grad
    assert weight.sum() == 9


def states(scores, share, seed):
    """The weights as each measurement finds them."""
    weights = {name: torch.full_like(score, 2.0) for name, score in scores.items()}
    seen = []

    def perplexity():
        seen.append({name: weight.clone() for name, weight in weights.items()})
        return float(len(seen))

    found = perplexities(perplexity, weights, scores, share, seed)
    assert all((weight == 2).all() for weight in weights.values())
    assert found == {"none": 1.0, "top": 2.0, "bottom": 3.0, "random": 4.0}
    return dict(zip(found, seen, strict=True))


SCORES = {"a": torch.rand(10, 10, generator=torch.Generator().manual_seed(0)), "b": torch.rand(7, 9)}


def test_the_most_the_least_and_random_weights_are_zeroed_in_turn():
    seen = states(SCORES, 0.1, seed=0)
    for name, score in SCORES.items():
        assert (seen["none"][name] == 2).all()
        assert torch.equal(seen["top"][name] == 0, top_share(score, 0.1))
        assert torch.equal(seen["bottom"][name] == 0, top_share(score, 0.1, largest=False))
        assert int((seen["random"][name] == 0).sum()) == round(0.1 * score.numel())


def test_random_weights_are_seeded():
    first, again, other = (states(SCORES, 0.1, seed)["random"] for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in SCORES)
    assert not all(torch.equal(first[name], other[name]) for name in SCORES)


# In the probe


def nats_by_hand(checkpoint, model, samples, responses):
    """Summed negative log-likelihood and number of tokens: one whole pass of each sample."""
    nats, tokens = 0.0, 0
    for sample in samples:
        speech = checkpoint.source == "speech"
        prompt = checkpoint.encode(sample.instruction, read_audio(sample) if speech else sample.text)
        response = responses[sample.id]
        with torch.no_grad():
            logits = (
                model(input_ids=torch.tensor([[*prompt.input_ids, *response]]), **prompt.features).logits[0].double()
            )
        log_probs = logits.log_softmax(-1)
        nats -= sum(log_probs[len(prompt) - 1 + i, token].item() for i, token in enumerate(response))
        tokens += len(response)
    return nats, tokens


def perplexity_by_hand(checkpoint, model, samples, responses):
    nats, tokens = nats_by_hand(checkpoint, model, samples, responses)
    return np.exp(nats / tokens)


@pytest.mark.parametrize("mode", ["abs", "signed"])
def test_perplexities_equal_those_of_plain_passes(checkpoint, samples, mode):
    """Responses of other lengths weigh by their tokens."""
    chosen = samples[1:4]
    result = lsm_probe.importance(checkpoint, chosen, mode=mode, masks=0.1, ablate=0.1)
    responses = result.responses()
    assert len({len(response) for response in responses.values()}) > 1
    model = deepcopy(checkpoint.model)
    found = result.ablation["perplexity"]
    assert found["none"] == pytest.approx(perplexity_by_hand(checkpoint, model, chosen, responses), rel=1e-4)
    inner = model.language_model if checkpoint.source == "speech" else model
    with torch.no_grad():
        for name, weight in inner.named_parameters():
            if name in result.masks.packed:
                weight[torch.from_numpy(result.masks.mask(name))] = 0
    assert found["top"] == pytest.approx(perplexity_by_hand(checkpoint, model, chosen, responses), rel=1e-4)
    assert result.ablation["share"] == 0.1
    assert len(set(found.values())) == 4


def test_the_models_weights_are_the_same_bits_afterwards(checkpoint, samples, monkeypatch):
    before = {
        name: bits(tensor) for name, tensor in checkpoint.model.state_dict().items() if tensor.is_floating_point()
    }

    def unchanged():
        state = checkpoint.model.state_dict()
        return all(torch.equal(bits(state[name]), was) for name, was in before.items())

    lsm_probe.importance(checkpoint, samples[:2], ablate=0.2)
    assert unchanged()

    from lsm_probe.probes.importance import measure as module

    loss = module.response_loss

    def fail_where_weights_are_gone(*args):
        if not unchanged():
            raise RuntimeError("broken")
        return loss(*args)

    monkeypatch.setattr(module, "response_loss", fail_where_weights_are_gone)
    with pytest.raises(RuntimeError, match="broken"):
        lsm_probe.importance(checkpoint, samples[:2], ablate=0.2)
    assert unchanged()


def test_the_seed_draws_the_random_weights_alone(tiny_llm, samples):
    first, again, other = (
        lsm_probe.importance(tiny_llm, samples[:2], ablate=0.1, seed=seed).ablation["perplexity"] for seed in (0, 0, 1)
    )
    assert first == again
    assert {name: other[name] for name in ("none", "top", "bottom")} == {
        name: first[name] for name in ("none", "top", "bottom")
    }
    assert other["random"] != first["random"]


def test_the_probes_own_response_is_the_one_whose_perplexity_is_measured(tiny_llm, samples):
    result = lsm_probe.importance(tiny_llm, samples[:2], response="generated", max_new_tokens=4, ablate=0.1)
    expected = perplexity_by_hand(tiny_llm, tiny_llm.model, samples[:2], result.responses())
    assert result.ablation["perplexity"]["none"] == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def trained(tiny_llm, samples):
    """A text LLM that has learned the references of four samples by heart."""
    rows = [(tiny_llm.encode(s.instruction, s.text).input_ids, tiny_llm.encode_response(s.target)) for s in samples[:4]]
    optimizer = torch.optim.AdamW(tiny_llm.model.parameters(), lr=3e-3)
    for _ in range(25):
        for prompt, response in rows:
            ids = torch.tensor([[*prompt, *response]])
            labels = torch.tensor([[*[-100] * len(prompt), *response]])
            tiny_llm.model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return tiny_llm


def test_zeroing_important_weights_hurts_a_trained_model_most(trained, samples):
    found = lsm_probe.importance(trained, samples[:4], ablate=0.03).ablation["perplexity"]
    assert found["none"] < 1.5
    assert found["top"] > 1.5 * found["random"]
    assert found["top"] > 1.5 * found["bottom"]
    assert found["bottom"] == pytest.approx(found["none"], rel=0.02)
