"""Every rope type of transformers: results of a sample do not depend on batch or order.

`longrope` and `dynamic` choose their frequencies by the longest sequence of a pass. The limits here are between the
samples' lengths, so that a batch has sequences below and above.
"""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

import lsm_probe
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.probes.importance.measure import response_loss
from lsm_probe.runner.options import ResponseOptions
from lsm_probe.runner.prepared_samples import prepare

LIMIT = 110
HEAD = 8
FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 6.0, 8.0, 9.0]}
LONGROPE = {**FACTORS, "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": LIMIT}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 8.0}
OF_TYPE = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 8.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": LIMIT},
    "longrope": {**FACTORS, "original_max_position_embeddings": LIMIT},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": LIMIT,
    },
    "proportional": {"partial_rotary_factor": 0.5},
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
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
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
# Of mellum, kinds of layers have frequencies of their own.
OF_FAMILY = {
    "phi3": {"rope_parameters": {**LONGROPE, "partial_rotary_factor": 1.0}, "original_max_position_embeddings": LIMIT},
    "phimoe": {
        **EXPERTS,
        "rope_parameters": {**LONGROPE, "short_mscale": 1.0, "long_mscale": 1.3},
        "original_max_position_embeddings": LIMIT,
    },
    "phi4_multimodal": {
        **PHI4_TOWERS,
        "rope_parameters": {**LONGROPE, "partial_rotary_factor": 1.0},
        "original_max_position_embeddings": LIMIT,
    },
    "mellum": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "sliding_window": 1000,
        "layer_types": LAYER_TYPES,
        "rope_parameters": {"full_attention": LONGROPE, "sliding_attention": DYNAMIC},
    },
}
CASES = {
    **{
        kind: ("llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": kind, **OF_TYPE[kind]}})
        for kind in OF_TYPE
    },
    **{family: (family, changes) for family, changes in OF_FAMILY.items()},
}
BY_LENGTH = ["dynamic", "longrope", *OF_FAMILY]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def checkpoint(case: str, tiny_llm: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    # `dynamic` counts from the length that otherwise bounds prompts.
    monkeypatch.setattr(Checkpoint, "context_length", None)
    family, changes = CASES[case]
    sizes = {
        "hidden_size": 6 * HEAD,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": HEAD,
        "vocab_size": tiny_llm.llm.config.vocab_size,
        "max_position_embeddings": LIMIT,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**sizes, **changes})).eval()
    return replace(tiny_llm, model=model, name=case)


@pytest.fixture
def own(checkpoint: Checkpoint) -> torch.nn.Module:
    """The model as transformers runs it, without our code."""
    model = AutoModelForCausalLM.from_config(deepcopy(checkpoint.llm.config)).eval()
    model.load_state_dict(checkpoint.llm.state_dict())
    return model


WORDS = "the quick brown fox jumps over the lazy dog while rain falls softly on the old town"
RESPONSE = [5, 9, 300, 44, 120, 7]


@pytest.fixture
def samples(checkpoint: Checkpoint) -> list[Sample]:
    """Three samples: one shorter than the limit, one much longer, and one whose response passes it."""
    instruction = "Translate the speech into German."
    texts = ["rain falls", f"{WORDS} {WORDS} {WORDS}", WORDS]
    while len(checkpoint.encode(instruction, texts[2])) + len(RESPONSE) <= LIMIT + 2:
        texts[2] += " a"
    lengths = [len(checkpoint.encode(instruction, text)) for text in texts]
    assert lengths[0] + len(RESPONSE) < LIMIT < lengths[1]
    assert lengths[2] < LIMIT < lengths[2] + len(RESPONSE)
    return [Sample(id=str(i), instruction=instruction, text=text, task=f"task {i}") for i, text in enumerate(texts)]


def test_every_rope_type_has_a_test_case() -> None:
    assert set(OF_TYPE) == {*ROPE_INIT_FUNCTIONS, "default"}


