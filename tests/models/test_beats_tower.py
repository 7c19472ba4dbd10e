"""An LSM whose audio tower is Whisper's encoder with BEATs beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lsm_probe
from lsm_probe.data.problems import Problems
from lsm_probe.models import LsmConfig, LsmForConditionalGeneration, LsmProcessor, LsmProjectorConfig
from lsm_probe.models.beats import BeatsConfig
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.configuration_lsm import ENCODER_CONTEXTS
from lsm_probe.models.connectors import WindowQFormer
from lsm_probe.models.connectors.base import UnusableConfig
from lsm_probe.training.dataset import TrainingSet, collate
from lsm_probe.training.states import SpeechStates

INSTRUCTION = "Write down what the speaker says."
BEATS = {
    "patch_dim": 6,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_buckets": 8,
    "max_bucket_distance": 7,
}


@pytest.fixture
def build(tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_projector: Any) -> Callable[..., Lsm]:
    """`build(context)`: an LSM with BEATs, all of its weights random."""

    def make(encoder_context: str = "padded", *, connector: str = "window_qformer") -> Lsm:
        parts = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder)
        projector = (
            tiny_projector(layer_norm_dim=32)
            if connector == "window_qformer"
            else LsmProjectorConfig(connector=connector)
        )
        config = LsmConfig(
            audio_config=parts.model.config.audio_config,
            projector_config=projector,
            text_config=parts.model.config.text_config,
            beats_config=BEATS,
            encoder_context=encoder_context,
        )
        torch.manual_seed(2)
        model = LsmForConditionalGeneration(config)
        for parameter in model.parameters():  # biases start at zero, which would hide mistakes
            parameter.data += 0.1 * torch.randn_like(parameter)
        processor = LsmProcessor.for_model(config, parts.processor.feature_extractor, parts.tokenizer)
        return Lsm("beats", model.eval(), processor)

    return make


@torch.no_grad()
def encode(lsm: Lsm, *waves: Any) -> list[torch.Tensor]:
    """The valid states of each piece."""
    inputs = lsm.processor(instruction=[INSTRUCTION] * len(waves), audio=list(waves))
    speech = {name: inputs[name] for name in inputs if name not in ("input_ids", "attention_mask")}
    states, lengths = lsm.model.encode_speech(**speech)
    return [own[:length] for own, length in zip(states, lengths.tolist(), strict=True)]


@pytest.mark.parametrize("context", ENCODER_CONTEXTS)
def test_states_do_not_depend_on_the_batch(build, waveform, context: str) -> None:
    lsm = build(context)
    waves = [waveform(0.21), waveform(31.2, 1), waveform(1.37, 2)]
    together = encode(lsm, *waves)
    alone = [states for wave in waves for states in encode(lsm, wave)]
    assert len(together) == len(alone) == 4
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_whisper_and_beats_states_are_concatenated(build, waveform) -> None:
    lsm, wave = build(), waveform(1.37)
    [states] = encode(lsm, wave)
    features = lsm.processor.extract(wave)
    tower: Any = lsm.model.audio_tower
    assert features["beats_features"].shape == (1, 2998, 128)
    [frames] = features["beats_frames"].tolist()
    assert frames == (len(wave) - 400) // 160 + 1
    own = tower.layer_norm(tower.beats(features["beats_features"][:, :frames], features["beats_frames"]))[0]
    assert len(own) == frames // 16 * 8
    torch.testing.assert_close(states[: len(own), 32:], own)
    assert not states[len(own) :, 32:].any()
    torch.testing.assert_close(states[:, :32], tower.encoder(features["input_features"]).last_hidden_state[0])


def test_speech_below_one_second_is_padded_with_silence(build, waveform) -> None:
    lsm, wave = build(), waveform(0.1)
    filled = np.pad(wave, (0, 16_000 - len(wave)))
    short, long = lsm.processor.extract(wave), lsm.processor.extract(filled)
    assert short["beats_frames"].tolist() == [98]
    assert all(torch.equal(short[name], long[name]) for name in long)


def test_a_saved_model_gives_the_same_states(build, waveform, tmp_path) -> None:
    lsm, wave = build(), waveform(1.0)
    lsm.save(tmp_path / "saved")
    again = lsm_probe.load(tmp_path / "saved", device="cpu")
    assert BEATS.items() <= again.model.config.beats_config.to_dict().items()
    assert torch.equal(again.encode_speech(wave), lsm.encode_speech(wave))


def test_beam_search_repeats_all_pieces_of_an_utterance(build, waveform) -> None:
    lsm = build()
    waves = [waveform(31.2, 1), waveform(0.5)]
    options = {"max_new_tokens": 4, "num_beams": 2, "do_sample": False}
    alone = [lsm.model.generate(**lsm.processor(INSTRUCTION, wave), **options)[0, -4:] for wave in waves]
    together = lsm.model.generate(**lsm.processor([INSTRUCTION] * 2, waves), **options)[:, -4:]
    assert torch.equal(together, torch.stack(alone))


def test_missing_and_superfluous_inputs_are_refused(build, tiny_lsm, waveform) -> None:
    lsm, wave = build(), waveform(0.5)
    inputs = lsm.processor(INSTRUCTION, wave)
    beats = {name: inputs.pop(name) for name in ("beats_features", "beats_frames")}
    with pytest.raises(ValueError, match="give beats_features and beats_frames"):
        lsm.model(**inputs)
    with pytest.raises(ValueError, match="this model has no BEATs"):
        tiny_lsm.model(**tiny_lsm.processor(INSTRUCTION, wave), **beats)
    with pytest.raises(ValueError, match="with input_features, or not at all"):
        lsm.model.embed(torch.tensor([[1]]), **beats)


def test_training_loss_is_the_same_with_and_without_stored_states(build, waveform, tmp_path, clip) -> None:
    lsm = build()
    samples = [
        lsm_probe.Sample(id=str(i), instruction=INSTRUCTION, audio=clip(tmp_path / f"{i}.wav", 0.4 + i), target="town")
        for i in range(2)
    ]
    states, problems = SpeechStates(tmp_path / "states", lsm), Problems()
    states.fill(lsm, samples, problems, on_progress=lambda *_: None)
    losses = []
    for kept in (None, states):
        data = TrainingSet(samples, lsm, kept)
        batch = collate([data[0], data[1]], pad_id=0)
        del batch["index"]
        losses.append(lsm.model(**batch).loss)
    torch.testing.assert_close(losses[0], losses[1])
    losses[0].backward()
    assert lsm.model.audio_tower.beats.patch_embedding.weight.grad.abs().sum() > 0


def test_speech_attention_measures_whisper_frames(build, waveform) -> None:
    lsm, wave = build(), waveform(2.0)
    found = lsm_probe.speech_attention(lsm, wave)
    assert found.norms.shape == (2, 1500)
    assert found.frame_times.shape == (1500, 2)
    assert found.token_times.shape == (89, 2)
    np.testing.assert_allclose(found.frame_times[[99, 100, 1499]], [[1.98, 2], [2, 2], [2, 2]])
    assert found.connector.norms.shape == (2, 89, 17)
    assert all(check["median"] <= check["median_bound"] for check in found.self_check.values())


def test_the_timeline_leaves_out_the_padding(build, waveform, tmp_path, clip) -> None:
    sample = lsm_probe.Sample(id="a", instruction=INSTRUCTION, audio=clip(tmp_path / "a.wav", 1.3))
    found = lsm_probe.timeline(build(), sample, max_new_tokens=2)
    assert found.frame_times.shape == (65, 2)
    assert len(found.token_times) == 4  # of 17 frames each, the last one of 14
    assert found.token_times[-1].tolist() == pytest.approx([1.02, 1.3])
    np.testing.assert_allclose(found.shares.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.over_time().sum(-1), found.norms.mean(1).sum(-1), rtol=1e-5)


def test_other_connectors_accept_the_concatenated_states(build, waveform) -> None:
    lsm = build("trimmed", connector="conv")
    assert lsm.model.multi_modal_projector.convs[0].in_channels == 40
    assert lsm.encode_speech(waveform(0.9)).isfinite().all()


def test_the_layer_norm_applies_to_the_first_channels_only(tiny_projector) -> None:
    torch.manual_seed(0)
    connector = WindowQFormer(tiny_projector(layer_norm_dim=5), encoder_dim=8, llm_dim=6).eval()
    connector.query.data.normal_()
    states = torch.randn(1, 17, 8)
    scaled = states * torch.tensor([3.0] * 5 + [1.0] * 3)
    length = torch.tensor([17])
    first = connector(states, length)
    torch.testing.assert_close(connector(scaled, length), first, rtol=1e-3, atol=1e-4)
    scaled[..., 5:] *= 3
    assert (connector(scaled, length) - first).abs().max() > 1e-2


def test_unusable_configurations_are_refused(tiny_projector) -> None:
    with pytest.raises(UnusableConfig, match="beats_config and decoder_states exclude each other"):
        LsmConfig(beats_config=BeatsConfig(**BEATS), decoder_states=4)
    with pytest.raises(UnusableConfig, match="layer_norm_dim 9: the states are 8 wide"):
        WindowQFormer(tiny_projector(layer_norm_dim=9), encoder_dim=8, llm_dim=6)
    with pytest.raises(UnusableConfig, match="hidden_size 30 is not a multiple of num_attention_heads 4"):
        WindowQFormer(tiny_projector(hidden_size=30), encoder_dim=8, llm_dim=6)
