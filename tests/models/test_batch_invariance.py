"""An utterance has the same embeddings, logits and answer alone, in any batch and with any padding."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import lsm_probe
from lsm_probe.models import LsmForConditionalGeneration, LsmProcessor, LsmProjectorConfig
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.checkpoint_kinds import Lsm

INSTRUCTION = "Continue writing the text."
SECONDS = 1.7
# Lengths of the other utterances; 31 s makes two pieces, so that the numbers of pieces and rows differ.
COMPANIONS = [6.0, 0.3, 31.0, 2.0, 9.5, 4.4, 12.0]
MAX_NEW_TOKENS = 10


@dataclass
class Batch:
    """Eight utterances; the one that is compared is in row `row`."""

    inputs: dict[str, Tensor]
    row: int

    @property
    def positions(self) -> Tensor:
        """Positions of the compared utterance's tokens in its row."""
        return self.inputs["attention_mask"][self.row].nonzero()[:, 0]


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the tensor's largest value."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture
def model(tiny_lsm: Lsm) -> LsmForConditionalGeneration:
    return tiny_lsm.model


@pytest.fixture
def processor(tiny_lsm: Lsm) -> LsmProcessor:
    return tiny_lsm.processor


@pytest.fixture
def alone(processor: LsmProcessor, waveform: Callable[..., np.ndarray]) -> dict[str, Tensor]:
    return dict(processor(INSTRUCTION, waveform(SECONDS)))


@pytest.fixture
def make_batch(processor: LsmProcessor, waveform: Callable[..., np.ndarray]) -> Callable[..., Batch]:
    def make(padding_side: Literal["left", "right"], row: int) -> Batch:
        audios = [waveform(s, seed) for seed, s in enumerate(COMPANIONS, start=1)]
        instructions = [f"{INSTRUCTION} {'Say it again. ' * n}" for n in range(len(COMPANIONS))]
        audios.insert(row, waveform(SECONDS))
        instructions.insert(row, INSTRUCTION)
        batch = Batch(dict(processor(instructions, audios, padding_side=padding_side)), row)
        assert len(batch.inputs["input_ids"]) == 8
        assert len(batch.inputs["input_features"]) == 9
        return batch

    return make


@pytest.mark.parametrize("row", [0, 4, 7])
@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.no_grad()
def test_embeddings_and_logits_do_not_depend_on_the_batch(
    model: LsmForConditionalGeneration,
    alone: dict[str, Tensor],
    make_batch: Callable[..., Batch],
    padding_side: Literal["left", "right"],
    row: int,
) -> None:
    batch = make_batch(padding_side, row)
    assert torch.equal(batch.inputs["input_ids"][row, batch.positions], alone["input_ids"][0])
    assert len(batch.positions) < batch.inputs["input_ids"].shape[1]  # there is padding
    keys = ("input_ids", "input_features", "input_features_mask")
    embedded = model.embed(*(batch.inputs[key] for key in keys))
    assert_same(embedded[row, batch.positions], model.embed(*(alone[key] for key in keys))[0])
    logits = model(**batch.inputs).logits
    assert_same(logits[row, batch.positions], model(**alone).logits[0])


@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.no_grad()
def test_every_connector_and_tower_is_batch_invariant(
    shape: Lsm, waveform: Callable[..., np.ndarray], padding_side: Literal["left", "right"]
) -> None:
    processor, model = shape.processor, shape.model
    assert isinstance(model, LsmForConditionalGeneration)
    alone = dict(processor(INSTRUCTION, waveform(SECONDS)))
    # Longer ones, a shorter one, two pieces, and one of the same length.
    audios = [waveform(s, seed) for seed, s in enumerate([6.0, SECONDS, 31.0, 0.3, SECONDS])]
    audios[1] = waveform(SECONDS)
    instructions = [f"{INSTRUCTION} {'Say it again. ' * n}" for n in (2, 0, 3, 1, 1)]
    batch = Batch(dict(processor(instructions, audios, padding_side=padding_side)), 1)
    speech = ("input_features", "input_features_mask")
    states, lengths = model.encode_speech(*(batch.inputs[key] for key in speech))
    expected, [length] = model.encode_speech(*(alone[key] for key in speech))
    assert lengths[1] == length
    assert_same(states[1, :length], expected[0, :length])
    embedded = model.embed(batch.inputs["input_ids"], *(batch.inputs[key] for key in speech))
    assert_same(embedded[1, batch.positions], model.embed(alone["input_ids"], *(alone[key] for key in speech))[0])
    assert_same(model(**batch.inputs).logits[1, batch.positions], model(**alone).logits[0])


