"""The LLM handed to TransformerLens and nnsight: the same model, reading the same spoken prompts."""

import subprocess
import sys

import pytest
import soundfile
import torch

import lsm_probe
from lsm_probe import interop
from lsm_probe.data.audio import read_audio
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models.segments import Segment


@pytest.fixture(scope="session")
def samples(tmp_path_factory, waveform):
    """Three utterances of different lengths."""
    folder = tmp_path_factory.mktemp("speech")
    made = []
    for i, text in enumerate(["the quick brown fox", "rain falls softly on the old town", "green"]):
        soundfile.write(folder / f"{i}.wav", waveform(0.5 + 1.3 * i, seed=i), 16_000)
        made.append(Sample(id=f"s{i}", instruction="Translate the speech.", audio=folder / f"{i}.wav", text=text))
    return made


@pytest.fixture(params=["speech", "text"])
def checkpoint(request, tiny_lsm, tiny_llm):
    return tiny_lsm if request.param == "speech" else tiny_llm


@pytest.fixture(params=["transformer-lens", "nnsight"])
def logits_of(request):
    """`logits_of(checkpoint, prompts)` runs them through a library: `[batch, tokens, vocab]`."""
    if request.param == "transformer-lens":
        pytest.importorskip("transformer_lens")

        def run(checkpoint, prompts):
            bridge = interop.to_transformer_lens(checkpoint)
            return bridge(prompts.inputs_embeds, attention_mask=prompts.attention_mask)

    else:
        pytest.importorskip("nnsight")

        def run(checkpoint, prompts):
            model = interop.to_nnsight(checkpoint)
            with model.trace(inputs_embeds=prompts.inputs_embeds, attention_mask=prompts.attention_mask):
                logits = model.output.logits.save()
            return logits

    return torch.no_grad()(run)


def source_of(checkpoint, sample):
    return read_audio(sample) if checkpoint.source == "speech" else sample.text


@torch.no_grad()
def own_logits(checkpoint, sample):
    """Of the whole model, from ids and features, each sample alone: `[tokens, vocab]`."""
    prompt = checkpoint.encode(sample.instruction, source_of(checkpoint, sample))
    return checkpoint.model(input_ids=torch.tensor([prompt.input_ids]), **prompt.features).logits[0]


def assert_own_logits(checkpoint, samples, logits, prompts):
    for i, sample in enumerate(samples):
        own = own_logits(checkpoint, sample)
        assert prompts.last[i] == len(own) - 1
        torch.testing.assert_close(logits[i, : len(own)], own, rtol=1e-4, atol=1e-5 * own.abs().max().item())


def test_logits_are_the_models_own(checkpoint, samples, logits_of):
    prompts = interop.embed_prompts(checkpoint, samples)
    assert_own_logits(checkpoint, samples, logits_of(checkpoint, prompts), prompts)


def test_positions_say_what_each_token_is(checkpoint, samples):
    prompts = interop.embed_prompts(checkpoint, samples)
    for i, sample in enumerate(samples):
        prompt = checkpoint.encode(sample.instruction, source_of(checkpoint, sample))
        n = len(prompt)
        assert prompts.attention_mask[i].tolist() == [1] * n + [0] * (prompts.segments.shape[1] - n)
        assert prompts.segments[i, :n].tolist() == prompt.segments
        assert (prompts.segments[i, n:] == Segment.PADDING).all()
        assert (prompts.inputs_embeds[i, n:] == 0).all()
        source = [label for label, s in zip(prompts.labels[i], prompt.segments, strict=True) if s is Segment.SOURCE]
        if checkpoint.source == "speech":
            assert source == [f"speech {k}" for k in range(prompt.count(Segment.SOURCE))]
        instruction = [t for t, s in zip(prompts.labels[i], prompt.segments, strict=True) if s is Segment.INSTRUCTION]
        assert "".join(instruction).strip() == sample.instruction


