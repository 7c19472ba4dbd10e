"""Each preset compared with its source: a table written by hand, and the model on the meta device."""

import socket
from math import ceil

import pytest
import torch
from transformers import WhisperModel

from lsm_probe import assets
from lsm_probe.errors import InputError
from lsm_probe.training.config import presets, read_config
from lsm_probe.training.estimate import Estimate, estimate
from lsm_probe.training.shapes import model_config

# Stages: strategy, epochs, batch, learning rate, weight decay, warm-up, schedule.
PAPER = ("full", 2, 512, 2e-5, 0.05, 100, "linear")
VICUNA, LLAMA_2, LLAMA_3 = "lmsys/vicuna-7b-v1.5", "meta-llama/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B-Instruct"
# Encoder, LLM, template, connector; stages; devices, samples in a pass, passes in a step; samples.
FACTS = {
    "self_powered": (("small", VICUNA, "vicuna", "window_qformer"), [PAPER], (8, 4, [16]), 1_662_023),
    "vanilla_asr": (("small", VICUNA, "vicuna", "window_qformer"), [PAPER], (8, 4, [16]), 281_241),
    "vanilla_st": (("small", VICUNA, "vicuna", "window_qformer"), [PAPER], (8, 4, [16]), 289_430),
    "blsp_data": (("small", VICUNA, "vicuna", "window_qformer"), [PAPER], (8, 4, [16]), None),
    "blsp": (
        ("small", LLAMA_2, "vicuna", "conv"),
        [("frozen_llm", 1, 768, 5e-5, 0.05, 1000, "linear")],
        (8, 8, [12]),
        None,
    ),
    "llasm": (
        ("large-v2", "LinkSoul/Chinese-Llama-2-7b", "vicuna", "linear"),
        [("frozen_llm", 1, 256, 1e-3, 0, 0.03, "cosine"), ("full", 1, 128, 2e-5, 0, 0.03, "cosine")],
        (8, 8, [4, 2]),
        None,
    ),
    "llama_omni": (
        ("large-v3", "meta-llama/Llama-3.1-8B-Instruct", "llama3", "frame_stack"),
        [("full", 3, 32, 2e-5, 0, 0.03, "cosine")],
        (4, 4, [2]),
        200_000,
    ),
    "paper/vicuna_small": (("small", VICUNA, "vicuna", "window_qformer"), [PAPER], (8, 4, [16]), 1_662_023),
    "paper/vicuna_medium": (("medium", VICUNA, "vicuna", "window_qformer"), [PAPER], (8, 4, [16]), 1_662_023),
    "paper/vicuna_large": (("large-v2", VICUNA, "vicuna", "window_qformer"), [PAPER], (8, 4, [16]), 1_662_023),
    "paper/llama3_small": (("small", LLAMA_3, "llama3", "window_qformer"), [PAPER], (8, 4, [16]), None),
    "paper/llama3_medium": (("medium", LLAMA_3, "llama3", "window_qformer"), [PAPER], (8, 4, [16]), None),
    "paper/llama3_large": (("large-v2", LLAMA_3, "llama3", "window_qformer"), [PAPER], (8, 4, [16]), None),
}

# Encoder + connector + LLM in billions.
BILLIONS = {
    "paper/vicuna_small": 6.8,
    "paper/vicuna_medium": 7.1,
    "paper/vicuna_large": 7.4,
    "paper/llama3_small": 8.1,
    "paper/llama3_medium": 8.4,
    "paper/llama3_large": 8.7,
    "llama_omni": 8.7,
    "blsp": 6.9,
    "llasm": 8.3,  # with Whisper's decoder
}

# Speech tokens of 30 s: 1,500 states by 17, by 8 (three halvings), by 5; and LLaSM's 64.
SPEECH_TOKENS = {"self_powered": 89, "blsp": 188, "llama_omni": 300, "llasm": 64}

