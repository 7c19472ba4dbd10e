"""The LSM works like any other transformers model: it is saved, loaded, trained, wrapped, and generates."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoProcessor, WhisperModel

import lsm_probe
from lsm_probe.models import LsmConfig, LsmForConditionalGeneration, LsmProcessor, LsmProjectorConfig, building
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.models.segments import Segment

Waveform = Callable[..., np.ndarray]
Projector = Callable[..., LsmProjectorConfig]

INSTRUCTIONS = ["Continue writing the text.", "Translate the speech into German.", "Repeat."]
SECONDS = [1.3, 0.4, 2.9]


@pytest.fixture
def model(tiny_lsm: Lsm) -> LsmForConditionalGeneration:
    return tiny_lsm.model


@pytest.fixture
def batch(tiny_lsm: Lsm, waveform: Waveform) -> dict[str, torch.Tensor]:
    """Three utterances, left-padded."""
    audios = [waveform(s, seed) for seed, s in enumerate(SECONDS)]
    return dict(tiny_lsm.processor(INSTRUCTIONS, audios))


def trainable_labels(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Labels at the last 5, 9 and 2 positions; -100 elsewhere."""
    labels = torch.full_like(batch["input_ids"], -100)
    for row, count in enumerate((5, 9, 2)):
        labels[row, -count:] = torch.arange(count) + 40 * row + 10
    return labels


