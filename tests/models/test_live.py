"""Checkpoints made from models in memory, and measuring them without changing them."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from torch import nn

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.models.checkpoint import Checkpoint


@pytest.fixture(params=["tiny_lsm", "tiny_llm"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    return request.getfixturevalue(request.param)


def given_with(checkpoint: Checkpoint) -> object:
    return checkpoint.processor or checkpoint.tokenizer


def test_a_model_in_memory_gives_the_same_numbers_as_the_loaded_one(checkpoint, samples) -> None:
    wrapped = nn.DataParallel(checkpoint.model)
    live = lsm_probe.from_model(wrapped, given_with(checkpoint), name="step 3")
    assert type(live) is type(checkpoint)
    assert live.name == "step 3"
    assert live.identity.weights_sha256 is None
    assert live.identity.prompt_sha256 == checkpoint.identity.prompt_sha256
    loaded, own = (lsm_probe.attention(each, samples[:2], max_new_tokens=4) for each in (checkpoint, live))
    assert np.array_equal(loaded.eta().mean, own.eta().mean)


def test_adapters_stay_active(tiny_lsm, samples) -> None:
    before = lsm_probe.attention(tiny_lsm, samples[:2], response="reference").eta().mean
    settings = LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    live = lsm_probe.from_model(get_peft_model(tiny_lsm.model, settings), tiny_lsm.processor)
    with lsm_probe.unchanged(live.model):
        assert not np.allclose(before, lsm_probe.attention(live, samples[:2], response="reference").eta().mean)


def test_unsupported_models_are_refused_in_one_line(tiny_llm, tiny_lsm) -> None:
    with pytest.raises(InputError, match=r"needs its tokenizer .* as processing_class, and was given none"):
        lsm_probe.from_model(tiny_llm.model, None)
    with pytest.raises(InputError, match="needs the LsmProcessor it was saved with"):
        lsm_probe.from_model(tiny_lsm.model, tiny_lsm.tokenizer)
    with pytest.raises(InputError, match="a Linear cannot be probed"):
        lsm_probe.from_model(nn.Linear(2, 2), None)
    with pytest.raises(InputError, match="is a WhisperEncoder, which is neither"):
        lsm_probe.from_model(tiny_lsm.model.audio_tower, tiny_lsm.processor)
    tuned = get_peft_model(tiny_llm.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(InputError, match="prompt tuning cannot be probed"):
        lsm_probe.from_model(tuned, tiny_llm.tokenizer)


def test_the_models_state_is_restored_after_the_block_and_after_an_error(tiny_lsm) -> None:
    model = tiny_lsm.model.train()
    model.language_model.eval()  # a part that is not trained
    model.register_buffer("counted", torch.zeros(2))
    model.set_attn_implementation("eager")
    model._original_forward, model.forward = model.forward, lambda **_: None  # as accelerate's autocast
    calls: list[str] = []
    handle = model.register_forward_pre_hook(lambda *_: calls.append("hook"))
    training = [module.training for module in model.modules()]
    weights = deepcopy(model.state_dict())
    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
    drawn = [torch.rand(3).tolist(), np.random.rand(), random.random()]  # noqa: NPY002
    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
    forward = model.forward
    with pytest.raises(ZeroDivisionError), lsm_probe.unchanged(model):  # noqa: PT012
        assert model.forward == model._original_forward
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
        assert model.language_model.model.config._attn_implementation == "sdpa"
        model.counted += 1
        model.stray = "attribute"
        model.register_forward_hook(lambda *_: calls.append("stray"))
        model.counted = torch.ones(3)
        torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
        1 / 0  # noqa: B018
    assert [torch.rand(3).tolist(), np.random.rand(), random.random()] == drawn  # noqa: NPY002
    assert [module.training for module in model.modules()] == training
    assert all(tensor.equal(weights[name]) for name, tensor in model.state_dict().items())
    assert model.language_model.model.config._attn_implementation == "eager"
    assert model.forward is forward
    assert not hasattr(model, "stray")
    assert len(model._forward_hooks) == 0
    handle.remove()  # still refers to where the hook is
    assert len(model._forward_pre_hooks) == 0
