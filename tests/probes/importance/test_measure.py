"""The importance probe: equal to plain autograd in float64, and a result that adds up and loses nothing."""

import json
import math
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
    Qwen3MoeConfig,
)

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.data.identity import DataIdentity
from lsm_probe.errors import InputError
from lsm_probe.instruments.scoring import NOT_FINITE
from lsm_probe.models.checkpoint_kinds import TextLlm
from lsm_probe.probes.importance.masks import clustering, jaccard, top_masks
from lsm_probe.probes.importance.result import ImportanceConventions, ImportanceResult
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.identity import CheckpointIdentity

CONNECTOR = "multi_modal_projector"
ROUNDING = 1e-6
"""More than sums hold whose gradient is 0 but for rounding (a query that attends to itself alone), which depends on the
processor; the others are 1 to 100."""
WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
FAMILIES = {
    "llama, untied": lambda size: LlamaConfig(
        vocab_size=size, num_key_value_heads=2, tie_word_embeddings=False, attention_bias=True, **WIDTH
    ),
    "qwen3": lambda size: Qwen3Config(
        vocab_size=size, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, **WIDTH
    ),
    "mistral": lambda size: MistralConfig(vocab_size=size, num_key_value_heads=2, sliding_window=9, **WIDTH),
    "gpt2": lambda size: GPT2Config(vocab_size=size, n_embd=32, n_layer=3, n_head=4, n_positions=512),
    "qwen3, experts": lambda size: Qwen3MoeConfig(
        vocab_size=size,
        num_key_value_heads=2,
        head_dim=8,
        moe_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        **WIDTH,
    ),
}


def of_family(family, tiny_llm):
    torch.manual_seed(0)
    config = FAMILIES[family](tiny_llm.llm.config.vocab_size)
    # Experts one after another: the grouped product has no float64.
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    return replace(tiny_llm, model=model, name=family)


def probe(checkpoint, samples, **options):
    return lsm_probe.importance(checkpoint, samples, **options)


def names(result):
    return [parameter["name"] for parameter in result.parameters]


def text_llm_in(checkpoint):
    """The LLM inside an LSM, as a text LLM."""
    return TextLlm("text side", checkpoint.llm, checkpoint.tokenizer, checkpoint.template)


# The numbers, by brute force