class TestSaving:
    def test_saved_weights_are_loaded_bit_for_bit(self, model: LsmForConditionalGeneration, tmp_path: Path) -> None:
        model.generation_config.eos_token_id = [2, 4]
        model.save_pretrained(tmp_path)
        loaded = LsmForConditionalGeneration.from_pretrained(tmp_path)
        saved_state, loaded_state = model.state_dict(), loaded.state_dict()
        assert saved_state.keys() == loaded_state.keys()
        for name, tensor in saved_state.items():
            assert tensor.dtype == loaded_state[name].dtype
            assert torch.equal(tensor, loaded_state[name]), name
        buffers = dict(loaded.named_buffers())
        assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())
        assert loaded.config.to_json_string() == model.config.to_json_string()
        assert loaded.generation_config.eos_token_id == [2, 4]

    def test_tied_weights_stay_tied(self, model: LsmForConditionalGeneration, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        loaded = LsmForConditionalGeneration.from_pretrained(tmp_path)
        for each in (model, loaded):
            head, embedding = each.get_output_embeddings().weight, each.get_input_embeddings().weight
            assert head.data_ptr() == embedding.data_ptr()

    def test_weights_are_saved_as_safetensors_only(
        self, tiny_lsm_folder: Path, model: LsmForConditionalGeneration, tmp_path: Path
    ) -> None:
        model.save_pretrained(tmp_path, max_shard_size="100KB")
        for folder in (tiny_lsm_folder, tmp_path):
            assert {p.suffix for p in folder.iterdir()} <= {".safetensors", ".json", ".jinja", ".yaml"}
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        sharded = LsmForConditionalGeneration.from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(tensor, sharded[name]) for name, tensor in model.state_dict().items())

    def test_auto_classes_load_it(self, tiny_lsm_folder: Path) -> None:
        # In a separate process: importing one of the classes must be enough.
        code = f"""
from lsm_probe.models import LsmConfig
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor
autos = (AutoConfig, AutoModelForMultimodalLM, AutoProcessor)
print("made:", *[type(auto.from_pretrained({str(tiny_lsm_folder)!r})).__name__ for auto in autos])
"""
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "made: LsmConfig LsmForConditionalGeneration LsmProcessor" in run.stdout

    def test_the_processor_is_loaded_unchanged(
        self, tiny_lsm: Lsm, waveform: Waveform, tmp_path: Path, tiny_projector: Projector
    ) -> None:
        assert isinstance(tiny_lsm.model.config, LsmConfig)
        config = LsmConfig(
            audio_config=tiny_lsm.model.config.audio_config,
            projector_config=tiny_projector(window=9, num_queries=2),
            text_config=tiny_lsm.model.config.text_config,
        )
        processor = LsmProcessor.for_model(
            config, tiny_lsm.processor.feature_extractor, tiny_lsm.tokenizer, template="vicuna"
        )
        processor.save_pretrained(tmp_path)
        config.save_pretrained(tmp_path)
        loaded = AutoProcessor.from_pretrained(tmp_path)
        before, after = (p.encode("Repeat.", waveform(1)) for p in (processor, loaded))
        assert loaded.template.name == "vicuna"
        assert before.count(Segment.SOURCE) == 2 * -(-50 // 9)
        assert (after.input_ids, after.segments) == (before.input_ids, before.segments)
        assert torch.equal(after.features["input_features"], before.features["input_features"])


class TestBuilding:
    def test_the_parts_have_the_pretrained_weights(
        self, tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_projector: Projector
    ) -> None:
        model = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=tiny_projector()).model
        llm = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
        encoder = WhisperModel.from_pretrained(tiny_encoder_folder).encoder
        for part, own in ((model.language_model, llm), (model.audio_tower, encoder)):
            assert part.state_dict().keys() == own.state_dict().keys()
            assert all(torch.equal(tensor, own.state_dict()[name]) for name, tensor in part.state_dict().items())

    @pytest.mark.parametrize("decoder_states", [None, 7])
    def test_each_weight_is_in_memory_once(
        self,
        tiny_encoder_folder: Path,
        tiny_llm_folder: Path,
        tiny_projector: Projector,
        monkeypatch: pytest.MonkeyPatch,
        decoder_states: int | None,
    ) -> None:
        parts: dict[str, Any] = {}

        def keep(name: str, load: Callable[..., Any]) -> None:
            def loading_and_keeping(*args: Any, **kwargs: Any) -> Any:
                parts[name] = load(*args, **kwargs)
                return parts[name]

            monkeypatch.setattr(building, name, loading_and_keeping)

        keep("load_causal_llm", building.load_causal_llm)
        keep("_whisper", building._whisper)
        options: dict[str, Any] = {"projector": tiny_projector(), "decoder_states": decoder_states}
        model = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, **options).model
        assert model.language_model is parts["load_causal_llm"]
        whisper = parts["_whisper"] if decoder_states else parts["_whisper"].encoder
        places = {name: tensor.data_ptr() for name, tensor in whisper.state_dict().items()}
        assert {name: tensor.data_ptr() for name, tensor in model.audio_tower.state_dict().items()} == places
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        assert not [name for name, tensor in tensors.items() if tensor.is_meta]
        frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
        assert all(name.endswith("embed_positions.weight") for name in frozen)  # as transformers computes it
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    def test_the_rotary_frequencies_equal_those_of_the_llm(
        self, tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_projector: Projector
    ) -> None:
        model = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=tiny_projector()).model
        own = dict(AutoModelForCausalLM.from_pretrained(tiny_llm_folder).named_buffers())
        buffers = dict(model.language_model.named_buffers())
        assert buffers.keys() == own.keys()
        assert any("inv_freq" in name for name in own)
        assert all(torch.equal(tensor, buffers[name]) for name, tensor in own.items())

    def test_the_initial_connector_does_not_depend_on_encoder_and_llm(
        self,
        tmp_path: Path,
        tiny_encoder_folder: Path,
        tiny_llm_folder: Path,
        tiny_projector: Projector,
        save_llm: Callable[..., Path],
    ) -> None:
        other = save_llm(tmp_path / "llm", seed=1)
        first, second = (
            lsm_probe.build_lsm(tiny_encoder_folder, llm, projector=tiny_projector(), encoder_context=context).model
            for llm, context in ((tiny_llm_folder, "full"), (other, "trimmed"))
        )
        connector = second.multi_modal_projector.state_dict()
        for name, tensor in first.multi_modal_projector.state_dict().items():
            assert torch.equal(tensor, connector[name])
        assert not torch.equal(first.get_input_embeddings().weight, second.get_input_embeddings().weight)

    @pytest.mark.parametrize("connector", ["window_qformer", "frame_stack", "conv", "swiglu_stack"])
    def test_initial_connector_weights_have_the_specified_spread(
        self, tiny_encoder_folder: Path, tiny_llm_folder: Path, connector: str
    ) -> None:
        config = LsmProjectorConfig(connector=connector)
        model = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=config).model
        for name, parameter in model.multi_modal_projector.named_parameters():
            if "bias" in name:
                assert not parameter.any(), name
            elif "norm" in name.lower() or name.startswith("ln_"):
                assert (parameter == 1).all(), name
            else:  # that of the Q-Former; elsewhere 0.2, that of the tiny LLM
                spread = 0.02 if "qformer" in name or name == "query" else 0.2
                assert parameter.std().item() == pytest.approx(spread, rel=0.1), name

    def test_the_eos_tokens_of_the_llm_are_kept(
        self, tmp_path: Path, tiny_encoder_folder: Path, tiny_llm: Checkpoint, tiny_projector: Projector
    ) -> None:
        tiny_llm.model.generation_config.eos_token_id = [2, 4]
        tiny_llm.model.save_pretrained(tmp_path)
        tiny_llm.tokenizer.save_pretrained(tmp_path)
        built = lsm_probe.build_lsm(tiny_encoder_folder, tmp_path, projector=tiny_projector())
        assert built.eos_token_ids == [2, 4]

    def test_text_without_speech_gives_the_logits_of_the_llm(
        self, tiny_lsm: Lsm, tiny_llm: Checkpoint, tiny_tokenizer: Any
    ) -> None:
        ids = tiny_tokenizer("The quick brown fox jumps over", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = tiny_lsm.model(input_ids=ids).logits
            assert torch.equal(logits, tiny_llm.model(input_ids=ids).logits)
        assert logits.shape[-1] == tiny_llm.model.config.vocab_size

    def test_the_placeholder_is_outside_the_vocabulary(self, model: LsmForConditionalGeneration) -> None:
        vocabulary = model.config.text_config.vocab_size
        assert model.config.audio_token_id == vocabulary
        assert model.get_input_embeddings().weight.shape[0] == vocabulary
        assert model.get_output_embeddings().weight.shape[0] == vocabulary

    def test_the_seed_changes_the_connector_only(
        self, tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_projector: Projector
    ) -> None:
        def build(seed: int) -> dict[str, torch.Tensor]:
            made = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=tiny_projector(), seed=seed)
            return made.model.state_dict()

        torch.manual_seed(7)
        first = build(3)
        torch.rand(5)
        again, other = build(3), build(4)
        drawn = [n for n, t in first.items() if not torch.equal(t, other[n])]
        assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
        assert drawn
        assert all(name.startswith("multi_modal_projector.") for name in drawn)
        matrices = [n for n, t in first.items() if n.startswith("multi_modal_projector.") and t.squeeze().dim() > 1]
        assert set(matrices) <= set(drawn)

    def test_building_does_not_change_the_random_state(
        self, tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_projector: Projector
    ) -> None:
        before = torch.get_rng_state()
        lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=tiny_projector())
        assert torch.equal(torch.get_rng_state(), before)


