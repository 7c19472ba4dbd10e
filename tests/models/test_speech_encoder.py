"""The audio tower: states of Whisper's encoder (full or trimmed) and of its decoder, computed or given."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, WhisperConfig, WhisperModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

import lsm_probe
from lsm_probe.models import LsmConfig, LsmForConditionalGeneration, LsmProjectorConfig
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.segments import Segment

Waveform = Callable[..., np.ndarray]
Build = Callable[..., Lsm]

INSTRUCTIONS = ["Continue writing the text.", "Translate the speech into German.", "Repeat.", "Go."]
SECONDS = [1.3, 0.401, 31.0, 1.3]


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the tensor's largest value."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


def lsm(checkpoint: Lsm) -> LsmForConditionalGeneration:
    return checkpoint.model


def make_batch(checkpoint: Lsm, waveform: Waveform, **options: Any) -> dict[str, Tensor]:
    """Four utterances in five pieces, two of one length, left-padded."""
    audios = [waveform(s, seed) for seed, s in enumerate(SECONDS)]
    return dict(checkpoint.processor(INSTRUCTIONS, audios, **options))


def with_states(checkpoint: Lsm, batch: dict[str, Tensor], beyond: float | None = None) -> dict[str, Tensor]:
    """The batch with the tower's states instead of features, and with `beyond` as padding."""
    rest = dict(batch)
    states, lengths = lsm(checkpoint).encode_speech(rest.pop("input_features"), rest.pop("input_features_mask"))
    if beyond is not None:
        states = torch.nn.functional.pad(states, (0, 0, 0, 3))
        for piece, length in zip(states, lengths.tolist(), strict=True):
            piece[length:] = beyond
    return rest | {"speech_states": states, "speech_lengths": lengths}


def labels_of(batch: dict[str, Tensor]) -> Tensor:
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -4:] = torch.arange(4) + 20
    return labels