def by_hand(checkpoint, samples, responses):
    """Weights, and their gradients for each sample, by name, in float64: the whole model's own pass over all tokens."""
    model = deepcopy(checkpoint.model).double()
    gradients = []
    for sample in samples:
        speech = checkpoint.source == "speech"
        prompt = checkpoint.encode(sample.instruction, read_audio(sample) if speech else sample.text)
        response = responses[sample.id]
        logits = model(input_ids=torch.tensor([[*prompt.input_ids, *response]]), **prompt.features).logits[0]
        model.zero_grad()
        loss = 0
        for i, token in enumerate(response):
            loss = loss - logits[len(prompt) - 1 + i].log_softmax(-1)[token] / len(response)
        loss.backward()
        gradients.append({short(n): p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    return {short(name): parameter.detach() for name, parameter in model.named_parameters()}, gradients


def short(name):
    return name.removeprefix("language_model.")


def abs_by_hand(checkpoint, samples, responses, measured):
    weights, gradients = by_hand(checkpoint, samples, responses)
    return np.array([[(weights[n] * gradient[n]).abs().sum().item() for n in measured] for gradient in gradients])


def signed_by_hand(checkpoint, samples, responses, measured):
    weights, gradients = by_hand(checkpoint, samples, responses)
    return np.array(
        [(weights[n] * sum(gradient[n] for gradient in gradients) / len(gradients)).abs().sum() for n in measured]
    )


def expected_names(checkpoint):
    llm = [name for name, _ in checkpoint.llm.named_parameters()]
    speech = checkpoint.source == "speech"
    return llm + ([n for n, _ in checkpoint.model.named_parameters() if n.startswith(CONNECTOR)] if speech else [])


def test_scores_equal_plain_autograd(checkpoint, samples):
    chosen = samples[:3]
    result = probe(checkpoint, chosen)
    assert names(result) == expected_names(checkpoint)
    expected = abs_by_hand(checkpoint, chosen, result.responses(), names(result))
    # A bias that starts as 0 has none, nor a query that attends to itself alone (the connector's).
    assert expected[:, [p["layer"] is not None for p in result.parameters]].min() > 0
    np.testing.assert_allclose(result.sums, expected, rtol=2e-4, atol=ROUNDING)
    np.testing.assert_allclose(result.values(), expected.mean(0), rtol=2e-4, atol=ROUNDING)


def test_signed_scores_equal_plain_autograd(checkpoint, samples):
    chosen = samples[:3]
    result = probe(checkpoint, chosen, mode="signed")
    expected = signed_by_hand(checkpoint, chosen, result.responses(), names(result))
    np.testing.assert_allclose(result.signed, expected, rtol=2e-4, atol=ROUNDING)
    np.testing.assert_array_equal(result.values(), result.signed)
    # Samples cancel each other out, and the sums of each are there besides.
    assert (result.signed <= result.sums.mean(0) * (1 + 1e-6)).all()
    assert result.signed.sum() < 0.9 * result.sums.mean(0).sum()
    np.testing.assert_allclose(result.sums, probe(checkpoint, chosen).sums, rtol=1e-6)


def test_a_model_in_float64_is_measured_to_float32s_precision(tiny_llm, samples):
    tiny_llm.model.double()
    result = probe(tiny_llm, samples[:2])
    expected = abs_by_hand(tiny_llm, samples[:2], result.responses(), names(result))
    np.testing.assert_allclose(result.sums, expected, rtol=2e-6)


@pytest.mark.parametrize("mode", ["abs", "signed"])
def test_textual_importance_of_an_lsm_equals_plain_autograd_of_its_llm(tiny_lsm, samples, mode):
    chosen = samples[:3]
    result = probe(tiny_lsm, chosen, modality="text", mode=mode)
    assert names(result) == [name for name, _ in tiny_lsm.llm.named_parameters()]
    inner, responses = text_llm_in(tiny_lsm), result.responses()
    np.testing.assert_allclose(
        result.sums, abs_by_hand(inner, chosen, responses, names(result)), rtol=2e-4, err_msg="abs"
    )
    if mode == "signed":
        np.testing.assert_allclose(result.signed, signed_by_hand(inner, chosen, responses, names(result)), rtol=2e-4)


def test_textual_importance_is_the_same_for_an_lsm_and_the_llm_it_was_made_of(tiny_lsm, tiny_llm, samples):
    inside, alone = (probe(checkpoint, samples[:3], modality="text") for checkpoint in (tiny_lsm, tiny_llm))
    assert inside.responses() == alone.responses()
    np.testing.assert_array_equal(inside.sums, alone.sums)
    own = probe(tiny_llm, samples[:3])
    np.testing.assert_array_equal(own.sums, alone.sums)  # `text` is what a text LLM reads anyway
    assert own.conventions != alone.conventions


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_equals_plain_autograd(family, tiny_llm, samples):
    checkpoint = of_family(family, tiny_llm)
    responses = {sample.id: [5, 9, 300] for sample in samples}
    result = probe(checkpoint, samples[:2], responses=responses)
    assert names(result) == [name for name, _ in checkpoint.model.named_parameters()]
    np.testing.assert_allclose(
        result.sums, abs_by_hand(checkpoint, samples[:2], responses, names(result)), rtol=5e-4, atol=1e-9
    )
    assert result.n_layers == 3
    matrices = {name for name, p in checkpoint.model.named_parameters() if p.dim() >= 2}
    in_layers = {p["name"] for p in result.parameters if p["layer"] is not None and len(p["shape"]) >= 2}
    assert in_layers == {name for name in matrices if any(f".{i}." in name for i in range(3))}
    # Two matrices of one module (experts, whose weights are no module's own) are both counted.
    np.testing.assert_allclose(np.nansum(result.by_module(), 1), result.by_layer().mean, rtol=1e-9)


def test_a_response_of_one_token_can_be_measured(tiny_llm, samples):
    responses = {sample.id: [7] for sample in samples}
    result = probe(tiny_llm, samples[:2], responses=responses)
    expected = abs_by_hand(tiny_llm, samples[:2], responses, names(result))
    np.testing.assert_allclose(result.sums, expected, rtol=2e-4, atol=ROUNDING)


def test_tied_embeddings_count_once_with_both_contributions(tiny_llm, samples):
    """An untied twin tells the embedding's gradient from the head's."""
    result = probe(tiny_llm, samples[:2])
    tied = names(result).index("model.embed_tokens.weight")
    assert "lm_head.weight" not in names(result)
    twin = deepcopy(tiny_llm.model)
    twin.lm_head.weight = torch.nn.Parameter(twin.lm_head.weight.detach().clone())
    weights, gradients = by_hand(replace(tiny_llm, model=twin), samples[:2], result.responses())
    table = weights["model.embed_tokens.weight"]
    for i, found in enumerate(gradients):
        parts = [found["model.embed_tokens.weight"], found["lm_head.weight"]]
        together = (table * sum(parts)).abs().sum().item()
        assert result.sums[i, tied] == pytest.approx(together, rel=2e-4)
        for part in parts:
            assert result.sums[i, tied] != pytest.approx((table * part).abs().sum().item(), rel=1e-2)


def test_the_padding_token_counts_where_the_prompt_holds_it(tiny_llm, samples):
    """torch gives the row of `padding_idx` no gradient; the same token may end a turn of the prompt."""
    sample = samples[0]
    plain = probe(tiny_llm, [sample])
    table = tiny_llm.llm.get_input_embeddings()
    table.padding_idx = tiny_llm.encode(sample.instruction, sample.text).input_ids[3]
    with_padding = probe(tiny_llm, [sample], responses=plain.responses())
    np.testing.assert_array_equal(with_padding.sums, plain.sums)
    assert table.padding_idx is not None


def test_the_connector_is_measured_where_speech_goes_through_it(tiny_lsm, samples):
    speech, text = probe(tiny_lsm, samples[:2]), probe(tiny_lsm, samples[:2], modality="text")
    connector = [p for p in speech.parameters if p["name"].startswith(CONNECTOR)]
    own = dict(tiny_lsm.model.multi_modal_projector.named_parameters())
    assert {p["name"] for p in connector} == {f"{CONNECTOR}.{name}" for name in own}
    assert all(p["layer"] is None for p in connector)
    assert set(speech.summary()["outside_of_layers"]) >= {p["name"] for p in connector}
    assert not any(CONNECTOR in name for name in names(text))
    assert text.checkpoint.source == "text"
    assert speech.checkpoint.source == "speech"


def test_the_encoder_is_not_trained(tiny_lsm, tiny_llm, samples):
    encoder = sum(p.numel() for p in tiny_lsm.model.audio_tower.parameters())
    for modality in ("own", "text"):
        result = probe(tiny_lsm, samples[:1], modality=modality)
        assert result.not_trained == {"audio_tower": encoder}
        assert not any("audio_tower" in name for name in names(result))
    assert probe(tiny_llm, samples[:1]).not_trained == {}


def test_the_generated_response_is_measured_where_it_is_asked_for(checkpoint, samples):
    result = probe(checkpoint, samples[:2], response="generated", max_new_tokens=4)
    for sample, stored in zip(samples, result.samples, strict=False):
        source = read_audio(sample) if checkpoint.source == "speech" else sample.text
        prompt = checkpoint.encode(sample.instruction, source)
        assert [stored["response_ids"]] == checkpoint.generate(checkpoint.embed([prompt]), max_new_tokens=4)
    expected = abs_by_hand(checkpoint, samples[:2], result.responses(), names(result))
    np.testing.assert_allclose(result.sums, expected, rtol=2e-4, atol=ROUNDING)
    assert result.responses() != probe(checkpoint, samples[:2]).responses()


def test_the_transcript_is_answered_with_the_same_end_of_turn_as_the_speech(
    tiny_llm_folder, tiny_lsm_folder, samples, tmp_path
):
    """As in Llama 3, only the generation config has the token that ends a turn."""
    lsm = lsm_probe.load(tiny_lsm_folder, device="cpu", dtype="float32")
    lsm.model.generation_config.eos_token_id = [2, 4]
    lsm.processor.tokenizer.eos_token = "<|im_end|>"
    assert lsm.processor.tokenizer.eos_token_id == 4
    lsm.save(tmp_path / "lsm")
    lsm = lsm_probe.load(tmp_path / "lsm", device="cpu", dtype="float32")
    own, text = probe(lsm, samples[:1]), probe(lsm, samples[:1], modality="text")
    assert own.responses()["s0"][-1] == 4
    assert text.responses() == own.responses()


def test_numbers_do_not_depend_on_the_batch_or_the_order(checkpoint, samples):
    together = probe(checkpoint, samples[:4], batch_size=8, mode="signed", masks=0.1)
    alone = probe(checkpoint, samples[:4][::-1], batch_size=1, mode="signed", masks=0.1)
    np.testing.assert_allclose(alone.sums[::-1], together.sums, rtol=1e-5)
    np.testing.assert_allclose(alone.signed, together.signed, rtol=1e-4)
    assert min(jaccard(alone.masks, together.masks).values()) > 0.95  # ties may fall otherwise


# Memory that runs out


def test_a_batch_that_does_not_fit_into_memory_counts_no_sample_twice(tiny_llm, samples, monkeypatch):
    """It is run again in halves until the sample is found: what the others had added up must not be added again."""
    from lsm_probe.probes.importance import measure as module

    expected = probe(tiny_llm, [samples[i] for i in (0, 1, 3)], mode="signed", masks=0.1)
    loss = module.response_loss

    def scarce(checkpoint, subject):
        if subject.sample.id == "s2":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return loss(checkpoint, subject)

    monkeypatch.setattr(module, "response_loss", scarce)
    with pytest.raises(InputError, match="sample s2 alone does not fit into memory"):
        probe(tiny_llm, samples[:4], mode="signed", masks=0.1)
    result = probe(tiny_llm, samples[:4], mode="signed", masks=0.1, on_error="skip")
    assert result.excluded == {"does not fit into memory": ["s2"]}
    np.testing.assert_allclose(result.sums, expected.sums, rtol=1e-6)
    np.testing.assert_allclose(result.signed, expected.signed, rtol=1e-4)
    assert min(jaccard(result.masks, expected.masks).values()) > 0.95  # ties may fall otherwise


def test_memory_that_runs_out_in_the_backward_pass_leaves_no_gradient_for_the_next(tiny_llm, samples, monkeypatch):
    from lsm_probe.probes.importance import measure as module

    whole = probe(tiny_llm, samples[:2])
    score, calls = module.absolute_sum, []

    def scarce(values):
        calls.append(values)
        if len(calls) == 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return score(values)

    monkeypatch.setattr(module, "absolute_sum", scarce)
    again = probe(tiny_llm, samples[:2])
    np.testing.assert_allclose(again.sums, whole.sums, rtol=1e-6)


def test_a_sample_that_does_not_fit_into_memory_does_not_change_the_sums(tiny_llm, samples, monkeypatch):
    """The sample is skipped during its backward pass, so the sums must not include a part of it."""
    from lsm_probe.probes.importance import measure as module

    expected = probe(tiny_llm, [samples[0], samples[2]], mode="signed")
    loss, score, current, calls = module.response_loss, module.absolute_sum, [], []

    def note(checkpoint, subject):
        current.append(subject.sample.id)
        calls.clear()
        return loss(checkpoint, subject)

    def scarce(values):
        calls.append(values)
        if current and current[-1] == "s1" and len(calls) == 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return score(values)

    monkeypatch.setattr(module, "response_loss", note)
    monkeypatch.setattr(module, "absolute_sum", scarce)
    with pytest.raises(InputError, match="sample s1 alone does not fit into memory"):
        probe(tiny_llm, samples[:3], mode="signed", batch_size=1)
    refused = ""
    try:
        result = probe(tiny_llm, samples[:3], mode="signed", batch_size=1, on_error="skip")
    except InputError as error:  # to stop here is as good
        refused = str(error)
    if refused:
        assert "sample s1" in refused
        return
    assert result.excluded == {"does not fit into memory": ["s1"]}
    np.testing.assert_allclose(result.signed, expected.signed, rtol=1e-4)


# What single weights are kept in


@pytest.mark.parametrize("mode", ["abs", "signed"])
def test_files_hold_the_same_numbers_as_memory(tiny_llm, samples, tmp_path, mode):
    options = {"mode": mode, "masks": 0.05, "ablate": 0.1}
    memory = probe(tiny_llm, samples[:3], **options)
    files = probe(tiny_llm, samples[:3], scratch=tmp_path / "new" / "scratch", **options)
    assert files.to_dict() == memory.to_dict()
    np.testing.assert_array_equal(files.sums, memory.sums)
    if mode == "signed":
        np.testing.assert_array_equal(files.signed, memory.signed)
    for name in memory.masks.packed:
        np.testing.assert_array_equal(files.masks.mask(name), memory.masks.mask(name))
    # One file for each parameter stays behind.
    left = {path.name: path.stat().st_size for path in (tmp_path / "new" / "scratch").iterdir()}
    assert left == {f"{p['name']}.f32": 4 * math.prod(p["shape"]) for p in memory.parameters}


def test_files_of_an_earlier_run_are_not_added_to(tiny_llm, samples, tmp_path):
    first = probe(tiny_llm, samples[:2], mode="signed", scratch=tmp_path)
    again = probe(tiny_llm, samples[:2], mode="signed", scratch=tmp_path)
    np.testing.assert_array_equal(again.signed, first.signed)


def test_files_hold_the_sums_of_single_weights(tiny_llm, samples, tmp_path):
    result = probe(tiny_llm, samples[:2], masks=0.05, scratch=tmp_path)
    weights, gradients = by_hand(tiny_llm, samples[:2], result.responses())
    for name in names(result):
        stored = np.fromfile(tmp_path / f"{name}.f32", dtype=np.float32)
        expected = sum((weights[name] * gradient[name]).abs() for gradient in gradients).flatten().numpy()
        np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-5 * expected.max())


def test_no_file_is_written_if_sums_suffice(tiny_llm, samples, tmp_path):
    probe(tiny_llm, samples[:1], scratch=tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


@pytest.mark.parametrize("mode", ["abs", "signed"])
def test_masks_mark_the_most_important_weights_of_each_matrix(tiny_lsm, samples, mode):
    result = probe(tiny_lsm, samples[:2], masks=0.05, mode=mode)
    in_layers = [p for p in result.parameters if p["layer"] is not None and len(p["shape"]) == 2]
    assert list(result.masks.packed) == [p["name"] for p in in_layers]
    weights, gradients = by_hand(tiny_lsm, samples[:2], result.responses())
    for name in result.masks.packed:
        if mode == "abs":
            scores = sum((weights[name] * gradient[name]).abs() for gradient in gradients)
        else:
            scores = (weights[name] * sum(gradient[name] for gradient in gradients)).abs()
        mask = torch.from_numpy(result.masks.mask(name))
        assert int(mask.sum()) == round(0.05 * mask.numel())
        # Up to rounding: the least important of those marked beats the most important of the others.
        assert scores[mask].min() >= 0.999 * scores[~mask].max()


# Resuming


def count_losses(monkeypatch):
    from lsm_probe.probes.importance import measure as module

    loss, measured = module.response_loss, []
    monkeypatch.setattr(module, "response_loss", lambda c, s: measured.append(s.sample.id) or loss(c, s))
    return measured


@pytest.mark.parametrize("options", [{"mode": "signed"}, {"masks": 0.05}, {"ablate": 0.05}])
def test_a_run_that_needs_single_weights_starts_from_the_beginning(
    tiny_llm, samples, tmp_path, stopped, monkeypatch, options
):
    """Stored batches hold no single weights, so resuming from them would leave out samples."""
    whole = probe(tiny_llm, samples[:3], batch_size=1, **options)
    stopped(probe, tiny_llm, samples[:3], after=2, batch_size=1, progress_folder=tmp_path)
    measured = count_losses(monkeypatch)
    again = probe(tiny_llm, samples[:3], batch_size=1, progress_folder=tmp_path, **options)
    assert measured[:3] == ["s0", "s1", "s2"]
    assert again.to_dict() == whole.to_dict()


# What cannot be used


def refusal(checkpoint, samples, **options):
    with pytest.raises(InputError) as info:
        probe(checkpoint, samples, **options)
    return str(info.value)


def test_weights_that_hold_nan_are_refused_in_one_line(checkpoint, samples):
    with torch.no_grad():
        checkpoint.llm.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    assert refusal(checkpoint, samples[:2]) == f"sample s0: {NOT_FINITE}"
    skipping = refusal(checkpoint, samples[:2], on_error="skip")
    assert skipping == f"no sample is left to measure; 2 of 2 because: {NOT_FINITE}"
    assert refusal(checkpoint, samples[:2], mode="signed", masks=0.1, ablate=0.1) == f"sample s0: {NOT_FINITE}"


def test_nan_in_the_connector_is_refused_in_one_line(tiny_lsm, samples):
    with torch.no_grad():
        next(tiny_lsm.model.multi_modal_projector.parameters()).fill_(torch.nan)
    assert refusal(tiny_lsm, samples[:1]) == f"sample s0: {NOT_FINITE}"
    assert np.isfinite(probe(tiny_lsm, samples[:1], modality="text").sums).all()


def overflowing(llm):
    """A gradient that overflows, as float16 does, under a loss that does not."""
    llm.model.layers[0].mlp.up_proj.weight.register_hook(lambda gradient: gradient * torch.inf)


def unread(llm):
    """NaN in the embedding of a token that nothing holds: 0 times NaN."""
    llm.lm_head.weight = torch.nn.Parameter(llm.lm_head.weight.detach().clone())
    with torch.no_grad():
        llm.model.embed_tokens.weight[447] = torch.nan


@pytest.mark.parametrize("breaking", [overflowing, unread])
def test_importance_that_is_not_finite_is_refused_in_one_line(tiny_llm, samples, breaking):
    """Or it would be stored as if nothing were known of the matrix, or break the run when its JSON is written."""
    breaking(tiny_llm.model)
    assert "not finite" in refusal(tiny_llm, samples[:1])


@pytest.mark.parametrize("share", [0, 1, -0.1, 2, math.nan])
@pytest.mark.parametrize("option", ["masks", "ablate"])
def test_an_invalid_share_is_refused(tiny_llm, samples, option, share):
    message = refusal(tiny_llm, samples, **{option: share})
    assert message.startswith(f"--{option} {share} is not a share of weights")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, "mode 'both' is unknown; choose one of: abs, signed"),
        ({"modality": "speech"}, "modality 'speech' is unknown; choose one of: own, text"),
        ({"response": "gold"}, "response 'gold' is unknown; choose one of: generated, reference"),
        ({"responses": {"s0": [5]}}, "hold none for 7 samples (first: s1)"),
    ],
)
def test_bad_options_are_reported_in_one_line(tiny_llm, samples, options, message):
    assert message in refusal(tiny_llm, samples, **options)


