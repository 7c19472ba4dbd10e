"""Sensitivity, knockout and alignment on the real embedded models and the built-in speech."""

import copy

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.models.segments import Segment
from lsm_probe.probes.knockout.result import SEGMENTS

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def samples():
    """Five utterances under the five probing instructions."""
    return lsm_probe.read_manifest("builtin:probe")[:5]


@pytest.fixture(scope="module")
def text_llm(builtin):
    return builtin("builtin:llm")


@pytest.fixture(scope="module")
def untrained(builtin):
    return builtin("builtin:untrained")


@pytest.fixture(scope="module")
def knocked_out(text_llm, samples):
    return lsm_probe.knockout(text_llm, samples[:2], max_new_tokens=8)


def test_sensitivity_separates_a_model_that_uses_its_source_from_one_that_does_not(text_llm, untrained, samples):
    reads = lsm_probe.sensitivity(text_llm, samples, max_new_tokens=8)
    deaf = lsm_probe.sensitivity(untrained, samples[:3], max_new_tokens=8)
    assert reads.source().mean > 0.2  # five utterances, one of them an outlier: the interval is wide
    assert deaf.source().mean < 0.05
    assert deaf.instruction().mean > 0.05  # nothing else changes its responses
    assert reads.self_check["mean"] < 0.1 * reads.self_check["bound"]


def test_knockout_equals_an_eager_float64_pass_with_the_mask_edited_by_hand(text_llm, samples, knocked_out):
    sample = samples[0]
    prompt = text_llm.encode(sample.instruction, sample.text)
    ids = torch.tensor(knocked_out.samples[0]["response_ids"])
    llm = copy.deepcopy(text_llm.llm).double()
    llm.set_attn_implementation("eager")
    inputs = torch.cat([torch.tensor(prompt.input_ids), ids])[None]
    rows = slice(len(prompt) - 1, len(prompt) + len(ids) - 1)
    cut: dict = {"layers": range(0), "columns": []}

    def edit(module, args, kwargs):
        if module.layer_idx not in cut["layers"]:
            return None
        mask = kwargs["attention_mask"].clone()
        mask[..., rows, cut["columns"]] = -torch.inf
        return args, {**kwargs, "attention_mask": mask}

    for layer in llm.model.layers:
        layer.self_attn.register_forward_pre_hook(edit, with_kwargs=True)

    def log_prob():
        with torch.no_grad():
            logits = llm(input_ids=inputs, use_cache=False).logits[0, rows]
        return logits.log_softmax(-1).gather(1, ids[:, None]).mean().item()

    base = log_prob()
    assert knocked_out.log_prob[0] == pytest.approx(base, abs=1e-4)
    for s, segment in enumerate(SEGMENTS):
        cut["columns"] = [i for i, own in enumerate(prompt.segments) if own is segment]
        for middle in (1, 14, 22):
            cut["layers"] = range(middle - 2 if middle > 1 else 0, middle + 3)
            assert knocked_out.fall[0, s, middle] == pytest.approx(base - log_prob(), abs=2e-4)
        cut["layers"] = range(30)
        assert knocked_out.fall_all_layers[0, s] == pytest.approx(base - log_prob(), abs=2e-4)


def test_the_text_llm_loses_its_source_in_the_later_layers(knocked_out):
    falls = knocked_out.falls(Segment.SOURCE).mean
    assert falls[16:26].mean() > 3 * np.abs(falls[:6]).mean()
    assert knocked_out.fall_in_all_layers(Segment.SOURCE).mean > 0.3
    assert knocked_out.self_check["worst"] < 0.2 * knocked_out.self_check["worst_bound"]


def test_speech_tokens_are_the_same_encoded_once_or_every_time(untrained, samples):
    """What sensitivity spares: encoding the same utterance again for every instruction."""
    waveform = read_audio(samples[0])
    once = untrained.encode(samples[1].instruction, untrained.encode_speech(waveform))
    again = untrained.encode(samples[1].instruction, waveform)
    assert once.input_ids == again.input_ids
    torch.testing.assert_close(*untrained.embed([once, again]), rtol=0, atol=1e-6)