class TestTrimmed:
    @pytest.fixture
    def encoder(self, build_shape: Build) -> Any:
        return lsm(build_shape("conv-trimmed")).audio_tower

    @pytest.mark.parametrize("states", [1, 2, 65, 1499, 1500])
    @torch.no_grad()
    def test_it_equals_a_whisper_with_that_number_of_positions(self, encoder: Any, states: int) -> None:
        config = WhisperConfig(**encoder.config.to_dict() | {"max_source_positions": states})
        shorter = WhisperEncoder(config).eval()
        weights = encoder.state_dict()
        weights["embed_positions.weight"] = weights["embed_positions.weight"][:states]
        shorter.load_state_dict(weights)
        mel = torch.randn(2, 80, 2 * states, generator=torch.Generator().manual_seed(0))
        assert torch.equal(encoder(mel).last_hidden_state, shorter(mel).last_hidden_state)

    @torch.no_grad()
    def test_an_odd_number_of_mel_frames_is_kept(self, encoder: Any) -> None:
        assert encoder(torch.randn(1, 80, 33)).last_hidden_state.shape == (1, 17, 32)

    @torch.no_grad()
    def test_only_speech_frames_are_encoded(self, build_shape: Build, waveform: Waveform) -> None:
        checkpoint = build_shape("conv-trimmed")
        batch = make_batch(checkpoint, waveform)
        features, mask = batch["input_features"], batch["input_features_mask"]
        states, lengths = lsm(checkpoint).encode_speech(features, mask)
        assert lengths.tolist() == [65, 21, 1500, 50, 65]
        assert states.shape == (5, 1500, 32)
        noisy = features.masked_fill(mask[:, None] == 0, float("nan"))
        again, _ = lsm(checkpoint).encode_speech(noisy, mask)
        assert torch.equal(again, states)

    @torch.no_grad()
    def test_full_and_trimmed_agree_on_30_s_and_differ_on_shorter_speech(
        self, build_shape: Build, waveform: Waveform
    ) -> None:
        full, trimmed = lsm(build_shape("conv")), lsm(build_shape("conv-trimmed"))
        batch = make_batch(build_shape("conv"), waveform)
        speech = batch["input_features"], batch["input_features_mask"]
        a, b = full.encode_speech(*speech)[0], trimmed.encode_speech(*speech)[0]
        torch.testing.assert_close(a[2], b[2], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(a[0, :65], b[0, :65], rtol=1e-2)


@torch.no_grad()
def test_the_decoder_states_equal_whispers_for_start_tokens(
    build_shape: Build, waveform: Waveform, tiny_encoder_folder: Path
) -> None:
    checkpoint = build_shape("linear-decoder")
    batch = make_batch(checkpoint, waveform)
    states, lengths = lsm(checkpoint).encode_speech(batch["input_features"], batch["input_features_mask"])
    whisper = WhisperModel.from_pretrained(tiny_encoder_folder).eval()
    ids = torch.full((5, 7), 3)  # its decoder_start_token_id
    expected = whisper(batch["input_features"], decoder_input_ids=ids).last_hidden_state
    assert torch.equal(states, expected)
    assert lengths.tolist() == [7] * 5
    connector: Any = lsm(checkpoint).multi_modal_projector
    tokens = lsm(checkpoint).get_audio_features(batch["input_features"], batch["input_features_mask"])
    torch.testing.assert_close(tokens, connector.linear(expected).flatten(0, 1), rtol=1e-5, atol=1e-5)


def test_weight_names_do_not_depend_on_connector_and_context(build_shape: Build) -> None:
    """The encoder's weight names are the same for every connector and context, also beside Whisper's decoder."""
    plain, trimmed, decoder = (lsm(build_shape(s)) for s in ("conv", "conv-trimmed", "linear-decoder"))
    assert plain.state_dict().keys() == trimmed.state_dict().keys()
    assert "audio_tower.conv1.weight" in plain.state_dict()
    names = decoder.audio_tower.state_dict().keys()
    assert {"encoder.conv1.weight", "decoder.layers.0.encoder_attn.q_proj.weight"} <= names


class TestShapes:
    @torch.no_grad()
    def test_a_saved_model_is_loaded_unchanged(self, shape: Checkpoint, waveform: Waveform, tmp_path: Path) -> None:
        shape.save(tmp_path)
        loaded = lsm_probe.load(tmp_path, device="cpu")
        saved, state = shape.model.state_dict(), loaded.model.state_dict()
        assert saved.keys() == state.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in saved.items())
        assert type(lsm(loaded).audio_tower) is type(lsm(shape).audio_tower)
        assert loaded.processor.decoder_states == shape.processor.decoder_states
        assert loaded.processor.projector == shape.processor.projector
        batch, again = make_batch(shape, waveform), make_batch(loaded, waveform)
        assert torch.equal(batch["input_ids"], again["input_ids"])
        assert torch.equal(shape.model(**batch).logits, loaded.model(**again).logits)

    def test_long_speech_is_encoded_piece_by_piece(self, shape: Checkpoint, waveform: Waveform) -> None:
        audio = waveform(61.2)
        pieces = [audio[i : i + 480_000] for i in range(0, len(audio), 480_000)]
        whole, *parts = (shape.encode("Go.", a) for a in (audio, *pieces))
        assert len(parts) == 3
        embedded = shape.embed([whole, *parts])  # refused unless the model makes the number the processor counted
        speech = [
            e[torch.tensor([s is Segment.SOURCE for s in p.segments])]
            for e, p in zip(embedded, [whole, *parts], strict=True)
        ]
        assert_same(speech[0], torch.cat(speech[1:]))

    @torch.no_grad()
    def test_states_give_the_same_logits_as_features(self, shape: Checkpoint, waveform: Waveform) -> None:
        batch = make_batch(shape, waveform)
        expected = shape.model(**batch).logits
        assert torch.equal(shape.model(**with_states(shape, batch)).logits, expected)
        embedded = lsm(shape).embed(batch["input_ids"], batch["input_features"], batch["input_features_mask"])
        cached = with_states(shape, batch)
        del cached["attention_mask"]
        assert torch.equal(lsm(shape).embed(**cached), embedded)

    @torch.no_grad()
    def test_padding_states_do_not_change_the_logits(self, shape: Checkpoint, waveform: Waveform) -> None:
        batch = make_batch(shape, waveform)
        expected = shape.model(**batch).logits
        for beyond in (float("nan"), float("inf"), 1e30):
            assert torch.equal(shape.model(**with_states(shape, batch, beyond)).logits, expected)

    def test_gradients_reach_the_connector_and_not_the_frozen_tower(
        self, shape: Checkpoint, waveform: Waveform
    ) -> None:
        model = lsm(shape)
        model.audio_tower.requires_grad_(False)
        batch = make_batch(shape, waveform)
        gradients = []
        for inputs in (batch, with_states(shape, batch), with_states(shape, batch, float("nan"))):
            model.zero_grad()
            model(**inputs, labels=labels_of(batch)).loss.backward()
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        connector = {n for n, _ in model.named_parameters() if n.startswith("multi_modal_projector.")}
        assert connector <= gradients[0].keys()
        assert not any(name.startswith("audio_tower.") for name in gradients[0])
        weights = [gradients[0][n] for n in connector if "linear" in n or "convs" in n]
        assert all(gradient.abs().max() > 0 for gradient in weights)
        for name, gradient in gradients[0].items():
            assert torch.equal(gradients[1][name], gradient), name
            # Sums over longer padding are rounded in another order.
            assert_same(gradients[2][name], gradient)

    def test_a_trainable_tower_gets_gradients(self, shape: Checkpoint, waveform: Waveform) -> None:
        batch = make_batch(shape, waveform)
        lsm(shape)(**batch, labels=labels_of(batch)).loss.backward()
        for name, parameter in lsm(shape).audio_tower.named_parameters():
            if parameter.requires_grad and "embed_tokens" not in name:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name