def test_samples_that_lack_something_are_refused(tiny_lsm, samples):
    for key, options in (("target", {}), ("text", {"modality": "text"}), ("audio", {})):
        chosen = [samples[0], samples[1].model_copy(update={key: None})]
        assert f"1 of 2 samples have no `{key}`" in refusal(tiny_lsm, chosen, **options)


def test_each_modality_needs_only_its_own_source(tiny_lsm, samples):
    mute = samples[0].model_copy(update={"audio": None})
    silent = samples[0].model_copy(update={"text": None})
    assert len(probe(tiny_lsm, [mute], modality="text").samples) == 1
    assert len(probe(tiny_lsm, [silent]).samples) == 1


def test_an_empty_response_is_left_out_and_counted(tiny_llm, samples):
    responses = {"s0": [5, 6], "s1": [], "s2": [7]}
    result = probe(tiny_llm, samples[:3], responses=responses, mode="signed", ablate=0.1)
    assert result.excluded == {"empty response": ["s1"]}
    without = probe(tiny_llm, [samples[0], samples[2]], responses=responses, mode="signed", ablate=0.1)
    np.testing.assert_array_equal(result.sums, without.sums)
    np.testing.assert_array_equal(result.signed, without.signed)
    assert result.ablation == without.ablation


# The result

