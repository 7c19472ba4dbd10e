"""The main job on the real embedded models and the built-in speech."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.result import SEGMENTS

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def samples():
    return lsm_probe.read_manifest("builtin:probe")


@pytest.fixture(scope="module", params=["builtin:llm", "builtin:untrained"])
def checkpoint(request, builtin):
    return builtin(request.param)


@pytest.fixture(scope="module")
def result(checkpoint, samples):
    return lsm_probe.attention(checkpoint, samples[:4], max_new_tokens=8)


def prompt_of(checkpoint, sample):
    return checkpoint.encode(sample.instruction, read_audio(sample) if checkpoint.processor else sample.text)


def test_equals_brute_force_in_float64(checkpoint, samples, result):
    """Eager attention of a float64 copy and the equation written out: all layers, segments and heads of one sample."""
    prompt = prompt_of(checkpoint, samples[0])
    response = torch.tensor(result.samples[0]["response_ids"])
    llm = checkpoint.llm
    embeds = torch.cat([checkpoint.embed([prompt])[0], llm.get_input_embeddings()(response)])[None].double()
    double = copy.deepcopy(llm).double()
    double.set_attn_implementation("eager")
    values = []
    for layer in double.model.layers:
        layer.self_attn.v_proj.register_forward_hook(lambda module, args, output: values.append(output[0]))
    with torch.no_grad():
        attentions = double(inputs_embeds=embeds, output_attentions=True).attentions
    segments = torch.tensor(prompt.segments)
    rows = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
    for index, (layer, value, attention) in enumerate(zip(double.model.layers, values, attentions, strict=True)):
        alpha = attention[0, :, rows, : len(prompt)]  # [heads, rows, keys]
        v = value[: len(prompt)].unflatten(1, (-1, 64)).repeat_interleave(3, 1)  # [keys, heads, 64]
        f = torch.einsum("jhe,dhe->hjd", v, layer.self_attn.o_proj.weight.unflatten(1, (-1, 64)))
        a = torch.stack([torch.einsum("hj,hjd->jd", alpha[:, m], f).norm(dim=-1) for m in range(len(response))]).mean(0)
        a_heads = (alpha.mean(1) * f.norm(dim=-1)).detach()
        for column, name in enumerate(SEGMENTS[:-1]):
            mine = segments == Segment[name.upper()]
            np.testing.assert_allclose(result.norms[0, index, column], a[mine].sum().item(), rtol=1e-4)
            np.testing.assert_allclose(result.head_norms[0, index, :, column], a_heads[:, mine].sum(1), rtol=1e-3)


def test_logits_are_bit_identical_with_the_probe_on_and_off(checkpoint, samples):
    from lsm_probe.instruments.capture import capture
    from lsm_probe.probes.attention.measure import SegmentSums, generating_rows

    prompts = [prompt_of(checkpoint, sample) for sample in samples[:2]]
    embedded = checkpoint.embed(prompts)
    inputs = torch.nn.utils.rnn.pad_sequence(embedded, batch_first=True)
    mask = (torch.arange(inputs.shape[1]) < torch.tensor([[len(p)] for p in prompts])).long()
    with torch.no_grad():
        plain = checkpoint.llm(inputs_embeds=inputs, attention_mask=mask).logits
        rows, row_mask = generating_rows([len(p) - 3 for p in prompts], [3, 3])
        with (
            capture(checkpoint.llm) as captured,
            captured.at_rows(rows, row_mask, SegmentSums(prompts, row_mask, False)),
        ):
            probed = checkpoint.llm(inputs_embeds=inputs, attention_mask=mask).logits
    assert torch.equal(plain, probed)


def test_eta_of_a_sample_alone_equals_eta_in_a_batch(checkpoint, samples, result):
    alone = lsm_probe.attention(checkpoint, samples[2:3], responses=result.responses())
    for heads in ("sum_then_norm", "mean_of_norms"):
        one, many = (r.with_conventions(heads=heads) for r in (alone, result))
        np.testing.assert_allclose(ratios(one)[0], ratios(many)[2], rtol=1e-5)


def ratios(result):
    """Eta of each sample and layer."""
    instruction, source = result.scores()
    return instruction / (instruction + source)


def test_the_self_check_has_room_to_spare(result):
    assert result.self_check["worst"] < 0.2 * result.self_check["worst_bound"]


def test_bfloat16_agrees_to_its_precision(builtin, samples):
    exact = lsm_probe.attention(builtin("builtin:llm"), samples[:2], response="reference").eta().mean
    half = lsm_probe.attention(
        lsm_probe.load("builtin:llm", device="cpu", dtype="bfloat16"), samples[:2], response="reference"
    )
    np.testing.assert_allclose(half.eta().mean, exact, atol=0.02)
    assert half.self_check["median"] < 5e-3


def test_the_readme_python_runs_as_it_stands(monkeypatch, tmp_path, capsys):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    code = re.findall(r"```python\n(.*?)```", readme, re.S)[0]
    read = lsm_probe.read_manifest
    monkeypatch.setattr(lsm_probe, "read_manifest", lambda name: read(name)[:4])
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert capsys.readouterr().out.startswith("SensitivityResult(builtin:vanilla_asr, 4 samples of 2 utterances): D_i")