def test_a_sample_that_cannot_be_read_is_named(tiny_lsm, samples, tmp_path):
    broken = Sample(id="gone", instruction="Translate.", audio=tmp_path / "gone.wav")
    with pytest.raises(InputError, match="gone"):
        interop.embed_prompts(tiny_lsm, [*samples, broken])


def test_patching_speech_in_transformer_lens_moves_the_answer_and_not_the_checkpoint(tiny_lsm, samples):
    pytest.importorskip("transformer_lens")
    prompts = interop.embed_prompts(tiny_lsm, samples[:1])
    bridge = interop.to_transformer_lens(tiny_lsm)
    speech = prompts.segments[0] == Segment.SOURCE

    def silence(residual, hook):
        residual[:, speech] = 0
        return residual

    with torch.no_grad():
        whole = bridge(prompts.inputs_embeds, attention_mask=prompts.attention_mask)
        cut = bridge.run_with_hooks(
            prompts.inputs_embeds,
            attention_mask=prompts.attention_mask,
            fwd_hooks=[("blocks.0.hook_resid_pre", silence)],
        )
    before = int(speech.nonzero()[0])
    torch.testing.assert_close(cut[0, :before], whole[0, :before])
    assert (cut[0, -1] - whole[0, -1]).abs().max() > 1e-2
    assert_own_logits(tiny_lsm, samples[:1], whole, prompts)


def test_patching_speech_in_nnsight_moves_the_answer_and_not_the_checkpoint(tiny_lsm, samples):
    pytest.importorskip("nnsight")
    prompts = interop.embed_prompts(tiny_lsm, samples[:1])
    model = interop.to_nnsight(tiny_lsm)
    speech = prompts.segments[0] == Segment.SOURCE
    inputs = {"inputs_embeds": prompts.inputs_embeds, "attention_mask": prompts.attention_mask}
    with torch.no_grad():
        with model.trace(**inputs):
            model.model.layers[0].output[:, speech] = 0
            cut = model.output.logits.save()
        with model.trace(**inputs):
            pattern = model.model.layers[0].self_attn.source.attention_interface_1.output[1].save()
            whole = model.output.logits.save()
    torch.testing.assert_close(pattern.sum(-1), torch.ones(pattern.shape[:3]))
    assert (cut[0, -1] - whole[0, -1]).abs().max() > 1e-2
    assert_own_logits(tiny_lsm, samples[:1], whole, prompts)


def test_weight_processing_in_transformer_lens_leaves_the_checkpoint_alone(tiny_lsm, samples):
    pytest.importorskip("transformer_lens")
    before = own_logits(tiny_lsm, samples[0])
    interop.to_transformer_lens(tiny_lsm).enable_compatibility_mode()
    assert torch.equal(own_logits(tiny_lsm, samples[0]), before)


def test_the_bridge_tokenises_as_the_checkpoint_does(tiny_lsm):
    pytest.importorskip("transformer_lens")
    bridge = interop.to_transformer_lens(tiny_lsm)
    text = "The quick brown fox jumps over the lazy dog."
    assert bridge.to_tokens(text)[0].tolist() == tiny_lsm.tokenizer(text)["input_ids"]


@pytest.mark.real
@pytest.mark.parametrize("name", ["builtin:llm", "builtin:untrained"])
def test_logits_are_the_models_own_on_the_embedded_models(name, logits_of, builtin):
    checkpoint = builtin(name)
    samples = lsm_probe.read_manifest("builtin:probe")[:2]
    prompts = interop.embed_prompts(checkpoint, samples)
    logits = logits_of(checkpoint, prompts)
    assert_own_logits(checkpoint, samples, logits, prompts)


def test_the_command_line_starts_after_nnsight_was_imported():
    """nnsight gives every object a method `save`, which a dataclass with a field of that name takes for its default."""
    pytest.importorskip("nnsight")
    script = "import nnsight; import lsm_probe.cli.run, lsm_probe.probes.attention.result"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert not ended.returncode, ended.stderr