LAYERS, SAMPLES = 6, 12
OUTSIDE = [("model.embed_tokens", (9, 4)), ("model.norm", (4,)), (f"{CONNECTOR}", (3, 5))]
INSIDE = [("self_attn.q_proj", (5, 3)), ("mlp.up_proj", (7, 4)), ("input_layernorm", (4,))]


def parameters_of(layers):
    """Matrices whose sizes are no multiple of 8, norms, and what lies outside of the layers."""
    inside = [
        {"name": f"model.layers.{i}.{module}.weight", "layer": i, "module": module, "shape": list(shape)}
        for i in range(layers)
        for module, shape in INSIDE
    ]
    outside = [{"name": f"{name}.weight", "layer": None, "module": name, "shape": list(s)} for name, s in OUTSIDE]
    return [outside[0], *inside, *outside[1:]]


def made(profile=None, *, seed=0, layers=LAYERS, name="model", noise=0.3, **fields):
    """A result whose layers have importance of this profile."""
    rng = np.random.default_rng(seed)
    parameters = parameters_of(layers)
    profile = np.linspace(1, 2, layers) if profile is None else np.asarray(profile, dtype=np.float64)
    sums = np.array([profile[p["layer"]] if p["layer"] is not None else 5.0 for p in parameters])
    count = fields.pop("samples", SAMPLES)
    return ImportanceResult(
        sums=sums * np.exp(noise * rng.normal(size=(count, len(parameters)))),
        parameters=parameters,
        not_trained={"audio_tower": 70},
        clusters=fields.pop("clusters", np.arange(count)),
        samples=[{"id": f"s{i}", "response_ids": [i, 2]} for i in range(count)],
        checkpoint=CheckpointIdentity(name=name, source="text", template="chat", dtype="float32"),
        data=DataIdentity("data", "abc", count),
        conventions=fields.pop("conventions", ImportanceConventions()),
        **fields,
    )


