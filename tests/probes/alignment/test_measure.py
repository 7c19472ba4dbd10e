"""The alignment probe end to end on tiny models: whose vectors they are, perfect alignment, what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.data.identity import DataIdentity
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.instruments import similarity
from lsm_probe.instruments.similarity import (
    debiased_cka,
    jackknife_cka,
    mmd,
    paired_cosine,
    retrieval,
    standardised,
)
from lsm_probe.intervals import interval
from lsm_probe.models.prompts import encode_prompt
from lsm_probe.models.segments import Segment
from lsm_probe.probes.alignment.measure import with_instruction
from lsm_probe.probes.alignment.result import CURVES, AlignmentConventions, AlignmentResult
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.identity import CheckpointIdentity

ONE = "Repeat the speech."


def probe(checkpoint, samples, **options):
    return lsm_probe.alignment(checkpoint, samples, **{"max_new_tokens": 6, "perplexity": 5, **options})


# Whose vectors


def states_by_hooks(llm, embedded):
    """What enters the first layer, what each layer puts out, and the last after the final norm, `[states, tokens, d]`:
    from hooks on the modules, in a pass of one prompt without padding."""
    seen = []
    layers = llm.model.layers
    first = layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    others = [
        module.register_forward_hook(lambda module, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for module in (*layers[:-1], llm.model.norm)
    ]
    llm(inputs_embeds=embedded[None])
    for hook in (first, *others):
        hook.remove()
    return torch.cat([state.reshape(1, -1, state.shape[-1]) for state in seen])


@torch.no_grad()
@pytest.mark.parametrize("segment", ["source", "prompt", "response"])
def test_vectors_equal_means_over_plain_forward_passes(tiny_lsm, samples, segment):
    result = probe(tiny_lsm, samples, segment=segment, batch_size=3)
    llm = tiny_lsm.llm
    assert result.speech.shape == result.text.shape == (8, 4, 48)
    assert result.speech.dtype == result.text.dtype == np.float32
    assert result.layers == [0, 1, 2, 3]
    for i, sample in enumerate(samples):
        speech = tiny_lsm.encode(sample.instruction, read_audio(sample))
        text = encode_prompt(tiny_lsm.tokenizer, tiny_lsm.template, sample.instruction, sample.text)
        ids = result.samples[i]["response_ids"] if segment == "response" else []
        said = llm.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))
        for prompt, mine in ((speech, result.speech[i]), (text, result.text[i])):
            states = states_by_hooks(llm, torch.cat([tiny_lsm.embed([prompt])[0], said]))
            assert len(states) == 4
            rows = {
                "source": [j for j, own in enumerate(prompt.segments) if own is Segment.SOURCE],
                "prompt": list(range(len(prompt))),
                "response": list(range(len(prompt), len(prompt) + len(ids))),
            }[segment]
            np.testing.assert_allclose(mine, states[:, rows].double().mean(1), atol=2e-5)


def test_the_transcript_pass_is_that_of_the_text_llm_itself(tiny_lsm, tiny_llm, samples):
    result = probe(tiny_lsm, samples)
    for i, sample in enumerate(samples):
        prompt = tiny_llm.encode(sample.instruction, sample.text)
        with torch.no_grad():
            states = tiny_llm.model(
                torch.tensor([prompt.input_ids]), output_hidden_states=True, use_cache=False
            ).hidden_states
        expected = torch.cat(states)[:, prompt.positions(Segment.SOURCE)].mean(1)
        np.testing.assert_allclose(result.text[i], expected, atol=2e-5)


def test_results_do_not_depend_on_the_batch_size(tiny_lsm, samples):
    together = probe(tiny_lsm, samples, segment="response")
    alone = probe(tiny_lsm, samples, segment="response", batch_size=1, responses=together.responses())
    for name in ("speech", "text"):
        np.testing.assert_allclose(getattr(alone, name), getattr(together, name), atol=1e-5)


def test_response_vectors_read_the_same_tokens_in_both_passes(tiny_lsm, samples):
    result = probe(tiny_lsm, samples, segment="response", response="reference")
    assert result.conventions == AlignmentConventions("response", "reference")
    assert result.checkpoint.max_new_tokens == 6
    np.testing.assert_array_equal(result.speech[:, 0], result.text[:, 0])  # embeddings of the response itself
    assert (result.speech[:, 1] != result.text[:, 1]).any()
    for sample, stored in zip(samples, result.samples, strict=True):
        assert stored["response_ids"] == tiny_lsm.encode_response(sample.target)


def test_no_response_is_generated_if_the_segment_does_not_need_one(tiny_lsm, samples, monkeypatch):
    def generate(*args, **kwargs):
        raise AssertionError("generated")

    monkeypatch.setattr(type(tiny_lsm), "generate", generate)
    result = probe(tiny_lsm, samples)
    assert result.conventions == AlignmentConventions("source", "none")
    assert "response" not in result.samples[0]
    assert result.checkpoint.max_new_tokens is None


def test_chosen_layers_have_the_same_numbers_as_in_a_run_over_all_layers(tiny_lsm, samples):
    whole, some = probe(tiny_lsm, samples), probe(tiny_lsm, samples, layers=[3, 1])
    assert some.layers == [1, 3]
    np.testing.assert_array_equal(some.speech, whole.speech[:, [1, 3]])
    np.testing.assert_array_equal(some.text, whole.text[:, [1, 3]])
    assert some.state(-1) == 3
    for name in CURVES:
        np.testing.assert_allclose(some.curves()[name].mean, whole.curves()[name].mean[[1, 3]])
    with pytest.raises(InputError, match="state 2 was not kept; there are 1, 3"):
        some.embed_2d(2)


def test_one_instruction_replaces_those_of_the_samples(tiny_lsm, samples):
    result = probe(tiny_lsm, samples, instruction=ONE, data=DataIdentity("clips", "x", 8))
    same = probe(tiny_lsm, [sample.model_copy(update={"instruction": ONE}) for sample in samples])
    np.testing.assert_array_equal(result.speech, same.speech)
    assert {sample["instruction"] for sample in result.samples} == {ONE}
    assert result.data == DataIdentity("clips", same.data.sha256, 8, ONE)
    with pytest.raises(InputError, match="probed on different data"):
        compare([result, probe(tiny_lsm, samples)])


# What the numbers must be


class PerfectEncoder:
    """Replaces an LSM's `encode`: speech tokens are the embeddings of the transcript's tokens."""

    def __init__(self, checkpoint, samples):
        self.checkpoint = checkpoint
        self.transcripts = {read_audio(sample).tobytes(): sample.text for sample in samples}

    def __call__(self, instruction, source, **nothing):
        checkpoint = self.checkpoint
        if isinstance(source, str):
            return checkpoint.processor.encode_text(instruction, source)
        transcript = self.transcripts[source.tobytes()]
        prompt = encode_prompt(checkpoint.tokenizer, checkpoint.template, instruction, transcript)
        ids = [prompt.input_ids[i] for i in prompt.positions(Segment.SOURCE)]
        speech = checkpoint.llm.get_input_embeddings()(torch.tensor(ids)).detach()
        return checkpoint.processor.encode_with_speech(instruction, speech)


@pytest.fixture
def perfect_lsm(tiny_lsm, samples):
    tiny_lsm.encode = PerfectEncoder(tiny_lsm, samples)
    return tiny_lsm


@pytest.mark.parametrize("segment", ["source", "prompt", "response"])
def test_speech_that_is_its_transcript_is_perfectly_aligned(perfect_lsm, samples, segment):
    responses = {"response": "reference"} if segment == "response" else {}
    result = probe(perfect_lsm, samples, segment=segment, instruction=ONE, **responses)
    np.testing.assert_allclose(result.speech, result.text, atol=1e-5)
    means = {name: curve.mean for name, curve in result.curves().items()}
    for name in ("paired_cosine", "cka", "standardised_cosine", "standardised_cka"):
        np.testing.assert_allclose(means[name], 1, atol=1e-4)
    for name in ("retrieval", "retrieval_speech_to_text", "retrieval_text_to_speech", "standardised_retrieval"):
        np.testing.assert_array_equal(means[name], 1)
    np.testing.assert_allclose(means["centroid_distance"], 0, atol=1e-4)
    found = result.mmd()
    np.testing.assert_allclose(found["squared"], 0, atol=1e-4)
    # Only rounding tells the sets apart, if anything does.
    assert np.median(found["p_value"]) > 0.05


def test_speech_with_other_words_is_less_similar(perfect_lsm, samples):
    texts = [sample.text for sample in samples]
    rolled = [s.model_copy(update={"text": t}) for s, t in zip(samples, texts[1:] + texts[:1], strict=True)]
    right = probe(perfect_lsm, samples, instruction=ONE)
    wrong = probe(perfect_lsm, rolled, instruction=ONE)
    np.testing.assert_allclose(wrong.speech, right.speech, atol=1e-5)  # the speech is unchanged
    for name in ("paired_cosine", "cosine_gap", "cka", "standardised_cosine", "retrieval"):
        assert (wrong.curves()[name].mean < right.curves()[name].mean).all()
    assert (wrong.curves()["retrieval"].mean < 0.3).all()
    # What does not look at pairs sees no difference.
    np.testing.assert_allclose(wrong.curves()["centroid_distance"].mean, 0, atol=1e-4)


def test_random_weights_are_far_from_aligned(tiny_lsm, samples):
    """The connector of the fixtures is untrained: retrieval is at the level of chance, and MMD is significant."""
    result = probe(tiny_lsm, samples, instruction=ONE)
    curves = result.curves()
    assert result.chance() == pytest.approx(1 / 8)
    assert curves["retrieval"].mean.mean() < 0.4
    assert np.abs(curves["cosine_gap"].mean).max() < 0.1
    assert (curves["centroid_distance"].mean > result.centroid_floor()).all()
    assert (result.mmd()["p_value"] < 0.05).all()


# Reading the result


def made(samples=12, states=3, dim=5, seed=0, name="model", layers=None, **fields):
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(samples, states, dim)).astype(np.float32)
    noise = rng.normal(size=text.shape) * np.linspace(3, 0.3, states)[:, None]
    about = {
        "clusters": np.arange(samples),
        "samples": [{"id": f"s{i}", "instruction": ONE} for i in range(samples)],
        "checkpoint": CheckpointIdentity(name=name, source="speech", template="chat", dtype="float32"),
        "data": DataIdentity("data", "x", samples),
        "conventions": AlignmentConventions(),
        "perplexity": 5.0,
    }
    return AlignmentResult(
        speech=(text + noise + 0.5).astype(np.float32),
        text=text,
        layers=layers or list(range(states)),
        **about | fields,
    )


def test_curves_are_the_similarity_of_each_state():
    clusters = np.repeat(np.arange(6), 2)
    result = made(clusters=clusters)
    curves = result.curves()
    assert tuple(curves) == CURVES
    for i in range(3):
        x, y = result.speech[:, i], result.text[:, i]
        zx, zy = ((v.astype(float) - v.mean(0)) / v.astype(float).std(0) for v in (x, y))
        to_text, to_speech = retrieval(x, y, clusters)
        expected = {
            "paired_cosine": paired_cosine(x, y).mean(),
            "standardised_cosine": paired_cosine(zx, zy).mean(),
            "cka": debiased_cka(x, y, clusters),
            "standardised_cka": debiased_cka(zx, zy, clusters),
            "retrieval_speech_to_text": to_text.mean(),
            "retrieval_text_to_speech": to_speech.mean(),
            "retrieval": (to_text.mean() + to_speech.mean()) / 2,
            "standardised_retrieval": np.mean(retrieval(zx, zy, clusters)),
        }
        for name, value in expected.items():
            assert curves[name].mean[i] == pytest.approx(value, abs=1e-6), name
    gap = curves["paired_cosine"].mean - curves["unpaired_cosine"].mean
    np.testing.assert_allclose(curves["cosine_gap"].mean, gap)
    assert result.chance() == pytest.approx(1 / 11)  # the own partner and the ten rows of other utterances
    assert result.centroid_floor() == pytest.approx(np.sqrt(2 / 6))
    for values in curves.values():
        assert values.mean.shape == values.ci_low.shape == values.ci_high.shape == (3,)
        assert (values.ci_low <= values.ci_high).all()


def test_standardised_rows_have_no_offset_and_no_large_dimension():
    rows = np.random.default_rng(0).normal(size=(9, 4)) * [1, 1e6, 0, 1e-3] + [3, 1e6, 0.1, 7]
    done = standardised(rows)
    np.testing.assert_allclose(done.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(done[:, [0, 1, 3]].std(0), 1)
    np.testing.assert_array_equal(done[:, 2], 0)  # constant, up to rounding
    with pytest.raises(InputError, match="NaN or infinity"):
        standardised(np.array([[1.0], [np.nan]]))


def test_a_large_offset_hides_partners_that_standardised_rows_find():
    """If the offset is much larger than the spread, one row is nearest to all; so both numbers are reported."""
    result = made(samples=30, states=1, dim=20)
    text = result.text + 5
    near = replace(result, speech=(text + 0.1 * result.speech - 300 * np.eye(20)[0]).astype(np.float32), text=text)
    curves = near.curves()
    assert curves["retrieval"].mean[0] < 0.3
    assert curves["standardised_retrieval"].mean[0] == 1


def test_numbers_are_cached(monkeypatch):
    calls = []
    monkeypatch.setattr(similarity, "mmd", lambda *args, **options: calls.append(1) or mmd(*args, **options))
    result = made()
    for _ in range(2):
        result.summary(), result.to_frame(), result.mmd()
    assert len(calls) == 3
    assert result.curves() is result.curves()
    assert result.embed_2d(1)[0] is result.embed_2d(1)[0]


def test_a_subset_equals_a_result_from_the_subset_of_vectors():
    whole = made()
    whole.curves()
    some = whole.subset(["s7", "s2", "s3", "s4", "s9"])
    np.testing.assert_array_equal(some.speech, whole.speech[[7, 2, 3, 4, 9]])
    assert (some.layers, some.perplexity) == (whole.layers, whole.perplexity)
    expected = paired_cosine(some.speech[:, 1], some.text[:, 1]).mean()
    assert some.curves()["paired_cosine"].mean[1] == pytest.approx(expected)


def test_saving_and_loading_preserves_the_result(tmp_path):
    result = made(excluded={"empty": ["x"]}, seed=3, layers=[0, 4, 9])
    loaded = AlignmentResult.load(result.save(tmp_path / "result"))
    assert loaded.to_dict() == result.to_dict()
    assert loaded.samples == result.samples
    assert loaded.layers == [0, 4, 9]
    for name in ("speech", "text", "clusters"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(result, name))


def strict(path):
    def refuse(constant):
        raise ValueError(constant)

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.mark.filterwarnings("error")
def test_constant_vectors_give_undefined_numbers_and_strict_json(tmp_path):
    """If all responses are equal, CKA and the distance are undefined, and the JSON holds null instead of NaN."""
    result = made()
    same = np.ones_like(result.text)
    result = replace(result, speech=same, text=same)
    stored = strict(result.save(tmp_path) / "result.json")
    assert stored["schema"] == "lsm-probe/alignment/2"
    assert stored["cka"] == {"mean": [None] * 3, "ci_low": [None] * 3, "ci_high": [None] * 3}
    assert stored["centroid_distance"]["mean"] == [None] * 3
    assert stored["retrieval"]["mean"] == pytest.approx([stored["retrieval_chance"]] * 3, abs=1e-6)
    assert stored["mmd"]["p_value"] == [1.0] * 3
    assert AlignmentResult.load(tmp_path).to_dict() == result.to_dict()


def test_frame_has_a_row_for_each_state():
    result = made(layers=[0, 2, 5])
    frame = result.to_frame()
    assert frame["state"].tolist() == [0, 2, 5]
    for name, values in result.curves().items():
        np.testing.assert_allclose(frame[name], values.mean)
        np.testing.assert_allclose(frame[f"{name}_low"], values.ci_low)
    np.testing.assert_allclose(frame["mmd_p_value"], result.mmd()["p_value"])


# Comparing


def test_a_result_does_not_differ_from_an_identical_one():
    first = made()
    twin = replace(first, seed=7, checkpoint=replace(first.checkpoint, name="twin"))
    pair = compare([first, twin])["pairs"][0]
    assert pair["warning"] is None
    for name in CURVES:
        difference = pair[f"{name}_difference"]
        assert difference["mean"] == [0.0] * 3
        if "retrieval" not in name:
            assert difference["ci_low"] == difference["ci_high"] == [0.0] * 3
        else:  # a share: other utterances may tell them apart
            assert difference["ci_low"] == [-end for end in difference["ci_high"]]


def test_differences_are_second_minus_first_and_paired():
    """Both checkpoints differ by the same step in each pair, so the paired interval is much narrower."""
    first = made(samples=40)
    checkpoint = replace(first.checkpoint, name="second")
    second = replace(first, speech=first.speech + 0.05 * first.text, checkpoint=checkpoint)
    pair = compare([first, second])["pairs"][0]
    ours, theirs = first.curves(), second.curves()
    for name in CURVES:
        np.testing.assert_allclose(
            pair[f"{name}_difference"]["mean"], theirs[name].mean - ours[name].mean, atol=2e-6, err_msg=name
        )
    for name in ("paired_cosine", "cka", "centroid_distance"):
        difference, own = pair[f"{name}_difference"], ours[name]
        assert difference["ci_high"][0] - difference["ci_low"][0] < 0.2 * (own.ci_high[0] - own.ci_low[0])
    x, y, z = first.speech[:, 0], first.text[:, 0], second.speech[:, 0]
    low, high = interval(
        debiased_cka(z, y) - debiased_cka(x, y),
        jackknife_cka(z, y, first.clusters) - jackknife_cka(x, y, first.clusters),
    )
    assert pair["cka_difference"]["ci_low"][0] == pytest.approx(low, abs=1e-6)
    assert pair["cka_difference"]["ci_high"][0] == pytest.approx(high, abs=1e-6)


def test_models_of_different_depth_have_no_differences_by_layer():
    pair = compare([made(), made(states=4, name="second")])["pairs"][0]
    assert "model has 3 states and second 4" in pair["warning"]
    assert all(pair[f"{name}_difference"] is None for name in CURVES)


def test_comparing_different_responses_gives_a_warning(tiny_lsm, samples):
    first = probe(tiny_lsm, samples, segment="response", response="reference")
    twin = replace(first, checkpoint=replace(first.checkpoint, name="twin"))
    assert compare([first, twin])["pairs"][0]["warning"] is None
    other = replace(twin, samples=[{**sample, "response_ids": [1]} for sample in first.samples])
    assert "different responses" in compare([first, other])["pairs"][0]["warning"]


def test_different_segments_are_not_compared():
    other = made(name="second", conventions=AlignmentConventions("prompt"))
    with pytest.raises(InputError, match="different conventions"):
        compare([made(), other])


# Utterances


def test_recordings_of_the_same_words_are_one_utterance(tiny_lsm, samples):
    """Two voices say the same words: neither counts as a wrong partner, and both are resampled together."""
    again = Sample(**{**samples[0].model_dump(), "id": "again", "audio": samples[3].audio})
    result = probe(tiny_lsm, [*samples[:3], *samples[4:], again])
    assert result.n_utterances == 7
    assert result.clusters[0] == result.clusters[-1]
    np.testing.assert_allclose(result.chance(), (6 / 8 + 2 / 7) / 8)


# What is refused, and what goes on


REFUSED = {
    "unknown segment": ({"segment": "system"}, "segment 'system' is unknown; choose one of: source, prompt, response"),
    "perplexity": ({"perplexity": 16}, "perplexity 16 needs more than 8 samples"),
    "no perplexity": ({"perplexity": 0}, "--perplexity 0 must be above 0"),
    "unknown layer": ({"layers": [1, 4]}, r"has no state 4: choose from 0 \(embeddings\) to 3"),
    "negative layer": ({"layers": [-1]}, "has no state -1"),
    "no layer": ({"layers": []}, "needs a state to look at"),
    "blank instruction": ({"instruction": " "}, "the instruction ' ' cannot be used: it is empty or blank"),
    "responses for nothing": ({"responses": {}}, "segment 'source' needs no responses"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_invalid_options_are_refused_before_any_forward_pass(tiny_lsm, samples, mistake, monkeypatch):
    monkeypatch.setattr(type(tiny_lsm), "embed", None)
    options, expected = REFUSED[mistake]
    with pytest.raises(InputError, match=expected):
        probe(tiny_lsm, samples, **options)


def test_too_few_utterances_are_refused_before_any_forward_pass(tiny_lsm, samples, monkeypatch):
    monkeypatch.setattr(type(tiny_lsm), "embed", None)
    repeated = [s.model_copy(update={"id": f"{s.id}-{i}"}) for s in samples[:4] for i in range(3)]
    with pytest.raises(InputError, match="at least 5 utterances of different words, got 4: give more samples"):
        probe(tiny_lsm, repeated)


@pytest.mark.parametrize("key", ["audio", "text"])
def test_samples_need_speech_and_text(tiny_lsm, samples, key, monkeypatch):
    monkeypatch.setattr(type(tiny_lsm), "embed", None)
    lacking = [*samples[:-1], samples[-1].model_copy(update={key: None})]
    with pytest.raises(InputError, match=f"1 of 8 samples have no `{key}`"):
        probe(tiny_lsm, lacking)


def test_a_text_llm_is_refused(tiny_llm, samples):
    with pytest.raises(InputError, match="is a text LLM, and alignment compares speech with text inside one model"):
        probe(tiny_llm, samples)


def test_states_that_are_not_finite_are_reported_in_one_line(tiny_lsm, samples):
    with torch.no_grad():
        tiny_lsm.llm.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="sample s0: state 2 of its speech is not finite"):
        probe(tiny_lsm, samples)


def test_a_transcript_with_the_placeholder_is_refused(tiny_lsm, samples):
    marked = [samples[0].model_copy(update={"text": "say <|audio|> twice"}), *samples[1:]]
    with pytest.raises(InputError, match=r"sample s0: the transcript holds <\|audio\|>"):
        probe(tiny_lsm, marked)


def test_a_transcript_longer_than_the_context_can_be_skipped(tiny_lsm, samples):
    long = [samples[0].model_copy(update={"text": "zq " * 600}), *samples[1:]]
    with pytest.raises(InputError, match=r"sample s0: a prompt of .* exceed the context of 1024"):
        probe(tiny_lsm, long)
    result = probe(tiny_lsm, long, on_error="skip")
    assert result.ids == [f"s{i}" for i in range(1, 8)]
    assert result.speech.shape[0] == len(result.clusters) == 7
    assert list(result.excluded.values()) == [["s0"]]


def test_too_few_remaining_samples_are_reported_in_one_line(tiny_lsm, samples):
    long = [sample.model_copy(update={"text": f"{i} zq " * 600}) for i, sample in enumerate(samples)]
    for left, perplexity, expected in ((4, 5, "at least 5 utterances"), (5, 12, "needs more than 6 samples")):
        with pytest.raises(InputError, match=f"{8 - left} of 8 samples had to be left out, and .*{expected}"):
            probe(tiny_lsm, [*samples[:left], *long[left:]], on_error="skip", perplexity=perplexity)


def test_out_of_memory_halves_the_batch_and_keeps_the_numbers(tiny_lsm, samples, monkeypatch):
    whole = probe(tiny_lsm, samples)
    embed = type(tiny_lsm).embed

    def scarce(self, prompts):
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return embed(self, prompts)

    monkeypatch.setattr(type(tiny_lsm), "embed", scarce)
    np.testing.assert_allclose(probe(tiny_lsm, samples).text, whole.text, atol=1e-5)


def test_replacing_the_instruction_changes_nothing_else(samples):
    changed = with_instruction(samples, ONE)
    assert [s.model_copy(update={"instruction": ONE}) for s in samples] == changed