def test_only_these_types_depend_on_the_batch_in_transformers(
    case: str, checkpoint: Checkpoint, own: torch.nn.Module, samples: list[Sample]
) -> None:
    """Shows that the dependence that the other tests exclude exists."""
    with torch.no_grad():
        short, long = checkpoint.embed([checkpoint.encode(s.instruction, s.text or "") for s in samples[:2]])
        inputs = torch.nn.utils.rnn.pad_sequence([short, long], batch_first=True)
        mask = (torch.arange(len(long)) < torch.tensor([[len(short)], [len(long)]])).long()
        alone = own(inputs_embeds=short[None], use_cache=False).logits[0]
        beside = own(inputs_embeds=inputs, attention_mask=mask, use_cache=False).logits[0, : len(short)]
    assert ((alone - beside).abs().max() > 1e-2) == (case in BY_LENGTH)


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 2, 0]])
def test_eta_does_not_depend_on_the_batch(checkpoint: Checkpoint, samples: list[Sample], order: list[int]) -> None:
    responses = {sample.id: RESPONSE for sample in samples}
    alone = [lsm_probe.attention(checkpoint, [s], responses=responses).norms[0] for s in samples]
    mixed = [samples[i] for i in order]
    together = lsm_probe.attention(checkpoint, mixed, responses=responses, batch_size=3).norms
    np.testing.assert_allclose(together, np.stack([alone[i] for i in order]), rtol=1e-4, atol=1e-6)


def test_log_probabilities_agree_between_probes(
    checkpoint: Checkpoint, own: torch.nn.Module, samples: list[Sample]
) -> None:
    responses = {sample.id: RESPONSE for sample in samples}
    plain = []
    for sample in samples:
        prompt = torch.tensor(checkpoint.encode(sample.instruction, sample.text or "").input_ids)
        fresh = deepcopy(own)  # `dynamic` remembers
        with torch.no_grad():
            logits = fresh(input_ids=torch.cat([prompt, torch.tensor(RESPONSE)])[None], use_cache=False).logits[0]
        plain.append(logits[len(prompt) - 1 : -1].log_softmax(-1)[range(len(RESPONSE)), RESPONSE].mean().item())
    knocked_out = lsm_probe.knockout(checkpoint, samples, responses=responses).log_prob
    np.testing.assert_allclose(knocked_out, plain, rtol=0, atol=1e-5)
    pool = lsm_probe.read_pool("probing")
    sensitive = lsm_probe.sensitivity(checkpoint, samples, instructions=pool, responses=responses)
    np.testing.assert_allclose(sensitive.instruction_log_probs[:, 0].mean(-1), plain, rtol=0, atol=1e-5)
    items, _ = prepare(checkpoint, samples, ResponseOptions(responses=responses), "fail")
    losses = [response_loss(checkpoint, item).item() for item in items]
    np.testing.assert_allclose(losses, [-mean for mean in plain], rtol=0, atol=1e-5)


def test_answers_equal_those_of_the_model_without_a_cache(
    checkpoint: Checkpoint, own: torch.nn.Module, samples: list[Sample]
) -> None:
    prompts = [checkpoint.encode(sample.instruction, sample.text or "") for sample in samples]
    expected = []
    for prompt in prompts:
        made = deepcopy(own).generate(  # type: ignore[operator]
            input_ids=torch.tensor([prompt.input_ids]),
            do_sample=False,
            max_new_tokens=20,
            use_cache=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        expected.append(made[0, len(prompt) :].tolist())
    checkpoint.model.generation_config.eos_token_id = []
    assert checkpoint.generate(checkpoint.embed(prompts), max_new_tokens=20) == expected


@pytest.mark.parametrize("case", BY_LENGTH, indirect=True)
def test_the_self_check_of_sensitivity_detects_dependence_on_the_batch(
    checkpoint: Checkpoint, own: torch.nn.Module, samples: list[Sample]
) -> None:
    checkpoint.model = own  # type: ignore[assignment]  # as transformers runs it
    responses = {sample.id: RESPONSE for sample in samples}
    with pytest.raises(InputError, match="differ from those of single passes"):
        lsm_probe.sensitivity(checkpoint, samples, instructions=lsm_probe.read_pool("probing"), responses=responses)