class TestFrozen:
    def test_a_frozen_tower_builds_no_graph(self, tiny_lsm: Lsm, waveform: Waveform) -> None:
        batch = make_batch(tiny_lsm, waveform)
        speech = batch["input_features"], batch["input_features_mask"]
        assert lsm(tiny_lsm).encode_speech(*speech)[0].requires_grad
        lsm(tiny_lsm).audio_tower.requires_grad_(False)
        assert not lsm(tiny_lsm).encode_speech(*speech)[0].requires_grad
        lsm(tiny_lsm).audio_tower.requires_grad_(True)
        with torch.no_grad():
            assert not lsm(tiny_lsm).encode_speech(*speech)[0].requires_grad

    def test_it_stays_in_evaluation_mode(self, tiny_lsm: Lsm) -> None:
        model = lsm(tiny_lsm)
        assert model.train() is model
        assert all(module.training for module in model.modules())
        model.audio_tower.requires_grad_(False)
        model.train()
        assert not any(module.training for module in model.audio_tower.modules())
        assert model.training
        assert all(m.training for part in (model.language_model, model.multi_modal_projector) for m in part.modules())
        model.eval()
        assert not any(module.training for module in model.modules())

    def test_its_dropout_is_off(self, tiny_lsm: Lsm, waveform: Waveform) -> None:
        model = lsm(tiny_lsm)
        model.audio_tower.dropout = 0.5
        model.audio_tower.requires_grad_(False)
        batch = make_batch(tiny_lsm, waveform)
        speech = batch["input_features"], batch["input_features_mask"]
        expected = model.eval().encode_speech(*speech)[0]
        assert torch.equal(model.train().encode_speech(*speech)[0], expected)

    @pytest.mark.parametrize("tower_learns", [False, True])
    @pytest.mark.parametrize("cached", [False, True])
    @pytest.mark.parametrize("name", ["window_qformer", "conv-trimmed", "linear-decoder"])
    def test_gradient_checkpointing_does_not_change_gradients(
        self, build_shape: Build, waveform: Waveform, name: str, cached: bool, tower_learns: bool
    ) -> None:
        checkpoint = build_shape(name)
        model = lsm(checkpoint)
        model.audio_tower.requires_grad_(tower_learns)
        batch = make_batch(checkpoint, waveform)
        inputs = with_states(checkpoint, batch) if cached else batch
        if cached:
            inputs["speech_states"] = inputs["speech_states"].detach()

        def gradients() -> dict[str, Tensor]:
            model.zero_grad()
            torch.manual_seed(0)  # the same dropout
            model(**inputs, labels=labels_of(batch), use_cache=False).loss.backward()
            return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

        model.train()
        plain = gradients()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        calls = []
        hook = model.language_model.model.layers[0].self_attn.register_forward_pre_hook(lambda *_: calls.append(1))
        checkpointed = gradients()
        hook.remove()
        assert len(calls) == 2  # once forward, once again backward
        assert plain.keys() == checkpointed.keys()
        assert any(n.startswith("audio_tower.") for n in plain) == (tower_learns and not cached)
        for parameter, gradient in plain.items():
            torch.testing.assert_close(checkpointed[parameter], gradient, rtol=1e-6, atol=1e-7)