# As published: parameters of the causal LM, and of the whole of Whisper.
LLMS = {
    VICUNA: 6_738_415_616,
    LLAMA_2: 6_738_415_616,
    LLAMA_3: 8_030_261_248,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "builtin:llm": 134_515_008,
}
WHISPERS = {
    "openai/whisper-tiny": 37_760_640,
    "openai/whisper-tiny.en": 37_760_256,
    "openai/whisper-small": 241_734_912,
    "openai/whisper-medium": 763_857_920,
    "openai/whisper-large-v2": 1_543_304_960,
    "openai/whisper-large-v3": 1_543_490_560,
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any access to the model hub fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def estimates() -> dict[str, Estimate]:
    return {name: estimate(read_config(name), [name]) for name in presets()}


def parts(found: Estimate, stage: int = 0) -> dict[str, tuple[int, int]]:
    return {part.name: (part.parameters, part.trainable) for part in found.stages[stage].parts}


def test_every_preset_has_a_row_in_the_table_of_facts() -> None:
    assert set(FACTS) == {name for name in presets() if not name.startswith("mini/")}


@pytest.mark.parametrize("name", FACTS)
def test_a_preset_has_the_settings_of_its_source(name: str, estimates: dict[str, Estimate]) -> None:
    model, stages, (devices, in_a_pass, passes), samples = FACTS[name]
    config = read_config(name)
    connector = config.model.connector
    # Presets leave sizes at the connector's defaults: written sizes would remain if a user changes the connector.
    assert list(connector) == ["connector"]
    assert (
        config.model.encoder.removeprefix("openai/whisper-"),
        config.model.llm,
        config.model.template,
        connector["connector"],
    ) == model
    assert [
        (s.strategy, s.epochs, s.batch_size, s.learning_rate, s.weight_decay, s.warmup, s.schedule)
        for s in config.resolved_stages()
    ] == stages
    assert config.precision == "auto"
    assert (config.machine.devices, config.machine.per_device_batch_size) == (devices, in_a_pass)
    assert [stage.accumulation for stage in estimates[name].stages] == passes
    assert [stage.samples for stage in estimates[name].stages] == [samples] * len(stages)


def test_only_llasm_uses_whispers_decoder(estimates: dict[str, Estimate]) -> None:
    states = {name: read_config(name).model.decoder_states for name in FACTS}
    assert {name for name, count in states.items() if count is not None} == {"llasm"}
    assert states["llasm"] == 64
    adapt, instruct = read_config("llasm").resolved_stages()
    assert (adapt.name, adapt.tasks, instruct.name, instruct.tasks) == (
        "adapt",
        ["transcription"],
        "instruct",
        ["question-answering"],
    )


def test_every_preset_is_built_on_the_meta_device(estimates: dict[str, Estimate]) -> None:
    for name, found in estimates.items():
        for stage in found.stages:
            assert stage.trainable <= stage.parameters, name
            assert all(size > 0 for size in stage.memory.values()), name


@pytest.mark.parametrize(("name", "billions"), BILLIONS.items())
def test_a_model_has_the_size_stated_in_its_paper(name: str, billions: float, estimates: dict[str, Estimate]) -> None:
    assert round(estimates[name].stages[0].parameters / 1e9, 1) == billions


@pytest.mark.parametrize(("size", "billions"), [("small", 6.9), ("medium", 7.1), ("large", 7.4)])
def test_sizes_with_the_unused_q_former_weights_equal_table_2(
    size: str, billions: float, estimates: dict[str, Estimate]
) -> None:
    # The released Q-Former keeps BERT's word embeddings, positions and, in both blocks, the MLP for text.
    unused = (30522 + 512) * 768 + 2 * (2 * 768 * 3072 + 3072 + 768 + 2 * 768)
    assert unused > 33_000_000
    assert round((estimates[f"paper/vicuna_{size}"].stages[0].parameters + unused) / 1e9, 1) == billions


def test_strategy_align_needs_no_memory_for_activations_of_the_llm(estimates: dict[str, Estimate]) -> None:
    align, transcribe = estimates["mini/open"].stages
    assert (align.strategy, transcribe.strategy) == ("align", "lora")
    assert "activations" not in align.memory
    # 8 samples of 188 speech tokens, each compared with 4,000 tokens: three float32.
    assert align.memory["logits"] == 12 * 8 * 188 * 4000


def test_connectors_have_the_sizes_of_their_papers(estimates: dict[str, Estimate]) -> None:
    sizes = {name: parts(found)["connector"][0] for name, found in estimates.items() if name in FACTS}
    linear = 768 * 4096 + 4096
    # Two blocks of self-attention, cross-attention and MLP, 768 wide, with norms; norm before, linear after, one query.
    attention = 4 * (768 * 768 + 768) + 2 * 768
    block = 2 * attention + 2 * 768 * 3072 + 3072 + 768 + 2 * 768
    assert sizes["self_powered"] == 2 * block + 2 * 768 + 2 * 768 + 768 + linear
    assert sizes["blsp"] == sum(2 * made * (5 * read + 1) for read, made in [(768, 768), (768, 768), (768, 4096)]) + (
        2 * 512 * 4096 + 2 * 4096
    )
    assert sizes["llama_omni"] == 6400 * 2048 + 2048 + 2048 * 4096 + 4096
    assert sizes["llasm"] == 1280 * 4096 + 4096


@pytest.mark.parametrize(("name", "tokens"), SPEECH_TOKENS.items())
def test_memory_is_estimated_for_30_s_of_speech(name: str, tokens: int, estimates: dict[str, Estimate]) -> None:
    assert f" {tokens} speech (30 s)" in estimates[name].assumptions


def test_each_strategy_trains_the_parts_it_names(estimates: dict[str, Estimate]) -> None:
    for name in ("self_powered", "llama_omni"):
        found = parts(estimates[name])
        assert found["encoder"][1] == 0
        assert all(trained == size for part, (size, trained) in found.items() if part != "encoder")
    for name in ("blsp", "llasm"):
        found = parts(estimates[name])
        assert {part for part, (_, trained) in found.items() if trained} == {"connector"}
        assert found["connector"][0] == found["connector"][1]
    assert parts(estimates["llasm"], 1)["LLM layers"][1] == parts(estimates["llasm"])["LLM layers"][0]


def test_the_run_of_the_paper_has_6494_steps(estimates: dict[str, Estimate]) -> None:
    (stage,) = estimates["self_powered"].stages
    assert stage.steps == ceil(2 * ceil(1_662_023 / 512)) == 6494
    assert stage.warmup_steps == 100


def test_the_run_of_the_paper_is_launched_on_eight_devices(estimates: dict[str, Estimate]) -> None:
    launch = "torchrun --nproc-per-node 8 -m lsm_probe train self_powered --out DIR"
    assert estimates["self_powered"].launch == launch


@pytest.mark.parametrize(("name", "parameters"), LLMS.items())
def test_llm_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    found = parts(estimate(read_config("self_powered", [f"model.llm={name}"])))
    assert found["LLM embeddings"][0] + found["LLM layers"][0] == parameters


@pytest.mark.parametrize(("name", "parameters"), WHISPERS.items())
def test_whisper_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    with torch.device("meta"):
        whisper = WhisperModel(model_config(name))
    assert sum(parameter.numel() for parameter in whisper.parameters()) == parameters


def test_model_config_returns_a_new_object_each_time() -> None:
    model_config("builtin:llm").vocab_size = 1
    assert model_config("builtin:llm").vocab_size == 49152


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "folder"), [("builtin:llm", assets.language_model), ("builtin:encoder", assets.speech_encoder)]
)
def test_embedded_models_have_the_stated_shapes(name, folder) -> None:
    real, known = model_config(str(folder())), model_config(name)
    ours = {"transformers_version", "architectures", "dtype", "_name_or_path"}
    sizes = [
        key
        for key in known.to_dict().keys() - ours
        if any(word in key for word in ("size", "layers", "heads", "dim", "d_model", "tie", "num_mel"))
    ]
    assert len(sizes) > 6
    assert {key: getattr(real, key) for key in sizes} == {key: getattr(known, key) for key in sizes}


def test_the_embedded_untrained_model_consists_of_the_embedded_parts() -> None:
    whole, from_parts = (
        read_config("mini/commands", [f"model={model}"]) for model in ("{start: builtin:untrained}", "{}")
    )
    assert parts(estimate(whole))["LLM layers"] == parts(estimate(from_parts))["LLM layers"]


def test_an_unknown_model_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError) as caught:
        model_config("nobody/no-such-model")
    assert str(caught.value).startswith("nobody/no-such-model: its configuration cannot be read")
