"""The attention probe end to end on tiny models: whose numbers they are, and that nothing else moves them."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.measure import generating_rows
from lsm_probe.probes.attention.result import SEGMENTS


def probe(checkpoint, samples, **options):
    return lsm_probe.attention(checkpoint, samples, **{"max_new_tokens": 6, **options})


def test_rows_are_the_positions_that_predict_the_response():
    rows, row_mask = generating_rows([5, 3], [2, 4])
    assert rows[0][row_mask[0]].tolist() == [4, 5]
    assert rows[1][row_mask[1]].tolist() == [2, 3, 4, 5]
    assert rows[0].max() < 5 + 2  # padding names real positions only


def test_rows_predict_the_generated_response_greedily(checkpoint, samples):
    """The model's own logits at these rows predict the response, so the rows are correct."""
    result = probe(checkpoint, samples)
    for sample, stored in zip(samples, result.samples, strict=True):
        prompt = checkpoint.encode(sample.instruction, source_of(checkpoint, sample))
        embedded = checkpoint.embed([prompt])[0]
        ids = torch.tensor(stored["response_ids"])
        inputs = torch.cat([embedded, checkpoint.llm.get_input_embeddings()(ids)])[None]
        with torch.no_grad():
            logits = checkpoint.llm(inputs_embeds=inputs).logits[0]
        rows, _ = generating_rows([len(prompt)], [len(ids)])
        assert logits[rows[0]].argmax(-1).tolist() == stored["response_ids"]


def source_of(checkpoint, sample):
    from lsm_probe.data.audio import read_audio

    return read_audio(sample) if checkpoint.source == "speech" else sample.text


def test_eta_of_a_sample_alone_equals_eta_in_a_batch(checkpoint, samples):
    """Eta of a fixed response does not depend on the batch size or on longer samples in the batch."""
    together = probe(checkpoint, samples, batch_size=8)
    for batch_size in (1, 3):
        again = probe(checkpoint, samples, batch_size=batch_size, responses=together.responses())
        for heads in ("sum_then_norm", "mean_of_norms"):
            ours, theirs = (ratios(r.with_conventions(heads=heads)) for r in (together, again))
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    alone = probe(checkpoint, samples[:1], responses=together.responses())
    np.testing.assert_allclose(ratios(alone)[0], ratios(together)[0], rtol=1e-5)


def ratios(result):
    """Eta of each sample and layer."""
    instruction, source = result.scores()
    return instruction / (instruction + source)


def test_sums_equal_the_token_scores_by_segment(checkpoint, samples):
    result = probe(checkpoint, samples, tokens=True, batch_size=3)
    scores = result.token_scores
    for i, (first, past) in enumerate(zip(scores.offsets, scores.offsets[1:], strict=False)):
        segments, norms = scores.segments[first:past], scores.norms[:, first:past]
        for column, name in enumerate(SEGMENTS[:-1]):
            mine = segments == Segment[name.upper()]
            assert mine.sum() == result.tokens[i, column]
            np.testing.assert_allclose(norms[:, mine].sum(1), result.norms[i, :, column], rtol=1e-5, atol=1e-8)
        assert result.tokens[i, -1] == (segments[0] == Segment.TEMPLATE)
        np.testing.assert_allclose(norms[:, 0], result.norms[i, :, -1], rtol=1e-5)
    assert not np.isin(scores.segments, (Segment.PADDING, Segment.RESPONSE)).any()


def test_swapping_instruction_and_source_gives_one_minus_eta(tiny_llm, samples):
    result = probe(tiny_llm, samples)
    swap = [SEGMENTS.index(name) for name in ("system", "template", "source", "instruction", "first")]
    swapped = replace(
        result, norms=result.norms[..., swap], head_norms=result.head_norms[..., swap], tokens=result.tokens[:, swap]
    )
    for segment in ("mean", "sum"):
        one, other = (r.with_conventions(segment=segment).eta().mean for r in (result, swapped))
        np.testing.assert_allclose(one, 1 - other, rtol=1e-9)


def test_reference_responses_are_the_targets_closed_with_eos(checkpoint, samples):
    result = probe(checkpoint, samples, response="reference")
    for sample, stored in zip(samples, result.samples, strict=True):
        assert stored["response"] == sample.target.strip()
        assert stored["response_ids"][-1] == checkpoint.eos_token_ids[0]
    assert result.rows.tolist() == [len(stored["response_ids"]) for stored in result.samples]
    assert result.conventions.response == "reference"