class TestInputs:
    @pytest.fixture
    def batch(self, tiny_lsm: Lsm, waveform: Waveform) -> dict[str, Tensor]:
        return make_batch(tiny_lsm, waveform)

    def test_features_and_states_together_are_refused(self, tiny_lsm: Lsm, batch: dict[str, Tensor]) -> None:
        with pytest.raises(ValueError, match="input_features or speech_states, not both"):
            tiny_lsm.model(**(with_states(tiny_lsm, batch) | batch))

    @pytest.mark.parametrize("missing", ["speech_states", "speech_lengths"])
    def test_states_without_lengths_are_refused(self, tiny_lsm: Lsm, batch: dict[str, Tensor], missing: str) -> None:
        inputs = with_states(tiny_lsm, batch)
        del inputs[missing]
        with pytest.raises(ValueError, match="speech_states and speech_lengths together"):
            tiny_lsm.model(**inputs)

    def test_lengths_that_do_not_fit_the_prompt_are_refused(self, tiny_lsm: Lsm, batch: dict[str, Tensor]) -> None:
        inputs = with_states(tiny_lsm, batch)
        inputs["speech_lengths"] = inputs["speech_lengths"] + 17
        with pytest.raises(ValueError, match="audio placeholders in input_ids"):
            tiny_lsm.model(**inputs)

    def test_states_are_cast_to_the_models_dtype(self, tiny_lsm: Lsm, batch: dict[str, Tensor]) -> None:
        inputs = with_states(tiny_lsm, batch)
        half = inputs | {"speech_states": inputs["speech_states"].half()}
        same = inputs | {"speech_states": inputs["speech_states"].half().float()}
        with torch.no_grad():
            assert torch.equal(tiny_lsm.model(**half).logits, tiny_lsm.model(**same).logits)

    @pytest.mark.parametrize("beams", [1, 3])
    @torch.no_grad()
    def test_states_and_features_give_the_same_answers(
        self, tiny_lsm: Lsm, batch: dict[str, Tensor], beams: int
    ) -> None:
        settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
        expected = lsm(tiny_lsm).generate(**batch, **settings)
        assert torch.equal(lsm(tiny_lsm).generate(**with_states(tiny_lsm, batch), **settings), expected)
        assert expected.shape[1] > batch["input_ids"].shape[1]