class TestInputs:
    @pytest.mark.parametrize("change", [-1, 1])
    def test_the_wrong_number_of_placeholders_is_refused(
        self, model: LsmForConditionalGeneration, batch: dict[str, torch.Tensor], change: int
    ) -> None:
        audio = model.config.audio_token_id
        positions = (batch["input_ids"] == audio).nonzero()
        row, column = positions[0]
        batch["input_ids"][row, column if change < 0 else column - 1] = 5 if change < 0 else audio
        found = len(positions) + change
        with pytest.raises(ValueError, match=f"{found} audio placeholders in input_ids, but {len(positions)} speech"):
            model(**batch)

    def test_placeholders_without_speech_are_refused(
        self, model: LsmForConditionalGeneration, batch: dict[str, torch.Tensor]
    ) -> None:
        with pytest.raises(ValueError, match="but 0 speech tokens"):
            model(input_ids=batch["input_ids"])

    def test_speech_without_its_mask_is_refused(
        self, model: LsmForConditionalGeneration, batch: dict[str, torch.Tensor]
    ) -> None:
        del batch["input_features_mask"]
        with pytest.raises(ValueError, match="input_features_mask"):
            model(**batch)

    def test_no_input_is_refused(self, model: LsmForConditionalGeneration) -> None:
        with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
            model()