def scores_of(layers=LAYERS, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {
        p["name"]: torch.rand(p["shape"], generator=rng)
        for p in parameters_of(layers)
        if p["layer"] is not None and len(p["shape"]) > 1
    }


def signed(**fields):
    values = np.random.default_rng(7).exponential(size=len(parameters_of(fields.get("layers", LAYERS))))
    return made(**fields, signed=values, conventions=ImportanceConventions(mode="signed"))


@pytest.mark.parametrize("make", [made, signed])
def test_all_summaries_agree_with_the_table_of_parameters(make):
    result = make()
    frame = result.to_frame()
    assert frame["parameter"].tolist() == names(result)
    np.testing.assert_allclose(frame["sum"], result.values())
    np.testing.assert_allclose(frame["mean"] * frame["weights"], frame["sum"])
    assert frame["weights"].tolist() == [math.prod(p["shape"]) for p in result.parameters]
    matrices = frame[frame["module"].isin(["self_attn.q_proj", "mlp.up_proj"])]
    by_layer = matrices.groupby("layer")["sum"].sum().to_numpy()
    np.testing.assert_allclose(result.by_layer().mean, by_layer)
    np.testing.assert_allclose(result.distribution(), by_layer / by_layer.sum())
    np.testing.assert_allclose(result.share_by_layer().mean, result.distribution())
    np.testing.assert_allclose(result.by_module().sum(1), by_layer)
    weights = matrices.groupby("layer")["weights"].sum().to_numpy()
    np.testing.assert_allclose(result.by_layer("mean").mean, by_layer / weights)
    assert result.modules == ["self_attn.q_proj", "mlp.up_proj"]
    cells = matrices.pivot(index="layer", columns="module", values="mean")[result.modules].to_numpy()
    np.testing.assert_allclose(result.by_module("mean"), cells)
    assert result.n_layers == LAYERS


def test_norms_biases_embeddings_and_the_connector_are_outside_of_a_layers_importance():
    result = made()
    counted = [p["layer"] is not None and len(p["shape"]) > 1 for p in result.parameters]
    larger = replace(result, sums=np.where(counted, result.sums, 100 * result.sums))
    np.testing.assert_array_equal(larger.by_layer().mean, result.by_layer().mean)
    np.testing.assert_array_equal(larger.by_module(), result.by_module())
    np.testing.assert_array_equal(larger.distribution(), result.distribution())
    outside = result.summary()["outside_of_layers"]
    assert set(outside) == {f"{name}.weight" for name, _ in OUTSIDE}


def test_a_module_that_a_layer_lacks_has_no_importance():
    result = made()
    kept = [i for i, p in enumerate(result.parameters) if p["name"] != "model.layers.2.mlp.up_proj.weight"]
    part = replace(result, sums=result.sums[:, kept], parameters=[result.parameters[i] for i in kept])
    table = part.by_module()
    assert np.isnan(table).sum() == 1
    assert np.isnan(table[2, 1])
    np.testing.assert_allclose(part.by_layer().mean[2], table[2, 0])
    json.dumps(part.to_dict(), allow_nan=False)


def test_importance_of_parameters_outside_the_loss_is_undefined():
    result = made()
    sums = result.sums.copy()
    sums[:, -1] = np.nan
    unreached = replace(result, sums=sums)
    assert unreached.summary()["outside_of_layers"][f"{CONNECTOR}.weight"] is None
    for name in ("by_layer", "share_by_layer"):
        assert getattr(unreached, name)().to_dict() == getattr(result, name)().to_dict()
    assert unreached.to_frame()["sum"].isna().tolist() == [False] * (len(result.parameters) - 1) + [True]


def test_intervals_are_over_utterances(slow_interval):
    clusters = np.array([0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 7, 7])
    result = made(clusters=clusters, seed=3)
    result = replace(result, seed=4)
    layers = [[i for i, p in enumerate(result.parameters) if p["layer"] == n and len(p["shape"]) > 1] for n in range(6)]
    by_sample = np.array([result.sums[:, chosen].sum(1) for chosen in layers]).T
    curve, share = result.by_layer(), result.share_by_layer()
    np.testing.assert_allclose(curve.mean, by_sample.mean(0))
    for layer in range(6):
        expected = slow_interval(lambda kept, layer=layer: by_sample[kept, layer].mean(), clusters)
        np.testing.assert_allclose([curve.ci_low[layer], curve.ci_high[layer]], expected)
        own = by_sample[:, layer]
        expected = slow_interval(lambda kept, own=own: own[kept].sum() / by_sample[kept].sum(), clusters)
        np.testing.assert_allclose([share.ci_low[layer], share.ci_high[layer]], np.clip(expected, 0, 1))
    assert (share.ci_low < share.mean).all()
    assert (share.mean < share.ci_high).all()


def test_signed_importance_has_no_interval(tmp_path):
    result = signed()
    for curve in (result.by_layer(), result.by_layer("mean"), result.share_by_layer()):
        assert np.isnan(curve.ci_low).all()
        assert np.isnan(curve.ci_high).all()
        assert np.isfinite(curve.mean).all()
    stored = json.loads((result.save(tmp_path) / "result.json").read_text())
    for name in ("by_layer", "share_of_layers"):
        assert stored[name]["ci_low"] == stored[name]["ci_high"] == [None] * LAYERS


@pytest.mark.parametrize("make", [made, signed])
@pytest.mark.parametrize("extras", [False, True])
def test_saving_and_loading_preserves_the_result(tmp_path, make, extras):
    ablation = {"share": 0.03, "perplexity": {"none": 3.1, "top": 90.123456789012345, "bottom": 3.2, "random": 4.5}}
    more = {"masks": top_masks(scores_of(), 0.1), "ablation": ablation, "excluded": {"empty response": ["x"]}}
    result = make(**(more if extras else {}))
    loaded = ImportanceResult.load(result.save(tmp_path / "result"))
    assert loaded.to_dict() == result.to_dict()
    for name in ("parameters", "samples", "not_trained", "conventions", "ablation", "checkpoint", "data", "excluded"):
        assert getattr(loaded, name) == getattr(result, name), name
    for name in ("sums", "clusters", "signed"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(result, name))
    assert (loaded.masks is None) == (not extras)
    if extras:
        assert loaded.masks.share == result.masks.share
        assert loaded.masks.shapes == result.masks.shapes
        assert set(jaccard(loaded.masks, result.masks).values()) == {1.0}
    files = {"arrays.npz", "result.json", "samples.jsonl", *(["masks.npz"] if extras else [])}
    assert {path.name for path in (tmp_path / "result").iterdir()} == files


def test_a_result_of_a_run_survives_saving_and_loading(tiny_lsm, samples, tmp_path):
    result = probe(tiny_lsm, samples[:2], mode="signed", masks=0.05, ablate=0.05)
    loaded = ImportanceResult.load(result.save(tmp_path))
    assert loaded.to_dict() == result.to_dict()
    assert loaded.parameters == result.parameters
    np.testing.assert_array_equal(loaded.signed, result.signed)


def test_saving_removes_masks_of_an_earlier_result(tmp_path):
    made(masks=top_masks(scores_of(), 0.1)).save(tmp_path)
    made().save(tmp_path)
    assert not (tmp_path / "masks.npz").exists()
    assert ImportanceResult.load(tmp_path).masks is None


def test_an_interrupted_save_does_not_mix_two_results(tmp_path, monkeypatch):
    """A folder with a result.json has everything that belongs to it, masks too."""
    made(masks=top_masks(scores_of(), 0.1)).save(tmp_path)

    def full(self, path):
        raise OSError("the disk is full")

    monkeypatch.setattr("lsm_probe.probes.importance.masks.Masks.save", full)
    with pytest.raises(OSError, match="the disk is full"):
        made(masks=top_masks(scores_of(), 0.2)).save(tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_damaged_masks_are_reported_in_one_line(tmp_path):
    made(masks=top_masks(scores_of(), 0.1)).save(tmp_path)
    (tmp_path / "masks.npz").write_bytes(b"no masks")
    with pytest.raises(InputError, match=r"masks.npz holds no readable masks"):
        ImportanceResult.load(tmp_path)


def test_a_subset_drops_what_was_added_up_over_all_samples():
    result = signed(masks=top_masks(scores_of(), 0.1))
    part = result.subset(["s7", "s2", "s5"])
    assert part.ids == ["s7", "s2", "s5"]
    np.testing.assert_array_equal(part.sums, result.sums[[7, 2, 5]])
    assert part.signed is None
    assert part.masks is None
    assert part.conventions == ImportanceConventions()
    np.testing.assert_array_equal(part.values(), part.sums.mean(0))
    everything = result.subset(result.ids[::-1])
    np.testing.assert_array_equal(everything.signed, result.signed)
    assert everything.masks is result.masks


def test_a_subset_holds_no_perplexity_of_samples_it_lacks():
    ablation = {"share": 0.03, "perplexity": {"none": 3.1, "top": 90.1, "bottom": 3.2, "random": 4.5}}
    result = made(ablation=ablation)
    assert result.subset(result.ids).ablation == ablation
    assert result.subset(result.ids[:3]).ablation is None


def differ(first, second):
    pair = compare([first, replace(second, checkpoint=replace(second.checkpoint, name="second"))])["pairs"][0]
    json.dumps(pair, allow_nan=False)
    return pair


def divergence(first, second):
    """Jensen-Shannon, written out, in nats."""
    total = 0.0
    for p, q in zip(first, second, strict=True):
        middle = (p + q) / 2
        total += sum(x / 2 * math.log(x / middle) for x in (p, q) if x > 0)
    return total


def test_a_result_compared_with_itself_has_not_shifted():
    result = made(masks=top_masks(scores_of(), 0.1))
    shift = differ(result, replace(result, seed=5))["shift"]
    assert shift["share_difference"] == {key: [0.0] * LAYERS for key in ("mean", "ci_low", "ci_high")}
    assert shift["jensen_shannon"] == {"mean": 0, "ci_low": 0, "ci_high": 0}
    assert shift["rank_correlation"] == {"mean": 1, "ci_low": 1, "ci_high": 1}
    assert shift["peak_layer"] == [5, 5]
    assert shift["mask_overlap"]["mean"] == 1
    assert shift["mask_overlap"]["by_chance"] == pytest.approx(0.1 / 1.9)


def test_signed_importance_compared_with_itself_has_not_shifted():
    shift = differ(signed(), signed())["shift"]
    assert shift["share_difference"] == [0.0] * LAYERS
    assert shift["jensen_shannon"] == 0
    assert shift["rank_correlation"] == pytest.approx(1)


def test_a_peak_that_moved_is_found_where_it_went():
    before, after = np.array([1, 6, 2, 1.5, 1.2, 1.1]), np.array([1, 1.2, 1.5, 2, 6, 1.1])
    first, second = made(before, noise=0.05), made(after, seed=1, noise=0.05)
    shift = differ(first, second)["shift"]
    assert shift["peak_layer"] == [1, 4]
    exact = after / after.sum() - before / before.sum()
    np.testing.assert_allclose(shift["share_difference"]["mean"], exact, atol=0.01)
    for bound in ("ci_low", "ci_high"):
        assert np.sign(shift["share_difference"][bound])[[1, 4]].tolist() == [-1, 1]
    expected = divergence(first.distribution(), second.distribution())
    found = shift["jensen_shannon"]
    assert found["mean"] == pytest.approx(expected, abs=1e-6)
    assert 0 < found["ci_low"] < found["ci_high"] < math.log(2)
    ranks = [np.argsort(np.argsort(r.distribution())) for r in (first, second)]
    assert shift["rank_correlation"]["mean"] == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=1e-6)


def test_the_shift_is_second_minus_first():
    first, second = made([3, 1, 1, 1, 1, 1]), made([1, 1, 1, 1, 1, 3])
    there, back = differ(first, second)["shift"], differ(second, first)["shift"]
    assert there["share_difference"]["mean"][5] > 0.1 > -0.1 > there["share_difference"]["mean"][0]
    np.testing.assert_allclose(back["share_difference"]["mean"], -np.array(there["share_difference"]["mean"]))
    assert back["peak_layer"] == there["peak_layer"][::-1] == [5, 0]


def test_no_divergence_is_above_log_2():
    first, second = made([1, 1, 1, 0, 0, 0]), made([0, 0, 0, 1, 1, 1])
    found = differ(first, second)["shift"]["jensen_shannon"]
    assert found["mean"] == pytest.approx(math.log(2), abs=1e-6)
    assert found["ci_high"] <= math.log(2) + 1e-6


def test_doubling_all_importance_is_not_a_shift():
    """A model that answers worse has larger gradients everywhere."""
    first = made()
    shift = differ(first, replace(first, sums=2 * first.sums))["shift"]
    assert shift["jensen_shannon"]["mean"] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(shift["share_difference"]["mean"], 0, atol=1e-9)


def test_shifts_are_paired_by_utterance():
    """Samples differ much more than the two results do; paired resampling removes that variation."""
    rng = np.random.default_rng(0)
    first = made(noise=1.0)
    second = replace(first, sums=first.sums * np.exp(0.01 * rng.normal(size=first.sums.shape)))
    difference = differ(first, replace(second, seed=9))["shift"]["share_difference"]
    own = first.share_by_layer()
    width = np.array(difference["ci_high"]) - np.array(difference["ci_low"])
    assert (width < 0.1 * (own.ci_high - own.ci_low)).all()


def test_signed_results_with_some_shared_samples_are_compared():
    """One result has one sample fewer but the same sums, which alone must not cause a shift."""
    first = signed()
    second = replace(made(), sums=first.sums[:-1], clusters=first.clusters[:-1], samples=first.samples[:-1])
    second = replace(second, signed=first.signed[::-1].copy(), conventions=first.conventions)
    shift = differ(first, second)["shift"]
    found = shift["jensen_shannon"]
    assert (found["mean"] if isinstance(found, dict) else found) == pytest.approx(0, abs=1e-9)


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize("make", [made, signed])
def test_a_rank_correlation_that_is_undefined_is_none(make):
    """Of a single layer; NaN is not a JSON."""
    pair = differ(make(layers=1), make(layers=1))
    found = pair["shift"]["rank_correlation"]
    assert (found["mean"] if isinstance(found, dict) else found) is None


def test_different_depths_give_a_warning_and_no_shift():
    pair = differ(made(), made(layers=5))
    assert pair["shift"] is None
    assert pair["warning"] == "model has 6 layers and second 5: the shift cannot be computed"
    assert differ(made(), made())["warning"] is None


@pytest.mark.parametrize("change", [{"mode": "signed"}, {"modality": "text"}, {"response": "generated"}])
def test_results_under_different_conventions_are_not_compared(change):
    with pytest.raises(InputError, match="different conventions"):
        differ(made(), made(conventions=ImportanceConventions(**change)))


def test_masks_of_another_share_are_not_compared():
    pair = differ(made(masks=top_masks(scores_of(), 0.1)), made(masks=top_masks(scores_of(), 0.2)))
    assert "mark 0.1 and 0.2 of the weights" in pair["warning"]
    assert "mask_overlap" not in (pair.get("shift") or {})


def test_a_perplexity_that_is_out_of_range_can_be_stored(tiny_llm, samples, tmp_path):
    """Zeroing the best weights may break a model beyond what exp can hold: the run's result must not go with it."""
    with torch.no_grad():
        tiny_llm.model.model.norm.weight.mul_(500)
    with np.errstate(over="ignore"):
        result = probe(tiny_llm, samples[:2], ablate=0.1)
    stored = json.loads((result.save(tmp_path) / "result.json").read_text())
    assert set(stored["ablation"]["perplexity"]) == {"none", "top", "bottom", "random"}


@pytest.mark.parametrize("layer", [0, 2])
def test_a_layer_that_is_frozen_has_no_importance_rather_than_0(tiny_llm, samples, layer):
    """Refusing it is as good; a layer less, or one that seems to matter least of all, is not."""
    tiny_llm.model.model.layers[layer].requires_grad_(False)
    refused = ""
    try:
        result = probe(tiny_llm, samples[:1])
    except InputError as error:
        refused = str(error)
    if refused:
        assert f"layer {layer}" in refused
        return
    assert not any(p["layer"] == layer for p in result.parameters)
    assert result.n_layers == 3
    assert np.isnan(result.by_layer().mean).tolist() == [i == layer for i in range(3)]
    assert np.nansum(result.distribution()) == pytest.approx(1)
    json.dumps(result.to_dict(), allow_nan=False)


def test_the_result_records_its_checkpoint_and_data(checkpoint, samples):
    result = probe(checkpoint, samples[:2], masks=0.05, ablate=0.03, seed=3)
    summary = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert summary["schema"] == "lsm-probe/importance/2"
    assert summary["conventions"] == {"mode": "abs", "modality": "own", "response": "reference"}
    assert summary["checkpoint"]["source"] == checkpoint.source
    assert summary["checkpoint"]["weights_sha256"]
    assert summary["seed"] == 3
    assert summary["n_samples"] == 2
    assert summary["layers"] == [0, 1, 2]
    assert summary["peak_layer"] == int(np.argmax(summary["by_layer"]["mean"]))
    assert summary["ablation"]["share"] == 0.03
    assert summary["masks"]["share"] == 0.05
    found = clustering(result.masks)
    for axis in ("rows", "columns"):
        assert summary["masks"]["clustering"][axis] == pytest.approx(np.mean([c[axis] for c in found.values()]))
    for sample, stored in zip(samples, result.samples, strict=False):
        assert stored["response_ids"] == checkpoint.encode_response(sample.target)
