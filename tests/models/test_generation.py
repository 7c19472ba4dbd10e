"""Generation in a batch whose rows end at different times gives the same as transformers on each prompt alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM

import lsm_probe
from lsm_probe.errors import InputError, SampleFault
from lsm_probe.models.checkpoint import Checkpoint

TEXTS = ["the quick brown fox", "rain", "she sells sea shells by the sea shore", "my favourite colour is green", "old"]


def alone(checkpoint: Checkpoint, ids: list[int], limit: int, eos: list[int]) -> list[int]:
    """One prompt, unpadded, through transformers' generate from its token ids."""
    checkpoint.llm.generation_config = GenerationConfig()
    made = checkpoint.llm.generate(
        input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=limit, eos_token_id=eos, pad_token_id=eos[0]
    )
    return list(made[0, len(ids) :].tolist())


@pytest.mark.parametrize("limit", [1, 7, 8, 9, 40])
def test_a_batch_generates_the_same_as_each_prompt_alone(tiny_llm: Checkpoint, limit: int) -> None:
    prompts = [tiny_llm.encode("Continue writing the text.", text) for text in TEXTS]
    # Tokens that occur in these answers at different places: some rows end early, some never.
    free = [alone(tiny_llm, prompt.input_ids, 40, [0]) for prompt in prompts]
    ends = [free[0][2], free[2][11]]
    tiny_llm.model.generation_config.eos_token_id = ends
    expected = [alone(tiny_llm, prompt.input_ids, limit, ends) for prompt in prompts]
    tiny_llm.model.generation_config.eos_token_id = ends
    assert tiny_llm.generate(tiny_llm.embed(prompts), max_new_tokens=limit) == expected
    if limit == 40:
        assert len({len(answer) for answer in expected}) > 1


def test_the_model_keeps_its_own_generation_settings(tiny_llm: Checkpoint) -> None:
    own = tiny_llm.llm.generation_config
    own.repetition_penalty = 1.7
    prompts = [tiny_llm.encode("Continue writing the text.", text) for text in TEXTS[:2]]
    tiny_llm.generate(tiny_llm.embed(prompts), max_new_tokens=9)
    assert tiny_llm.llm.generation_config is own
    assert own.repetition_penalty == 1.7


def test_nan_logits_are_refused(tiny_llm: Checkpoint) -> None:
    with torch.no_grad():
        tiny_llm.llm.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    prompts = [tiny_llm.encode("Continue writing the text.", TEXTS[0])]
    with pytest.raises(SampleFault, match="logits are NaN: the weights hold NaN, or the dtype overflows"):
        tiny_llm.generate(tiny_llm.embed(prompts), max_new_tokens=3)


def test_a_cache_whose_rows_cannot_be_selected_is_refused(tmp_path: Path, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    config = MambaConfig(vocab_size=448, hidden_size=32, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    mamba = lsm_probe.load(tmp_path, device="cpu")
    prompts = [mamba.encode("Continue.", text) for text in TEXTS[:2]]
    with pytest.raises(InputError, match="MambaForCausalLM has a cache whose rows cannot be selected"):
        mamba.generate(mamba.embed(prompts), max_new_tokens=20)