def test_length_matched_control_changes_only_the_source(tiny_lsm, tiny_llm, samples):
    speech, text = probe(tiny_lsm, samples), probe(tiny_llm, samples)
    control = probe(tiny_llm, samples, responses=text.responses(), source_lengths=speech.source_lengths())
    np.testing.assert_array_equal(control.tokens, speech.tokens)
    assert control.responses() == text.responses()
    other = [i for i, name in enumerate(SEGMENTS) if name != "source"]
    np.testing.assert_array_equal(control.tokens[:, other], text.tokens[:, other])
    assert (control.tokens != text.tokens).any()


def test_out_of_memory_halves_the_batch_and_keeps_the_numbers(tiny_llm, samples, monkeypatch):
    whole = probe(tiny_llm, samples, batch_size=8)
    forward, sizes = type(tiny_llm.llm).forward, []

    def scarce(self, inputs_embeds, **kwargs):
        sizes.append(len(inputs_embeds))
        if len(inputs_embeds) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(type(tiny_llm.llm), "forward", scarce)
    halved = probe(tiny_llm, samples, batch_size=8, responses=whole.responses())
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    np.testing.assert_allclose(halved.norms, whole.norms, rtol=1e-5)


def test_a_sample_that_does_not_fit_is_named_or_skipped(tiny_llm, samples, monkeypatch):
    embed, first = type(tiny_llm).embed, len(tiny_llm.encode(samples[0].instruction, samples[0].text))

    def scarce(self, prompts):
        if any(len(prompt) == first for prompt in prompts):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return embed(self, prompts)

    monkeypatch.setattr(type(tiny_llm), "embed", scarce)
    with pytest.raises(InputError, match="sample s0 alone does not fit into memory"):
        probe(tiny_llm, samples)
    result = probe(tiny_llm, samples, on_error="skip")
    assert result.excluded == {"does not fit into memory": ["s0"]}
    assert len(result.samples) == 7


def test_the_same_speech_in_another_folder_has_the_same_intervals(tiny_lsm, samples, tmp_path):
    """Utterances are identified by their paths, but resampling must not depend on the paths."""
    moved = []
    for i, sample in enumerate(samples):
        path = tmp_path / f"{100 - i}" / sample.audio.name
        path.parent.mkdir()
        path.write_bytes(sample.audio.read_bytes())
        moved.append(sample.model_copy(update={"audio": path}))
    here, there = (probe(tiny_lsm, chosen).eta() for chosen in (samples, moved))
    np.testing.assert_array_equal(here.ci_low, there.ci_low)
    np.testing.assert_array_equal(here.ci_high, there.ci_high)


def test_a_sample_with_numbers_that_are_not_finite_is_named_or_skipped(tiny_llm, samples):
    """One token has a NaN embedding, and only one sample contains it."""
    model = copy.deepcopy(tiny_llm.llm)
    broken = replace(tiny_llm, model=model)
    ids = [set(tiny_llm.encode(s.instruction, s.text).input_ids) for s in samples]
    token = next(iter(ids[3] - set().union(*(x for i, x in enumerate(ids) if i != 3))))
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
        model.lm_head.weight = torch.nn.Parameter(tiny_llm.llm.get_output_embeddings().weight.clone())
    responses = {sample.id: [5, 6] for sample in samples}
    with pytest.raises(InputError, match=r"sample s3: attention of layer 0 .* its output is not finite"):
        probe(broken, samples, responses=responses)
    result = probe(broken, samples, responses=responses, on_error="skip")
    assert list(result.excluded.values()) == [["s3"]]
    assert len(result.samples) == 7


def test_on_error_fail_stops_at_a_sample_that_an_earlier_run_skipped(tiny_llm, samples, tmp_path):
    lost = [samples[0].model_copy(update={"text": "word " * 2000}), *samples[1:]]
    probe(tiny_llm, lost, on_error="skip", progress_folder=tmp_path, batch_size=4)
    with pytest.raises(InputError, match="sample s0"):
        probe(tiny_llm, lost, on_error="fail", progress_folder=tmp_path, batch_size=4)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"batch_size": 0}, "give 1 or more"), ({"max_new_tokens": 0}, "give 1 or more"), ({"on_error": "Skip"}, "Skip")],
)
def test_invalid_options_are_refused(tiny_llm, samples, options, says):
    with pytest.raises(InputError, match=says):
        probe(tiny_llm, samples, **options)