class TestGenerating:
    def test_transformers_generate_and_ours_give_the_same_answers(
        self,
        tiny_lsm: Lsm,
        model: LsmForConditionalGeneration,
        batch: dict[str, torch.Tensor],
        waveform: Waveform,
    ) -> None:
        prompts = [
            tiny_lsm.encode(i, waveform(s, n)) for n, (i, s) in enumerate(zip(INSTRUCTIONS, SECONDS, strict=True))
        ]
        ours = tiny_lsm.generate(tiny_lsm.embed(prompts), max_new_tokens=12)
        assert len({tuple(answer) for answer in ours}) == 3
        settings: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}
        prompt_length = batch["input_ids"].shape[1]
        assert model.generate(**batch, **settings)[:, prompt_length:].tolist() == ours
        for row, prompt in enumerate(prompts):
            alone = dict(tiny_lsm.processor(INSTRUCTIONS[row], waveform(SECONDS[row], row)))
            assert model.generate(**alone, **settings)[0, len(prompt) :].tolist() == ours[row]
            assert tiny_lsm.generate(tiny_lsm.embed([prompt]), max_new_tokens=12) == [ours[row]]

    def test_the_cache_does_not_change_answers(
        self, model: LsmForConditionalGeneration, batch: dict[str, torch.Tensor]
    ) -> None:
        settings: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
        cached = model.generate(**batch, **settings)
        assert torch.equal(cached, model.generate(**batch, **settings, use_cache=False))

    def test_generation_stops_at_eos_and_includes_it(self, tiny_lsm: Lsm, waveform: Waveform) -> None:
        embedded = tiny_lsm.embed([tiny_lsm.encode(i, waveform(s)) for i, s in zip(INSTRUCTIONS, SECONDS, strict=True)])
        free = tiny_lsm.generate(embedded, max_new_tokens=12)
        stop = free[1][4]
        tiny_lsm.model.generation_config.eos_token_id = stop
        stopped = tiny_lsm.generate(embedded, max_new_tokens=12)
        assert stopped == [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in free]
        assert stopped[1][-1] == stop

    @torch.no_grad()
    def test_generation_is_greedy_regardless_of_the_checkpoints_settings(self, tiny_llm: Checkpoint) -> None:
        # Many checkpoints have a repetition penalty: a text LLM and an LSM with it would decode differently.
        tiny_llm.model.generation_config.update(repetition_penalty=5.0, no_repeat_ngram_size=1, min_length=500)
        prompt = tiny_llm.encode(INSTRUCTIONS[0], "the rain falls")
        ids = list(prompt.input_ids)
        for _ in range(20):
            ids.append(int(tiny_llm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        greedy = ids[len(prompt) :]
        assert len(set(greedy)) < 20  # a penalty would have changed it
        assert tiny_llm.generate(tiny_llm.embed([prompt]), max_new_tokens=20) == [greedy]
        assert tiny_llm.model.generation_config.repetition_penalty == 5.0

    def test_beam_search_keeps_the_pieces_of_long_speech_together(
        self, tiny_lsm: Lsm, model: LsmForConditionalGeneration, waveform: Waveform
    ) -> None:
        inputs = dict(tiny_lsm.processor(INSTRUCTIONS, [waveform(31), waveform(1, 1), waveform(33, 2)]))
        embedded = model.embed(inputs["input_ids"], inputs["input_features"], inputs["input_features_mask"])
        settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "num_beams": 3}
        right = model.language_model.generate(
            inputs_embeds=embedded, attention_mask=inputs["attention_mask"], **settings
        )
        assert torch.equal(model.generate(**inputs, **settings)[:, inputs["input_ids"].shape[1] :], right)

    def test_a_repetition_penalty_works_with_the_placeholder(
        self, model: LsmForConditionalGeneration, batch: dict[str, torch.Tensor]
    ) -> None:
        out = model.generate(**batch, max_new_tokens=4, do_sample=False, repetition_penalty=1.1)
        assert out.shape[1] > batch["input_ids"].shape[1]


class TestTraining:
    def test_loss_is_the_mean_over_labelled_positions(
        self, model: LsmForConditionalGeneration, batch: dict[str, torch.Tensor]
    ) -> None:
        labels = trainable_labels(batch)
        out = model(**batch, labels=labels)
        shifted = labels[:, 1:]
        expected = cross_entropy(out.logits[:, :-1][shifted != -100], shifted[shifted != -100])
        torch.testing.assert_close(out.loss, expected)
        own = model.language_model(
            inputs_embeds=model.embed(batch["input_ids"], batch["input_features"], batch["input_features_mask"]),
            attention_mask=batch["attention_mask"],
            position_ids=(batch["attention_mask"].cumsum(-1) - 1).clamp(min=0),
            labels=labels,
        )
        torch.testing.assert_close(out.loss, own.loss, rtol=0, atol=0)

    def test_num_items_in_batch_reaches_the_llms_loss(
        self, model: LsmForConditionalGeneration, batch: dict[str, torch.Tensor]
    ) -> None:
        labels = trainable_labels(batch)
        counted = int((labels[:, 1:] != -100).sum())
        mean = model(**batch, labels=labels).loss
        scaled = model(**batch, labels=labels, num_items_in_batch=torch.tensor(4 * counted)).loss
        torch.testing.assert_close(scaled, mean / 4)

    def test_accumulated_micro_batches_give_the_gradient_of_the_whole_batch(
        self, tiny_lsm: Lsm, model: LsmForConditionalGeneration, waveform: Waveform
    ) -> None:
        parts = [
            dict(tiny_lsm.processor(i, waveform(s, n)))
            for n, (i, s) in enumerate(zip(INSTRUCTIONS, SECONDS, strict=True))
        ]
        whole = dict(tiny_lsm.processor(INSTRUCTIONS, [waveform(s, n) for n, s in enumerate(SECONDS)]))
        labels = trainable_labels(whole)
        items = torch.tensor(int((labels[:, 1:] != -100).sum()))
        loss = model(**whole, labels=labels).loss
        accumulated = sum(
            model(**part, labels=labels[[row], -part["input_ids"].shape[1] :], num_items_in_batch=items).loss
            for row, part in enumerate(parts)
        )
        torch.testing.assert_close(accumulated, loss, rtol=1e-5, atol=1e-6)

    def test_gradient_reaches_the_connector_with_the_encoder_and_llm_frozen(
        self, model: LsmForConditionalGeneration, batch: dict[str, torch.Tensor]
    ) -> None:
        model.audio_tower.requires_grad_(False)
        model.language_model.requires_grad_(False)
        model(**batch, labels=trainable_labels(batch)).loss.backward()
        for name, parameter in model.named_parameters():
            if name.startswith("multi_modal_projector."):
                assert parameter.grad is not None, name
                # One query can only attend to itself, and a softmax does not depend on a key's bias.
                idle = re.search(r"\.attention\.attention\.(query|key)\.|key\.bias", name)
                assert idle or parameter.grad.abs().max() > 0, name
            else:
                assert parameter.grad is None, name

    def test_lora_on_the_llm_wraps_and_trains(
        self, model: LsmForConditionalGeneration, batch: dict[str, torch.Tensor], tmp_path: Path
    ) -> None:
        targets = r".*language_model.*\.(q_proj|v_proj)"
        config = peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["multi_modal_projector"])
        with torch.no_grad():
            before = model(**batch).logits
        wrapped = peft.get_peft_model(model, config)
        wrapped.eval()
        with torch.no_grad():
            torch.testing.assert_close(wrapped(**batch).logits, before)
        wrapped(**batch, labels=trainable_labels(batch)).loss.backward()
        trained = {n for n, p in wrapped.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        assert sum("lora_B" in name for name in trained) == 2 * 3
        assert any("multi_modal_projector" in name for name in trained)
        assert all("lora_" in name or "multi_modal_projector" in name for name in trained)
        assert not any("audio_tower" in name for name in trained)
        assert wrapped.generate(**batch, max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2
        wrapped.save_pretrained(tmp_path)
        assert (tmp_path / "adapter_model.safetensors").is_file()

    def test_gradient_checkpointing_does_not_change_gradients(
        self, model: LsmForConditionalGeneration, batch: dict[str, torch.Tensor]
    ) -> None:
        def gradients() -> dict[str, torch.Tensor]:
            model.zero_grad()
            torch.manual_seed(0)  # the same dropout
            model(**batch, labels=trainable_labels(batch), use_cache=False).loss.backward()
            return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

        model.train()
        plain = gradients()
        model.gradient_checkpointing_enable()
        checkpointed = gradients()
        assert plain.keys() == checkpointed.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_bfloat16_model_computes_in_bfloat16(
    tiny_lsm_folder: Path,
    tiny_encoder_folder: Path,
    tiny_llm_folder: Path,
    tiny_projector: Projector,
    waveform: Waveform,
) -> None:
    loaded = lsm_probe.load(tiny_lsm_folder, device="cpu", dtype="bfloat16")
    built = lsm_probe.build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=tiny_projector(), dtype=torch.bfloat16)
    for checkpoint in (loaded, built):
        assert {p.dtype for p in checkpoint.model.parameters()} == {torch.bfloat16}
        embedded = checkpoint.embed([checkpoint.encode("Repeat.", waveform(s)) for s in (1, 2)])
        assert embedded[0].dtype == torch.bfloat16
        assert all(torch.isfinite(e).all() for e in embedded)
        assert all(len(answer) == 5 for answer in checkpoint.generate(embedded, max_new_tokens=5))
    assert AutoConfig.from_pretrained(tiny_lsm_folder).dtype == torch.float32
    assert AutoModelForMultimodalLM.from_pretrained(tiny_lsm_folder).dtype == torch.float32
