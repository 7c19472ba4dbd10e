"""The bias measured while a tiny Qwen2-Audio is trained in a plain `transformers.Trainer`."""

import json
import random
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import Trainer, TrainerCallback, TrainingArguments, WhisperFeatureExtractor

import lsm_probe
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.training import BiasCallback
from lsm_probe.training.bias_callback import STOPPABLE
from lsm_probe.training.bias_history import BiasHistory
from lsm_probe.training.bias_probing import BiasProbing
from lsm_probe.training.probe_schedule import MEASURED_STEPS, StepTimer, steps_between

LLM = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "max_position_embeddings": 2048,
    "attention_dropout": 0.1,
}
ENCODER = {"num_mel_bins": 16, "max_source_positions": 1500, "d_model": 16, "encoder_layers": 2, "dropout": 0.1}
ENCODER |= {"encoder_attention_heads": 2, "encoder_ffn_dim": 32}


@pytest.fixture(scope="module")
def tasks(samples: list[Sample]) -> list[Sample]:
    """Two short utterances, two tasks."""
    names = {samples[0].instruction: "first", samples[1].instruction: "second"}
    return [sample.model_copy(update={"task": names[sample.instruction]}) for sample in samples[:2]]


@pytest.fixture(scope="module")
def processor(make_tokenizer) -> Any:
    tokenizer = deepcopy(make_tokenizer())
    marks = ["<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return transformers.Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=16), tokenizer)


@pytest.fixture(scope="module")
def untrained(processor) -> Any:
    transformers.set_seed(0)
    config = transformers.Qwen2AudioConfig(
        audio_config=ENCODER,
        text_config=LLM,
        audio_token_index=processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    return transformers.Qwen2AudioForConditionalGeneration(config)


@pytest.fixture
def qwen(untrained) -> Any:
    """A tiny random Qwen2-Audio with dropout."""
    return deepcopy(untrained)


class Sentences(torch.utils.data.Dataset):
    """Training text for the LLM; its weights change without any speech."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(5, 400, (12,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


class DrawRandomNumbers(TrainerCallback):
    """Changes the weights by random numbers, so that they show whether anything else used the random generator."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        drawn = torch.rand(()).item() + np.random.rand() + random.random()  # noqa: NPY002  # the global generator
        with torch.no_grad():
            next(p for p in model.parameters() if p.requires_grad).mul_(1 + drawn / 1000)


Train = Callable[..., Trainer]


@pytest.fixture(scope="module")
def train(processor, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """`train(model, *callbacks, out=folder, ...)` trains for six steps in a plain Trainer."""

    def trained(model: Any, *callbacks: TrainerCallback, out: Path | None = None, resume: Any = None, **more: Any):
        arguments = {"max_steps": 6, "logging_steps": 1, "report_to": [], "save_strategy": "no", "seed": 1}
        arguments |= {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "use_cpu": True, "disable_tqdm": True}
        trainer = Trainer(
            model,
            TrainingArguments(str(out or tmp_path_factory.mktemp("run")), **arguments | more),
            train_dataset=Sentences(),
            processing_class=processor,
            callbacks=list(callbacks),
        )
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return trained


@pytest.fixture(scope="module")
def probed(untrained, tasks, train: Train, tmp_path_factory) -> tuple[Trainer, BiasCallback, Path]:
    """A model measured at steps 0, 3 and 6, its callback, and its folder with TensorBoard's events in `events`; do
    not change them."""
    folder, callback = tmp_path_factory.mktemp("probed"), BiasCallback(tasks, every=3, sources=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_LOGGING_DIR", str(folder / "events"))
        saving = {"save_strategy": "steps", "save_steps": 4}
        trainer = train(deepcopy(untrained), callback, out=folder, report_to=["tensorboard"], **saving)
    return trainer, callback, folder


@pytest.mark.usefixtures("rendered")
def test_values_are_written_to_the_log_the_files_and_tensorboard(probed, tmp_path: Path) -> None:
    trainer, callback, folder = probed
    frame = callback.to_frame()
    assert frame["step"].tolist() == [0, 3, 6]
    assert frame[[f"eta_{i}" for i in range(1, 7)]].notna().all().all()
    assert frame["D_i"].nunique() == 3  # the trained model itself is measured
    logged = [entry for entry in trainer.state.log_history if "bias_D_i" in entry]
    assert [entry["step"] for entry in logged] == [0, 3, 6]
    assert {entry["bias_responses"] for entry in logged} == {"reference"}
    assert sum("loss" in entry for entry in trainer.state.log_history) == 6  # the measurement does not replace any
    events = EventAccumulator(str(folder / "events")).Reload()
    for name in ("eta", "eta_6", "D_i", "D_s"):
        written = events.Scalars(f"train/bias_{name}")
        assert [event.step for event in written] == [0, 3, 6]
        assert [event.value for event in written] == pytest.approx(frame[name].tolist(), rel=1e-5)
    BiasHistory.load(folder).save_pictures(tmp_path)
    for name in ("bias.png", "bias.svg", "bias.csv"):
        assert (folder / name).exists()
        assert (tmp_path / name).stat().st_size
    assert BiasHistory.load(folder).to_frame().equals(frame)
    lines = [ax.lines for ax in callback.plot().axes]
    assert [list(line.get_xdata()) for line in lines[0][:6]] == [[0, 3, 6]] * 6


def test_two_utterances_give_no_interval_and_valid_json(probed) -> None:
    _, callback, folder = probed
    assert len({sample.utterance for sample in callback.samples}) == 2
    for line in (folder / "bias.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # called for NaN and Infinity
    assert not {"D_i_low", "D_i_high", "D_s_low", "D_s_high"} & set(callback.to_frame())
    assert {"D_i", "D_s"} < set(callback.to_frame())
    assert not callback.plot().axes[1].collections


def test_nan_values_stored_by_earlier_versions_are_left_out(tmp_path) -> None:
    (tmp_path / "bias.jsonl").write_text('{"setup": {}}\n{"step": 0, "D_i": 0.1, "D_i_low": NaN}\n')
    history = BiasHistory.load(tmp_path)
    assert history.rows == {0: {"D_i": 0.1}}
    history.save(tmp_path)
    assert "NaN" not in (tmp_path / "bias.jsonl").read_text()


def test_a_band_is_drawn_only_with_an_interval() -> None:
    row = {"eta": 0.5, "D_i": 0.2, "D_s": 0.3, "D_i_low": 0.1, "D_i_high": 0.4}
    assert len(BiasHistory(rows={0: row, 1: row}).plot().axes[1].collections) == 1


def test_values_during_training_equal_a_measurement_of_the_trained_model(probed, processor, tasks) -> None:
    trainer, callback, _ = probed
    last = callback.to_frame().iloc[-1]
    with lsm_probe.unchanged(trainer.model):
        checkpoint = lsm_probe.from_model(trainer.model, processor)
        eta = lsm_probe.attention(checkpoint, tasks, response="reference").eta_groups()
        sensitivity = lsm_probe.sensitivity(checkpoint, tasks, response="reference", sources=2)
    assert [last[f"eta_{i}"] for i in range(1, 7)] == pytest.approx([group["eta"] for group in eta], abs=1e-5)
    assert last["D_i"] == pytest.approx(float(sensitivity.instruction().mean), abs=1e-5)
    assert last["D_s"] == pytest.approx(float(sensitivity.source().mean), abs=1e-5)


PLAIN: dict[str, Any] = {}
MIXED = {"bf16": True, "gradient_checkpointing": True, "dataloader_num_workers": 1}


@pytest.mark.parametrize(("adapters", "more"), [(False, MIXED), (True, PLAIN), (True, MIXED)])
def test_probing_does_not_change_the_trained_weights(untrained, tasks, train: Train, adapters: bool, more) -> None:
    def trained(*callbacks: TrainerCallback) -> Any:
        model = deepcopy(untrained)
        if adapters:
            transformers.set_seed(0)
            targets = ["q_proj", "o_proj", "down_proj"]
            model = get_peft_model(model, LoraConfig(target_modules=targets, lora_dropout=0.2, r=4))
            model.enable_input_require_grads()
        train(model, *callbacks, DrawRandomNumbers(), max_steps=4, **more)
        return model

    callback = BiasCallback(tasks, every=2, response="generated", max_new_tokens=2)
    probed, plain = trained(callback), trained()
    assert sorted(callback.history.rows) == [0, 2, 4]
    for (name, tensor), other in zip(probed.state_dict().items(), plain.state_dict().values(), strict=True):
        assert tensor.equal(other), name
    assert [module.training for module in probed.modules()] == [module.training for module in plain.modules()]
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in probed.parameters())
    assert probed.config.to_dict() == plain.config.to_dict()


def test_responses_of_a_base_llm_are_generated_once_and_stored(
    qwen, tasks, train: Train, tiny_llm_folder, tmp_path
) -> None:
    callback = BiasCallback(tasks, every=6, base=tiny_llm_folder, max_new_tokens=3)
    trainer = train(qwen, callback, out=tmp_path)
    base = lsm_probe.load(tiny_llm_folder)
    expected = lsm_probe.attention(base, tasks, max_new_tokens=3).responses()
    assert BiasHistory.load(tmp_path).responses == expected
    logged = next(entry for entry in trainer.state.log_history if "bias_eta" in entry)
    assert logged["bias_responses"] == f"base of {tiny_llm_folder}"


def test_a_resumed_run_keeps_earlier_values(probed, qwen, tasks, train: Train, tmp_path: Path) -> None:
    _, earlier, folder = probed
    (tmp_path / "bias.jsonl").write_bytes((folder / "bias.jsonl").read_bytes())
    callback = BiasCallback(tasks, every=3, sources=2)
    train(qwen, callback, out=tmp_path, resume=str(folder / "checkpoint-4"))
    assert callback.to_frame()["step"].tolist() == [0, 3, 6]
    assert callback.to_frame()[:2].equals(earlier.to_frame()[:2])
    assert callback.to_frame()["seconds"][2] != earlier.to_frame()["seconds"][2]  # measured again


def test_training_stops_when_a_value_falls_below_its_bound(probed, qwen, tasks, train: Train) -> None:
    first, second, _ = probed[1].to_frame().to_dict("records")
    fallen = next(name for name in STOPPABLE if second[name] < first[name])
    bound = (first[fallen] + second[fallen]) / 2
    callback = BiasCallback(tasks, every=3, sources=2, stop_below={"D_s": 99, fallen: bound})  # D_s was never at 99
    with pytest.warns(UserWarning, match=f"training was stopped at step 3: {fallen} fell to .*, below"):
        trainer = train(qwen, callback)
    assert trainer.state.global_step == 3
    assert callback.stopped


def test_a_bound_for_missing_layers_is_refused(processor, tasks, train: Train) -> None:
    config = transformers.Qwen2AudioConfig(
        audio_config=ENCODER,
        text_config={**LLM, "num_hidden_layers": 2},
        audio_token_index=processor.tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = transformers.Qwen2AudioForConditionalGeneration(config)
    message = "stop_below has 'eta_6', which this model does not have; choose from: eta, eta_1, eta_2, D_i, D_s"
    with pytest.raises(InputError, match=message):
        train(model, BiasCallback(tasks, every=3, stop_below={"D_i": 0.1, "eta_6": 0.1}))


@pytest.mark.parametrize(
    "error",
    [
        InputError("the disk with the speech is gone"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_later_failure_of_the_probe_does_not_end_training(qwen, tasks, train: Train, monkeypatch, error) -> None:
    measure = BiasProbing.measure

    def fail_at_second(self, checkpoint, responses):
        monkeypatch.setattr(BiasProbing, "measure", failing)
        return measure(self, checkpoint, responses)

    def failing(*_: object) -> None:
        raise error

    monkeypatch.setattr(BiasProbing, "measure", fail_at_second)
    with pytest.warns(UserWarning, match=re.escape(f"step 1 was not probed: {error}")):
        assert train(qwen, BiasCallback(tasks, every=1), max_steps=1).state.global_step == 1


def test_a_run_too_short_for_a_second_measurement_gives_a_warning(qwen, tasks, train: Train) -> None:
    callback = BiasCallback(tasks)
    with pytest.warns(UserWarning, match=r"5 % of the time of 5 steps is too short for a second probing"):
        train(qwen, callback, max_steps=5)
    assert callback.to_frame()["step"].tolist() == [0]


def test_slow_first_steps_do_not_lengthen_the_time_per_step() -> None:
    assert StepTimer([9.0, 3.9, 7.4, 3.2]).step_seconds is None
    assert StepTimer([9.0, 3.9, 7.4, 3.2, 3.1]).step_seconds == 3.2


def test_slower_steps_allow_more_measurements(qwen, tasks, train: Train, monkeypatch) -> None:
    def seconds(timer: StepTimer) -> float | None:  # 5 % of ten steps is the time of a little over three measurements
        return 7 * callback.to_frame()["seconds"][0] if len(timer.seconds) >= MEASURED_STEPS else None

    monkeypatch.setattr(StepTimer, "step_seconds", property(seconds))
    callback = BiasCallback(tasks)
    train(qwen, callback, max_steps=10)
    assert callback.to_frame()["step"].tolist() == [0, 5, 10]


@pytest.mark.parametrize("seed", range(20))
def test_the_chosen_steps_stay_just_below_the_time_share(seed: int) -> None:
    draw = random.Random(seed)
    given = {
        "share": draw.choice([0.01, 0.05, 0.2]),
        "total_steps": draw.randint(1, 3000),
        "step_seconds": 10 ** draw.uniform(-2, 1),
        "probe_seconds": 10 ** draw.uniform(-1, 2),
        "setup_seconds": 10 ** draw.uniform(-1, 1),
    }

    def cost(every: int) -> float:
        steps = {0, given["total_steps"], *range(0, given["total_steps"], every)}
        return given["setup_seconds"] + len(steps) * given["probe_seconds"]

    budget = given["share"] * given["total_steps"] * given["step_seconds"]
    affordable = [every for every in range(1, given["total_steps"] + 1) if cost(every) <= budget]
    assert steps_between(**given) == (min(affordable) if affordable else 0)


def test_invalid_options_are_refused_in_one_line(tasks, qwen, train: Train) -> None:
    with pytest.raises(InputError, match="every is 0"):
        BiasCallback(tasks, every=0)
    with pytest.raises(InputError, match="stop_below has 'D_x'; choose from: eta"):
        BiasCallback(tasks, stop_below={"D_x": 1})
    with pytest.raises(InputError, match="needs a target in every sample"):
        BiasCallback([tasks[0].model_copy(update={"target": None})], response="reference")
    with pytest.raises(InputError, match="no samples to probe"):
        BiasCallback([])
    with pytest.raises(InputError, match="sensitivity needs at least two"):
        train(qwen, BiasCallback(tasks[:1]))
    with pytest.raises(InputError, match="is for a Trainer"):
        BiasCallback(tasks).on_train_begin(None, None, None)
