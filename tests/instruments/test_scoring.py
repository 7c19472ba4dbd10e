"""Scoring with a shared prefix compared with plain passes, on tiny random models of several architectures."""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)

from lsm_probe.instruments.scoring import gathered_log_probabilities, log_probabilities

VOCABULARY = 120
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
# Large initial weights: attention prefers some tokens, so that a wrong mask or position has an effect.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    **ENDS,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": VOCABULARY, **ENDS}
GPT_NEO = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY, **ENDS}
SHARED = 20  # tokens
WINDOW = 6
ARCHITECTURES = {
    "llama": lambda: LlamaConfig(**SIZES),
    "gpt2": lambda: GPT2Config(**GPT2, initializer_range=0.2),
    "qwen3": lambda: Qwen3Config(**SIZES, head_dim=8),
    "mistral": lambda: MistralConfig(**SIZES, sliding_window=WINDOW),
    "mistral, window over the shared": lambda: MistralConfig(**SIZES, sliding_window=SHARED + 5),
    # Its local attention has no `sliding_window` in the config.
    "gpt-neo": lambda: GPTNeoConfig(
        **GPT_NEO, attention_types=[[["global", "local"], 1]], window_size=WINDOW, initializer_range=0.2
    ),
    "mamba": lambda: MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8, **ENDS),
}
RESPONSE = [7, 9, 30, 2, 11]


@pytest.fixture(scope="module")
def models():
    """`models(name)` builds a model once."""
    built = {}

    def model(name):
        if name not in built:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                built[name] = AutoModelForCausalLM.from_config(ARCHITECTURES[name]()).eval()
        return built[name]

    return model


def prompts(model, *lengths, shared=0):
    """Embedded prompts with a shared prefix, followed by the given numbers of random tokens."""
    draw = torch.Generator().manual_seed(1)
    head = torch.randint(5, VOCABULARY, (shared,), generator=draw)
    tails = [torch.randint(5, VOCABULARY, (length,), generator=draw) for length in lengths]
    return [model.get_input_embeddings()(torch.cat([head, tail])).detach() for tail in tails]


@torch.no_grad()
def plain(model, embedded, response):
    """Each prompt alone, without padding or cache, with softmax in float64."""
    rows = []
    for prompt in embedded:
        said = model.get_input_embeddings()(torch.tensor(response[:-1], dtype=torch.long))
        logits = model(inputs_embeds=torch.cat([prompt, said])[None], use_cache=False).logits[0, len(prompt) - 1 :]
        log_probs = logits.double().log_softmax(-1)
        rows.append(torch.stack([log_probs[m, token] for m, token in enumerate(response)]))
    return torch.stack(rows)


PROMPTS = {
    "other lengths after a long shared beginning": lambda m: prompts(m, 3, 9, 1, 14, shared=SHARED),
    "one length after a long shared beginning": lambda m: prompts(m, 5, 5, 5, shared=SHARED),
    "other lengths, nothing shared": lambda m: prompts(m, 3, 9, 30),
    "identical": lambda m: prompts(m, SHARED) * 3,
    "one prompt": lambda m: prompts(m, SHARED),
    "one that begins another": lambda m: [whole := prompts(m, SHARED)[0], whole[:7]],
    "one token each": lambda m: prompts(m, 1, 1),
}


@pytest.mark.parametrize("response", [RESPONSE, RESPONSE[:1]], ids=["response", "one token"])
@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_equal_those_of_plain_passes(models, name, kind, response):
    model = models(name)
    embedded = PROMPTS[kind](model)
    scores = log_probabilities(model, embedded, response)
    assert scores.shape == (len(embedded), len(response))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), plain(model, embedded, response), rtol=1e-4, atol=1e-4)


def test_plain_passes_give_different_scores_for_different_prompts(models):
    """Otherwise scores that ignore the prompt could pass the test above."""
    for name in ARCHITECTURES:
        model = models(name)
        scores = plain(model, PROMPTS["other lengths after a long shared beginning"](model), RESPONSE)
        assert (scores - scores[0])[1:].abs().amax(1).min() > 1e-2, name


def test_scores_are_log_probabilities_that_sum_to_1(models):
    """The probabilities of the first token sum to 1 over the vocabulary."""
    model = models("llama")
    embedded = prompts(model, 3, 9, shared=SHARED)
    scores = torch.stack([log_probabilities(model, embedded, [token])[:, 0] for token in range(VOCABULARY)])
    torch.testing.assert_close(scores.double().exp().sum(0), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-5)


def test_the_order_of_the_prompts_does_not_matter(models):
    model = models("llama")
    embedded = prompts(model, 3, 9, 1, 14, shared=SHARED)
    turned = log_probabilities(model, embedded[::-1], RESPONSE).flip(0)
    torch.testing.assert_close(turned, log_probabilities(model, embedded, RESPONSE), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_the_shared_prefix_of_prompts_is_computed_once(models, name):
    model, shapes = models(name), []
    embedded = prompts(model, 3, 9, 1, shared=SHARED)
    hook = model.register_forward_pre_hook(
        lambda module, args, given: shapes.append(tuple(given["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    log_probabilities(model, embedded, RESPONSE)
    hook.remove()
    # The last token of the shortest prompt predicts the response, so it is not part of the shared prefix.
    assert shapes == [(1, SHARED), (3, 9 + len(RESPONSE) - 1)]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_model_is_not_changed(models, implementation):
    model = copy.deepcopy(models("llama"))
    model.set_attn_implementation(implementation)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    config, generation = model.config.to_dict(), model.generation_config.to_dict()
    log_probabilities(model, prompts(model, 3, 9, shared=SHARED), RESPONSE)
    assert model.config.to_dict() == config
    assert model.generation_config.to_dict() == generation
    assert model.config._attn_implementation == implementation
    assert not model.training
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_prompts_are_not_changed(models):
    model = models("llama")
    embedded = prompts(model, 3, 9, shared=SHARED)
    before = [prompt.clone() for prompt in embedded]
    log_probabilities(model, embedded, RESPONSE)
    assert all(torch.equal(prompt, copied) for prompt, copied in zip(embedded, before, strict=True))


def test_nan_stays_nan(models):
    """NaN in one prompt affects its own row only."""
    model = models("llama")
    embedded = prompts(model, 3, 9, 5, shared=SHARED)
    whole = log_probabilities(model, embedded, RESPONSE)
    embedded[1] = embedded[1].clone()
    embedded[1][-2] = torch.nan
    scores = log_probabilities(model, embedded, RESPONSE)
    assert scores[1].isnan().all()
    torch.testing.assert_close(scores[[0, 2]], whole[[0, 2]], rtol=1e-4, atol=1e-4)


def test_gathered_scores_equal_the_full_log_softmax():
    logits = torch.randn(3, 4, 11, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([5, 0, 10, 5])
    scores = gathered_log_probabilities(logits.bfloat16(), ids)
    assert scores.dtype == torch.float32
    expected = logits.bfloat16().double().log_softmax(-1)
    for row in range(3):
        for m, token in enumerate(ids.tolist()):
            assert scores[row, m].item() == pytest.approx(expected[row, m, token].item(), abs=1e-6)