@pytest.fixture
def gpt2_lsm(
    tmp_path: Path,
    tiny_encoder_folder: Path,
    tiny_projector: Callable[..., LsmProjectorConfig],
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> Lsm:
    """An LSM whose LLM has learned absolute positions, which show any shift, unlike rotary ones."""
    sizes = {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 448}
    torch.manual_seed(0)
    config = GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return lsm_probe.build_lsm(tiny_encoder_folder, tmp_path, projector=tiny_projector())


@pytest.mark.parametrize("padding_side", ["left", "right"])
@torch.no_grad()
def test_models_with_learned_positions_are_batch_invariant(
    gpt2_lsm: Lsm, waveform: Callable[..., np.ndarray], padding_side: Literal["left", "right"]
) -> None:
    processor, model = gpt2_lsm.processor, gpt2_lsm.model
    audios = [waveform(5, 1), waveform(SECONDS)]
    alone = dict(processor(INSTRUCTION, audios[1]))
    inputs = dict(processor([INSTRUCTION, INSTRUCTION], audios, padding_side=padding_side))
    real = inputs["attention_mask"][1].bool()
    expected = model(**alone).logits[0]
    assert_same(model(**inputs).logits[1, real], expected)
    assert_same(expected, model(**{k: v for k, v in alone.items() if k != "attention_mask"}).logits[0])
    if padding_side == "left":
        settings = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
        answers = [model.generate(**i, **settings)[-1, i["input_ids"].shape[1] :].tolist() for i in (inputs, alone)]
        prompts = [gpt2_lsm.encode(INSTRUCTION, audio) for audio in audios]
        ours = gpt2_lsm.generate(gpt2_lsm.embed(prompts), max_new_tokens=MAX_NEW_TOKENS)[1]
        assert answers == [ours, ours]


@pytest.mark.parametrize("row", [0, 7])
def test_generated_tokens_do_not_depend_on_the_batch(
    model: LsmForConditionalGeneration, alone: dict[str, Tensor], make_batch: Callable[..., Batch], row: int
) -> None:
    batch = make_batch("left", row)
    answers = [
        model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for inputs in (batch.inputs, alone)
    ]
    assert answers[0][row].tolist() == answers[1][0].tolist()
    assert len({tuple(answer) for answer in answers[0].tolist()}) > 1


def test_embed_and_generate_do_not_depend_on_the_batch(tiny_lsm: Lsm, waveform: Callable[..., np.ndarray]) -> None:
    prompts = [tiny_lsm.encode(INSTRUCTION, waveform(s, n)) for n, s in enumerate([SECONDS, *COMPANIONS])]
    embedded = tiny_lsm.embed(prompts)
    assert all(torch.equal(e, tiny_lsm.embed([p])[0]) for e, p in zip(embedded, prompts, strict=True))
    together = tiny_lsm.generate(embedded, max_new_tokens=MAX_NEW_TOKENS)
    assert together == [tiny_lsm.generate([e], max_new_tokens=MAX_NEW_TOKENS)[0] for e in embedded]


def test_a_text_llm_generates_the_same_alone_and_with_longer_prompts(tiny_llm: Checkpoint) -> None:
    sources = ["the rain", "the lazy dog jumps over the quick brown fox " * 8, "she sells sea shells " * 3]
    embedded = tiny_llm.embed([tiny_llm.encode(INSTRUCTION, source) for source in sources])
    together = tiny_llm.generate(embedded, max_new_tokens=MAX_NEW_TOKENS)
    assert together == [tiny_llm.generate([e], max_new_tokens=MAX_NEW_TOKENS)[0] for e in embedded]


@torch.no_grad()
def test_the_content_of_the_padding_does_not_matter(
    model: LsmForConditionalGeneration, make_batch: Callable[..., Batch]
) -> None:
    batch = make_batch("left", 3)
    padding = batch.inputs["attention_mask"] == 0
    logits = model(**batch.inputs).logits[3, batch.positions]
    batch.inputs["input_ids"] = batch.inputs["input_ids"].masked_fill(padding, 300)
    assert_same(model(**batch.inputs).logits[3, batch.positions], logits)
