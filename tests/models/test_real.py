"""The embedded models: loading, number of speech tokens, and an answer of the LLM."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe import assets
from lsm_probe.data.audio import read_audio
from lsm_probe.models import LsmForConditionalGeneration
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.segments import Segment

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def untrained(builtin: Callable[[str], Checkpoint]) -> Checkpoint:
    return builtin("builtin:untrained")


@pytest.fixture(scope="module")
def text_llm(builtin: Callable[[str], Checkpoint]) -> Checkpoint:
    return builtin("builtin:llm")


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    """The first built-in utterance."""
    return read_audio(lsm_probe.read_manifest("builtin:probe")[0])


def test_the_untrained_connector_has_the_sizes_of_the_paper(untrained: Checkpoint) -> None:
    model = untrained.model
    assert isinstance(model, LsmForConditionalGeneration)
    count = sum(p.numel() for p in model.multi_modal_projector.parameters())
    print(f"the connector has {count:,} parameters")
    # Two blocks of self-attention, cross-attention from 384 and feed-forward, 768 wide, and the linear to 576.
    matrices = 2 * (4 * 768 * 768 + 2 * 768 * 768 + 2 * 384 * 768 + 2 * 768 * 3072) + 768 * 576
    assert matrices < count < 1.01 * matrices
    assert model.audio_tower.conv1.in_channels == 80
    assert untrained.template.name == "chat"
    assert untrained.name == "builtin:untrained"


def test_the_lsm_contains_the_embedded_llm_unchanged(untrained: Checkpoint, text_llm: Checkpoint) -> None:
    inside, own = untrained.llm.state_dict(), text_llm.model.state_dict()
    assert inside.keys() == own.keys()
    assert all(torch.equal(inside[name], own[name]) for name in own)


def test_a_speech_token_covers_a_third_of_a_second(untrained: Checkpoint, speech: np.ndarray) -> None:
    prompt = untrained.encode("Continue writing the text.", speech)
    assert 2 < len(speech) / 16_000 < 10
    assert prompt.count(Segment.SOURCE) == math.ceil(math.ceil(len(speech) / 320) / 17)
    assert prompt.count(Segment.SYSTEM) > 5
    [embedded] = untrained.embed([prompt])
    assert torch.isfinite(embedded).all()
    assert 1 <= len(untrained.generate([embedded], max_new_tokens=4)[0]) <= 4


def test_speech_is_embedded_the_same_alone_and_beside_longer_speech(untrained: Checkpoint, speech: np.ndarray) -> None:
    processor, model = untrained.processor, untrained.model
    instruction = "Continue writing the text."
    alone = dict(processor(instruction, speech))
    longer = np.tile(speech, math.ceil(31 * 16_000 / len(speech)))[: 31 * 16_000]
    together = dict(processor([instruction, instruction], [longer, speech], padding_side="left"))
    with torch.no_grad():
        expected = model(**alone).logits[0]
        actual = model(**together).logits[1, -len(expected) :]
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_llm_answers_a_question_correctly(text_llm: Checkpoint) -> None:
    prompt = text_llm.encode("Answer the question in one word.", "What is the capital of France?")
    [answer] = text_llm.generate(text_llm.embed([prompt]), max_new_tokens=20)
    assert "Paris" in text_llm.decode(answer)
    assert answer[-1] in text_llm.eos_token_ids


def test_building_with_seed_0_gives_the_builtin_checkpoint(untrained: Checkpoint) -> None:
    again = lsm_probe.build_lsm(assets.speech_encoder(), assets.language_model(), seed=0).model.state_dict()
    state = untrained.model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in state.items())


def test_trimmed_encoder_states_are_close_to_those_with_trailing_silence(untrained: Checkpoint) -> None:
    """Whisper was trained on 30 s with trailing silence: without it, states are close but not equal."""
    trimmed = lsm_probe.build_lsm(assets.speech_encoder(), assets.language_model(), encoder_context="trimmed")
    relative, cosine = [], []
    for sample in lsm_probe.read_manifest("builtin:probe")[:6]:
        prompt = untrained.encode(sample.instruction, read_audio(sample))
        with torch.no_grad():
            full, cut = (model.encode_speech(**prompt.features)[0][0] for model in (untrained.model, trimmed.model))
        assert full.shape == cut.shape
        relative.append(((full - cut).norm() / full.norm()).item())
        cosine.append(torch.nn.functional.cosine_similarity(full, cut).mean().item())
    assert max(relative) < 0.8
    assert min(cosine) > 0.7
    assert min(relative) > 1e-3