def test_a_damaged_batch_is_run_again(tiny_llm, samples, tmp_path):
    whole = probe(tiny_llm, samples, batch_size=4, progress_folder=tmp_path)
    damaged = tmp_path / "batch-000004.npz"
    damaged.write_bytes(damaged.read_bytes()[:200])
    assert probe(tiny_llm, samples, batch_size=4, progress_folder=tmp_path).to_dict() == whole.to_dict()


def test_a_bad_sample_stops_the_run_or_is_counted(tiny_lsm, samples, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF but no sound")
    mixed = [samples[0], Sample(id="bad", instruction="Translate.", audio=broken), samples[1]]
    with pytest.raises(InputError, match="bad"):
        probe(tiny_lsm, mixed)
    result = probe(tiny_lsm, mixed, on_error="skip")
    assert result.ids == ["s0", "s1"]
    ((reason, ids),) = result.excluded.items()
    assert ids == ["bad"]
    assert "broken.wav" in reason


def test_a_run_without_usable_samples_is_refused(tiny_llm, samples):
    with pytest.raises(InputError, match="no sample is left to measure; 8 of 8 because: empty response"):
        probe(tiny_llm, samples, responses={sample.id: [] for sample in samples})


def test_zero_norms_are_left_out_and_counted(tiny_llm, samples):
    # The last layer alone stops writing: its eta would be 0 / 0.
    with torch.no_grad():
        tiny_llm.llm.model.layers[2].self_attn.v_proj.weight.zero_()
    with pytest.raises(InputError, match="8 of 8 because: zero norms"):
        probe(tiny_llm, samples)


def bad(sample, **changes):
    return Sample(**{**sample.model_dump(), **changes})


@pytest.mark.parametrize(
    ("kind", "change", "options", "message"),
    [
        ("text", {"text": None}, {}, "1 of 8 samples have no `text`"),
        ("speech", {"audio": None}, {}, "1 of 8 samples have no `audio`"),
        ("text", {"target": None}, {"response": "reference"}, "1 of 8 samples have no `target`"),
        ("text", {"context": "Once."}, {}, "carry a `context`"),
        ("text", {"text": "word " * 1200}, {}, "exceed the context of 1024 tokens"),
        ("text", {}, {"response": "gold"}, "response 'gold' is unknown; choose one of: generated, reference"),
        ("text", {}, {"heads": "max"}, "heads 'max' is unknown"),
        ("text", {}, {"segment": "max"}, "segment 'max' is unknown"),
        ("text", {}, {"aggregate": "max"}, "aggregate 'max' is unknown"),
        ("text", {}, {"span": "max"}, "span 'max' is unknown"),
        ("text", {}, {"responses": {}}, "the given responses hold none for 8 samples"),
        ("text", {}, {"responses": {f"s{i}": [10**6] for i in range(8)}}, "same tokenizer"),
        ("text", {"id": "s0"}, {}, "two samples have the same id s0"),
        ("text", {}, {"source_lengths": {"s0": 0}}, "gives no length for 8 samples"),
        ("speech", {}, {"source_lengths": {}}, "can only be given for a text LLM"),
    ],
)
def test_bad_input_is_reported_in_one_line(kind, change, options, message, tiny_lsm, tiny_llm, samples):
    chosen = [*samples[:7], bad(samples[7], **change)]
    with pytest.raises(InputError, match=message):
        probe(tiny_lsm if kind == "speech" else tiny_llm, chosen, **options)


def test_no_samples_are_refused(tiny_llm):
    with pytest.raises(InputError, match="there are no samples"):
        probe(tiny_llm, [])


def test_the_result_records_its_checkpoint_and_data(checkpoint, samples):
    result = probe(checkpoint, samples)
    summary = json.loads(json.dumps(result.to_dict()))
    assert summary["checkpoint"]["source"] == checkpoint.source
    assert summary["checkpoint"]["dtype"] == "float32"
    assert summary["checkpoint"]["weights_sha256"]
    assert summary["n_samples"] == 8
    assert summary["self_check"]["worst"] <= summary["self_check"]["worst_bound"]
    assert summary["data"]["n_samples"] == 8
    assert summary["versions"]["torch"] == torch.__version__