def test_beam_search_works_with_decoder_states(build_shape: Build, waveform: Waveform) -> None:
    checkpoint = build_shape("linear-decoder")
    model, batch = lsm(checkpoint), make_batch(checkpoint, waveform)
    embedded = model.embed(batch["input_ids"], batch["input_features"], batch["input_features_mask"])
    settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "num_beams": 3}
    mask = batch["attention_mask"]
    expected = model.language_model.generate(inputs_embeds=embedded, attention_mask=mask, **settings)
    assert torch.equal(model.generate(**batch, **settings)[:, mask.shape[1] :], expected)


class TestPartsForSharding:
    """Accelerate wraps each layer that the model names, and refuses unknown names."""

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("conv", {"WhisperEncoderLayer", "LlamaDecoderLayer"}),
            ("conv-trimmed", {"WhisperEncoderLayer", "LlamaDecoderLayer"}),
            ("linear-decoder", {"WhisperEncoderLayer", "WhisperDecoderLayer", "LlamaDecoderLayer"}),
        ],
    )
    def test_no_split_modules_name_layers_of_llm_and_tower(
        self, build_shape: Build, name: str, expected: set[str]
    ) -> None:
        from accelerate.utils.dataclasses import get_module_class_from_name

        model = lsm(build_shape(name))
        assert set(model._no_split_modules) == expected
        assert all(get_module_class_from_name(model, layer) is not None for layer in expected)


@pytest.mark.parametrize("seconds", [0.01, 1.3, 31.0])
def test_the_decoder_gives_a_fixed_number_of_states_per_piece(
    build_shape: Build, waveform: Waveform, seconds: float
) -> None:
    prompt = build_shape("linear-decoder").encode("Go.", waveform(seconds))
    assert prompt.count(Segment.SOURCE) == 7 * math.ceil(seconds / 30)


class TestLearnedDecoderInput:
    @pytest.fixture
    def model(self, tiny_encoder_folder: Path, tiny_llm_folder: Path) -> LsmForConditionalGeneration:
        torch.manual_seed(0)
        audio, text = (AutoConfig.from_pretrained(folder) for folder in (tiny_encoder_folder, tiny_llm_folder))
        tower: dict[str, Any] = {"decoder_states": 300, "decoder_input": "learned"}
        projector = LsmProjectorConfig(connector="linear")
        config = LsmConfig(audio_config=audio, projector_config=projector, text_config=text, **tower)
        return LsmForConditionalGeneration(config).eval()

    @torch.no_grad()
    def test_the_decoder_reads_the_queries(self, model: LsmForConditionalGeneration) -> None:
        tower: Any = model.audio_tower
        assert tower.query.std().item() == pytest.approx(0.2, rel=0.05)  # init_std of the tiny Whisper
        features, mask = torch.randn(2, 80, 3000), torch.ones(2, 3000, dtype=torch.long)
        states, lengths = model.encode_speech(features, mask)
        encoded = tower.encoder(features[1:]).last_hidden_state
        expected = tower.decoder(inputs_embeds=tower.query[None], encoder_hidden_states=encoded).last_hidden_state
        assert_same(states[1:], expected)
        assert lengths.tolist() == [300, 300]
        tower.query[7] += torch.linspace(-1, 1, 32)
        changed, _ = model.encode_speech(features, mask)
        # Whisper's decoder is causal: states before the query do not change.
        assert (changed != states).any(-1).any(0).nonzero()[:, 0].tolist() == list(range(7, 300))

    def test_a_saved_model_is_loaded_unchanged(self, model: LsmForConditionalGeneration, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        loaded = LsmForConditionalGeneration.from_pretrained(tmp_path)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), loaded.parameters(), strict=True))

    def test_the_queries_get_gradients_if_trainable(self, model: LsmForConditionalGeneration) -> None:
        tower: Any = model.audio_tower
        tower.requires_grad_(False)
        tower.query.requires_grad_()
        model.get_audio_features(torch.randn(1, 80, 3000), torch.ones(1, 3000, dtype=torch.long)).sum().backward()
        assert tower.query.grad.any(-1).all()
