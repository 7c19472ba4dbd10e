"""The knockout probe: equal to a forward pass with the mask edited by hand, and nothing stays behind."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen3Config,
)

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.data.identity import DataIdentity
from lsm_probe.errors import InputError
from lsm_probe.instruments.capture import capture
from lsm_probe.models.segments import Segment
from lsm_probe.probes.knockout.measure import plan_knockouts
from lsm_probe.probes.knockout.result import SEGMENTS, KnockoutConventions, KnockoutResult
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.identity import CheckpointIdentity

WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
FAMILIES = {
    "llama": lambda size: LlamaConfig(vocab_size=size, num_key_value_heads=2, **WIDTH),
    "qwen3": lambda size: Qwen3Config(vocab_size=size, num_key_value_heads=2, head_dim=8, **WIDTH),
    # A window shorter than the prompt: the cache forgets what the rows could not see anyway.
    "mistral": lambda size: MistralConfig(vocab_size=size, num_key_value_heads=2, sliding_window=9, **WIDTH),
    "gpt2": lambda size: GPT2Config(vocab_size=size, n_embd=32, n_layer=4, n_head=4, n_positions=512),
}


def probe(checkpoint, samples, **options):
    return lsm_probe.knockout(checkpoint, samples, **{"max_new_tokens": 6, "window": 3, **options})


def log_prob_by_hand(checkpoint, sample, response, segment, layers, head=None):
    """Mean log-probability of the response, in float64: one whole eager pass, the mask of some layers edited, for one
    of their heads or for all."""
    source = read_audio(sample) if checkpoint.source == "speech" else sample.text
    prompt = checkpoint.encode(sample.instruction, source)
    embedded = checkpoint.embed([prompt])[0].double()
    llm = deepcopy(checkpoint.llm).double()
    llm.set_attn_implementation("eager")
    ids = torch.tensor(response)
    inputs = torch.cat([embedded, llm.get_input_embeddings()(ids)])[None]
    first = len(prompt) - 1
    columns = [i for i, own in enumerate(prompt.segments) if own is segment]

    def edit(module, args, kwargs):
        mask = kwargs["attention_mask"].repeat(1, llm.config.num_attention_heads, 1, 1)
        heads = slice(None) if head is None else slice(head, head + 1)
        mask[:, heads, first:, columns] = -torch.inf
        return args, {**kwargs, "attention_mask": mask}

    modules = [m for m in llm.modules() if "Attention" in type(m).__name__ and hasattr(m, "layer_idx")]
    for module in modules:
        if module.layer_idx in layers:
            module.register_forward_pre_hook(edit, with_kwargs=True)
    with torch.no_grad():
        logits = llm(inputs_embeds=inputs, use_cache=False).logits[0, first:-1]
    return logits.log_softmax(-1).gather(1, ids[:, None]).mean().item()


def check_by_hand(checkpoint, samples, result, window):
    n_layers = result.n_layers
    for i, (sample, stored) in enumerate(zip(samples, result.samples, strict=True)):
        ids = stored["response_ids"]
        base = log_prob_by_hand(checkpoint, sample, ids, None, [])
        assert result.log_prob[i] == pytest.approx(base, abs=2e-5)
        for s, segment in enumerate(SEGMENTS):
            for layer in range(n_layers):
                layers = [x for x in range(n_layers) if abs(x - layer) <= window // 2]
                fall = base - log_prob_by_hand(checkpoint, sample, ids, segment, layers)
                assert result.fall[i, s, layer] == pytest.approx(fall, abs=2e-5)
            fall = base - log_prob_by_hand(checkpoint, sample, ids, segment, range(n_layers))
            assert result.fall_all_layers[i, s] == pytest.approx(fall, abs=2e-5)
            for place, head in np.ndindex(*result.fall_heads.shape[2:]):
                layers = [result.head_layers[place]]
                fall = base - log_prob_by_hand(checkpoint, sample, ids, segment, layers, head)
                assert result.fall_heads[i, s, place, head] == pytest.approx(fall, abs=2e-5)


def test_falls_equal_a_pass_with_the_mask_edited_by_hand(checkpoint, samples):
    result = probe(checkpoint, samples[:3], single_heads=True)
    assert np.abs(result.fall).max() > 1e-3
    assert result.fall_heads.shape == (3, 2, 3, 6)
    assert np.abs(result.fall_heads).max() > 1e-3
    check_by_hand(checkpoint, samples[:3], result, window=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_the_mask_edited_by_hand(family, tiny_llm, samples):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](tiny_llm.llm.config.vocab_size)).eval()
    # Drawn weights hardly attend: larger ones make the falls worth comparing.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3) if parameter.dim() > 1 else None
    checkpoint = replace(tiny_llm, model=model, name=family)
    responses = {s.id: [5, 9, 300] for s in samples}
    result = probe(checkpoint, samples[:2], responses=responses, single_heads=True, layers=[0, 2])
    assert np.abs(result.fall).max() > 1e-3
    assert np.abs(result.fall_heads).max() > 1e-3
    check_by_hand(checkpoint, samples[:2], result, window=3)


def test_attention_from_a_response_of_one_token_can_be_blocked(tiny_llm, samples):
    responses = {sample.id: [7] for sample in samples}
    result = probe(tiny_llm, samples[:2], responses=responses)
    check_by_hand(tiny_llm, samples[:2], result, window=3)


@pytest.mark.parametrize(
    ("window", "expected"),
    [(1, [[0], [1], [2]]), (2, [[0, 1], [1, 2], [2]]), (3, [[0, 1], [0, 1, 2], [1, 2]]), (9, [[0, 1, 2]] * 3)],
)
def test_windows_are_centred_and_end_with_the_model(window, expected):
    plan = plan_knockouts(3, window)
    assert plan[0].segment is None
    for first, segment in ((1, Segment.INSTRUCTION), (4, Segment.SOURCE)):
        assert [list(cut.layers) for cut in plan[first : first + 3]] == expected
        assert {cut.segment for cut in plan[first : first + 3]} == {segment}
    assert [list(cut.layers) for cut in plan[7:]] == [[0, 1, 2]] * 2


def test_a_window_of_all_layers_is_the_knockout_of_all_layers(tiny_llm, samples):
    result = probe(tiny_llm, samples[:3], window=2 * tiny_llm.llm.config.num_hidden_layers)
    for layer in range(result.n_layers):
        np.testing.assert_allclose(result.fall[:, :, layer], result.fall_all_layers, atol=1e-6)


def test_results_do_not_depend_on_how_samples_are_batched(checkpoint, samples, monkeypatch):
    together = probe(checkpoint, samples, single_heads=True)
    alone = probe(checkpoint, samples, single_heads=True, batch_size=1, responses=together.responses())
    np.testing.assert_allclose(alone.fall, together.fall, atol=1e-5)
    np.testing.assert_allclose(alone.fall_heads, together.fall_heads, atol=1e-5)
    monkeypatch.setattr("lsm_probe.probes.knockout.measure._TOKENS", 12)
    pieces = probe(checkpoint, samples, single_heads=True, responses=together.responses())
    np.testing.assert_allclose(pieces.fall, together.fall, atol=1e-5)
    np.testing.assert_allclose(pieces.fall_heads, together.fall_heads, atol=1e-5)


def test_the_model_is_restored_after_an_error_or_an_interrupt(tiny_llm, samples, monkeypatch):
    inputs = torch.tensor([[3, 4, 5, 6]])
    before = tiny_llm.llm(input_ids=inputs).logits
    for error in (RuntimeError("broken"), KeyboardInterrupt()):

        def fail(*args, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("lsm_probe.instruments.capture.Capture.compare", fail)
            with pytest.raises(type(error)):
                probe(tiny_llm, samples[:1])
        assert tiny_llm.llm.config._attn_implementation == "sdpa"
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny_llm.llm.modules())
        assert torch.equal(tiny_llm.llm(input_ids=inputs).logits, before)


def test_a_pass_that_blocks_nothing_is_bit_identical(tiny_llm):
    inputs = torch.tensor([[3, 4, 5, 6]])
    before = tiny_llm.llm(input_ids=inputs).logits
    rows = torch.arange(4)[None]
    with capture(tiny_llm.llm) as captured, captured.at_rows(rows, torch.ones_like(rows, dtype=torch.bool)):
        assert torch.equal(tiny_llm.llm(input_ids=inputs).logits, before)


def test_a_model_that_ignores_the_mask_is_refused(tiny_llm, samples, monkeypatch):
    """The self-check: attention that does not use the edited mask is not a knockout."""
    from lsm_probe.instruments import capture as module

    see = module.Capture.see
    monkeypatch.setattr(
        module.Capture, "see", lambda self, m, q, k, v, mask, kwargs: (see(self, m, q, k, v, mask, kwargs), mask)[1]
    )
    with pytest.raises(InputError, match="do not reproduce its output"):
        probe(tiny_llm, samples[:1])


def test_blocking_attention_has_no_effect_if_all_values_are_zero(tiny_llm, samples):
    """Values of 0 carry no information: masking only renormalises attention over keys with equal values."""
    model = deepcopy(tiny_llm.llm)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "v_proj" in name:
                parameter.zero_()
    result = probe(replace(tiny_llm, model=model), samples[:3])
    np.testing.assert_allclose(result.fall, 0, atol=1e-6)


def test_weights_that_hold_nan_are_refused_in_one_line(tiny_llm, samples):
    model = deepcopy(tiny_llm.llm)
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    broken = replace(tiny_llm, model=model)
    responses = {sample.id: [5, 6] for sample in samples}
    with pytest.raises(InputError, match="sample s0: the log-probability of its response is not finite"):
        probe(broken, samples, responses=responses)
    with pytest.raises(InputError, match="no sample is left to measure; 8 of 8"):
        probe(broken, samples, responses=responses, on_error="skip")


def test_states_that_are_not_finite_are_refused_by_layer(tiny_llm, samples):
    model = deepcopy(tiny_llm.llm)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight[0, 0] = torch.nan
    # Given ones: a model that answers for itself is refused at its first NaN logit.
    given = {sample.id: [5, 6] for sample in samples}
    with pytest.raises(InputError, match=r"attention of layer 1 .* its output is not finite"):
        probe(replace(tiny_llm, model=model), samples, responses=given)


def test_a_window_of_zero_layers_is_refused(tiny_llm, samples):
    with pytest.raises(InputError, match="--window 0"):
        probe(tiny_llm, samples, window=0)


def make(seed=0, samples=12, layers=6, shift=(0.5, 1.0), name="model"):
    rng = np.random.default_rng(seed)
    fall = rng.normal(np.array(shift)[None, :, None], 0.2, size=(samples, 2, layers)).astype(np.float32)
    return KnockoutResult(
        log_prob=rng.normal(size=samples).astype(np.float32),
        fall=fall,
        fall_all_layers=fall.sum(2),
        fall_heads=np.zeros((samples, 2, 0, 4), np.float32),
        head_layers=[],
        clusters=np.arange(samples),
        samples=[{"id": f"s{i}", "response_ids": [i, 2]} for i in range(samples)],
        checkpoint=CheckpointIdentity(name=name, source="text", template="chat", dtype="float32"),
        data=DataIdentity("data", "abc", samples),
        conventions=KnockoutConventions(),
        self_check={"worst": 1e-7, "worst_bound": 1e-5},
    )


def test_causal_eta_is_the_instructions_share_of_both_falls():
    result = make()
    falls = result.fall.astype(float).mean(0)
    eta = result.causal_eta()
    np.testing.assert_allclose(eta.mean, falls[0] / (falls[0] + falls[1]))
    assert (eta.ci_low < eta.mean).all()
    assert (eta.mean < eta.ci_high).all()


@pytest.mark.parametrize("shift", [(-0.5, 1.0), (0.5, -1.0), (-0.5, -0.5)])
def test_causal_eta_is_undefined_where_a_fall_is_not_above_0(shift, tmp_path):
    result = make(shift=shift)
    assert np.isnan(result.causal_eta().mean).all()
    result.save(tmp_path)
    stored = json.loads((tmp_path / "result.json").read_text())
    assert stored["causal_eta"] == {key: [None] * 6 for key in ("mean", "ci_low", "ci_high")}


def test_saving_and_loading_preserves_the_result(tmp_path):
    result = make()
    loaded = KnockoutResult.load(result.save(tmp_path))
    assert loaded.to_dict() == result.to_dict()
    np.testing.assert_array_equal(loaded.fall, result.fall)
    with pytest.raises(InputError, match="schema 'lsm-probe/knockout/2'"):
        lsm_probe.AttentionResult.load(tmp_path)


def test_differences_are_paired_by_sample():
    first = make()
    noise = np.random.default_rng(5).normal(0, 0.01, size=first.fall.shape)
    second = replace(
        first,
        fall=(first.fall + 0.1 + noise).astype(np.float32),
        checkpoint=replace(first.checkpoint, name="second"),
    )
    pair = compare([first, second])["pairs"][0]
    low, high = (np.array(pair["fall_source_difference"][key]) for key in ("ci_low", "ci_high"))
    assert (low < 0.1).all()
    assert (high > 0.1).all()
    assert (high - low).max() < 0.02  # far below the spread between samples
    assert pair["same_responses"]
    assert pair["warning"] is None


def test_comparing_different_depths_or_responses_gives_a_warning():
    other = make(layers=5, name="second")
    other = replace(other, samples=[{**sample, "response_ids": [1]} for sample in other.samples])
    pair = compare([make(), other])["pairs"][0]
    assert pair["fall_instruction_difference"] is None
    assert "different responses" in pair["warning"]
    assert "layers" in pair["warning"]
