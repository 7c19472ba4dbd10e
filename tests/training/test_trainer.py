"""Training a tiny model: logged values, changed and unchanged weights, and learning."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

import lsm_probe
from lsm_probe.data.audio import read_audio_file
from lsm_probe.data.manifest import read_manifest
from lsm_probe.data.sample import Sample
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.training.config import TrainConfig
from lsm_probe.training.dataset import TrainingSet, collate
from lsm_probe.training.held_out_loss import sample_losses
from lsm_probe.training.run import train
from lsm_probe.training.samples import with_instructions_shuffled, with_speech_shuffled
from lsm_probe.training.start import start_model

Configure = Callable[..., TrainConfig]
Train = Callable[..., Path]
STRATEGIES = ["full", "frozen_llm", "lora"]


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LSM_PROBE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def configure(training_config: Configure) -> Configure:
    """`configure("key=value", ...)`: a run without dropout that encodes speech once and saves no checkpoints."""
    quick = ("model.connector.dropout=0", "machine.save_steps=1000", "cache_features=true")
    return lambda *overrides: training_config(*quick, *overrides)


@pytest.fixture
def start(configure: Configure) -> Checkpoint:
    """The start model of these runs."""
    return start_model(configure().model, None, 0)


@pytest.fixture
def trained(configure: Configure, tmp_path: Path) -> Train:
    """`trained("key=value", ...)`: the folder of such a run."""
    numbers = iter(range(100))

    def run(*overrides: str) -> Path:
        out = tmp_path / f"run-{next(numbers)}"
        train(configure(*overrides), out)
        return out

    return run


def history(out: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = json.loads((out / "history.json").read_text())
    return entries


def logged(out: Path, key: str) -> list[float]:
    return [entry[key] for entry in history(out) if key in entry]


def evaluation(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((out / "report.json").read_text())["evaluation"]
    return found


def weights(model: Path) -> dict[str, Tensor]:
    return load_file(model / "model.safetensors")


def losses_of(checkpoint: Checkpoint, samples: list[Sample]) -> np.ndarray:
    """Negative log-likelihood and tokens of each sample, each by itself."""
    train_set = TrainingSet(samples, checkpoint)
    rows = []
    for i in range(len(train_set)):
        batch = collate([train_set[i]], pad_id=0)
        with torch.no_grad():
            logits = checkpoint.model(**{k: v for k, v in batch.items() if k != "index"}).logits
        rows.append(sample_losses(logits, batch["shift_labels"])[0].tolist())
    return np.array(rows)


def per_token(losses: np.ndarray) -> float:
    return float(losses[:, 0].sum() / losses[:, 1].sum())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_does_not_depend_on_its_division_into_passes(strategy: str, trained: Train) -> None:
    """Every pass needs the number of tokens of the whole step, because responses differ in length."""
    given = (f"strategy={strategy}", "batch_size=16", "max_steps=3")  # steps of 16, 4 and 16 samples
    one, four = (trained(*given, f"machine.per_device_batch_size={size}") for size in (16, 4))
    for key in ("loss", "grad_norm"):
        assert len(logged(one, key)) == 3
        assert logged(four, key) == pytest.approx(logged(one, key), rel=2e-5)


def test_the_first_loss_equals_the_loss_per_token_of_the_start_model(
    trained: Train, start: Checkpoint, training_folder: Path
) -> None:
    expected = per_token(losses_of(start, read_manifest(training_folder / "train.jsonl")))
    out = trained("batch_size=20", "max_steps=1", "machine.per_device_batch_size=4")
    assert logged(out, "loss") == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradient_checkpointing_does_not_change_losses_and_gradients(strategy: str, trained: Train) -> None:
    given = (f"strategy={strategy}", "max_steps=2")
    kept, again = (trained(*given, f"machine.gradient_checkpointing={on}") for on in ("false", "true"))
    for key in ("loss", "grad_norm"):
        assert logged(again, key) == pytest.approx(logged(kept, key), rel=1e-6)


def test_cached_features_do_not_change_losses_and_gradients(trained: Train) -> None:
    plain, cached = (trained("max_steps=3", f"cache_features={on}") for on in ("false", "true"))
    for key in ("loss", "grad_norm"):
        assert logged(cached, key) == pytest.approx(logged(plain, key), rel=2e-5)


def test_bf16_gives_similar_losses_and_keeps_float32_weights(trained: Train) -> None:
    exact, rounded = (trained("max_steps=3", f"precision={precision}") for precision in ("float32", "bf16"))
    assert logged(rounded, "loss") == pytest.approx(logged(exact, "loss"), rel=0.02)
    assert logged(rounded, "loss") != logged(exact, "loss")
    assert {tensor.dtype for tensor in weights(rounded / "model").values()} == {torch.float32}


def test_the_connector_has_its_own_learning_rate(trained: Train, start: Checkpoint) -> None:
    after = weights(trained("max_steps=2", "connector_learning_rate=1e-30", "weight_decay=0") / "model")
    before = start.model.state_dict()
    for name, tensor in after.items():
        moved = bool((tensor - before[name]).abs().max() > 1e-20)
        assert moved == name.startswith("language_model."), name


@pytest.fixture
def views(training_folder: Path) -> dict[str, list[Sample]]:
    """The held-out samples of each evaluation: unchanged, and with other speech or instructions."""
    held_out = read_manifest(training_folder / "eval.jsonl")
    speech, instruction = with_speech_shuffled(held_out, 0), with_instructions_shuffled(held_out, 0)
    assert speech is not None
    assert instruction is not None
    return {"true": held_out, "speech": speech, "instruction": instruction}


def test_the_held_out_losses_equal_those_of_single_samples(
    views: dict[str, list[Sample]], training_folder: Path, trained: Train
) -> None:
    out = trained(f"eval={training_folder / 'eval.jsonl'}", "max_steps=2", "eval_steps=1")
    entries = [entry for entry in history(out) if "eval_loss" in entry]
    assert [entry["step"] for entry in entries] == [0, 1, 2]
    model = lsm_probe.load(out / "model", device="cpu", dtype="float32")
    losses = {name: losses_of(model, samples) for name, samples in views.items()}
    last = evaluation(out)
    assert last["eval_loss"] == pytest.approx(per_token(losses["true"]), rel=1e-5)
    for name in ("speech", "instruction"):
        assert last[f"eval_loss_{name}_shuffled"] == pytest.approx(per_token(losses[name]), rel=1e-5)
        gain = per_token(losses[name]) - per_token(losses["true"])
        assert last[f"eval_{name}_gain"] == pytest.approx(gain, abs=1e-5)
    for task in ("translate", "repeat"):
        rows = losses["true"][[sample.task == task for sample in views["true"]]]
        assert last[f"eval_loss_task_{task}"] == pytest.approx(per_token(rows), rel=1e-5)
    assert {key: entries[-1][key] for key in last} == last


def test_evaluation_does_not_change_training(training_folder: Path, trained: Train) -> None:
    given = ("max_steps=3", "model.connector.dropout=0.5")
    plain, watched = trained(*given), trained(*given, f"eval={training_folder / 'eval.jsonl'}", "eval_steps=1")
    assert logged(watched, "loss") == logged(plain, "loss")
    one, other = weights(plain / "model"), weights(watched / "model")
    assert all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def ignore_all_input(llm: Any) -> None:
    """No position depends on any other."""
    for layer in llm.model.layers:
        layer.self_attn.o_proj.weight.zero_()


@torch.no_grad()
def ignore_words(llm: Any) -> None:
    """All words have the same embedding; speech does not."""
    llm.config.tie_word_embeddings = False
    llm.lm_head.weight = torch.nn.Parameter(llm.lm_head.weight.clone())
    llm.model.embed_tokens.weight[:] = llm.model.embed_tokens.weight[5]


@pytest.mark.parametrize("disable", [ignore_all_input, ignore_words])
def test_a_model_that_ignores_an_input_has_no_gain_from_it(
    disable: Callable[[Any], None], start: Checkpoint, training_folder: Path, trained: Train, tmp_path: Path
) -> None:
    words = {"translate": "Say the speech again.", "repeat": "Say again the speech."}  # as many tokens
    assert len({len(start.encode(text, np.ones(1_000, np.float32))) for text in words.values()}) == 1
    rows = [json.loads(line) for line in (training_folder / "train.jsonl").read_text().splitlines()[:8]]
    for row in rows:
        row |= {"instruction": words[row["task"]], "audio": str(training_folder / row["audio"])}
    (path := tmp_path / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    disable(start.llm)
    start.save(tmp_path / "disabled")
    out = trained(f"model={{start: {tmp_path / 'disabled'}}}", f"eval={path}", "max_steps=1", "learning_rate=1e-30")
    found = evaluation(out)
    assert all(abs(found[f"eval_instruction_gain{end}"]) < 1e-6 for end in ("", "_low", "_high"))
    assert (abs(found["eval_speech_gain"]) < 1e-6) == (disable is ignore_all_input)


def connector_moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    """Whether every matrix of the connector changed. (Biases that add the same to all scores of a softmax never do.)"""
    names = [name for name in after if name.startswith("multi_modal_projector.") and after[name].dim() > 1]
    return len(names) > 5 and all(not torch.equal(before[name], after[name]) for name in names)


def test_frozen_weights_are_unchanged_bit_for_bit(trained: Train, start: Checkpoint) -> None:
    before, after = start.model.state_dict(), weights(trained("strategy=frozen_llm", "max_steps=3") / "model")
    for name, tensor in after.items():
        if not name.startswith("multi_modal_projector."):
            assert torch.equal(tensor, before[name]), name
    assert connector_moved(before, after)


def test_the_model_of_a_lora_run_is_the_base_plus_its_adapters(trained: Train, start: Checkpoint) -> None:
    given = ("strategy=lora", "lora={rank: 3, dropout: 0.1}", "learning_rate=1e-2", "max_steps=4")
    out = trained(*given, "machine.save_steps=4")
    saved = load_file(out / "checkpoint-4" / "adapter_model.safetensors")
    adapter = {name.removeprefix("base_model.model."): tensor for name, tensor in saved.items()}
    before, merged = start.model.state_dict(), weights(out / "model")
    changed = 0
    for name, tensor in merged.items():
        a, b = (adapter.get(f"{name.removesuffix('.weight')}.lora_{side}.weight") for side in "AB")
        if name.startswith("multi_modal_projector."):
            assert torch.equal(tensor, adapter[name]), name
        elif a is None or b is None:
            assert torch.equal(tensor, before[name]), name
        else:
            assert (tensor - (before[name] + 2 * b @ a)).abs().max() <= 1e-6, name
            changed += not torch.equal(tensor, before[name])
    assert changed == 21  # seven linear layers in each of three
    lsm_probe.load(out / "model", device="cpu")  # as any other: no adapters, no peft


@pytest.mark.parametrize(
    "strategy",
    [
        "full",
        "frozen_llm",
        "lora",
    ],
)
def test_the_report_counts_each_parameter_once(
    strategy: str, configure: Configure, start: Checkpoint, training_folder: Path, tmp_path: Path
) -> None:
    model: Any = start.model
    everything = sum(p.numel() for p in model.parameters())
    connector, llm = (sum(p.numel() for p in part.parameters()) for part in (model.multi_modal_projector, start.llm))
    adapters = 3 * 3 * (48 * 4 + 16 * 2 + 48 * 2 + (48 + 96) * 3)  # rank x layers x (inputs + outputs of each linear)
    settings = [f"strategy={strategy}", "lora.rank=3", "max_steps=2", "limit=6", "batch_size=6"]
    report = train(configure(*settings, "machine.per_device_batch_size=6"), tmp_path / "out")
    [stage] = report["stages"]
    expected = {
        "full": {"all": everything, "trained": connector + llm},
        "frozen_llm": {"all": everything, "trained": connector},
        "lora": {"all": everything + adapters, "trained": connector + adapters},
    }
    assert stage["parameters"] == expected[strategy]
    assert (stage["steps"], stage["samples"], stage["gradient_accumulation"]) == (2, 6, 1)
    tokens = TrainingSet(read_manifest(training_folder / "train.jsonl")[:6], start).lengths.sum()
    assert stage["tokens"] == 2 * tokens


def test_the_second_stage_starts_from_the_model_of_the_first(
    trained: Train, start: Checkpoint, training_folder: Path
) -> None:
    stages = "stages=[{name: connect, strategy: frozen_llm, max_steps: 3}, {name: all, max_steps: 2}]"
    out = trained(stages, f"eval={training_folder / 'eval.jsonl'}", "learning_rate=1e-2")
    first, second = out / "1-connect", out / "2-all"
    assert not (first / "model").is_symlink()
    assert logged(second, "eval_loss")[0] == pytest.approx(logged(first, "eval_loss")[-1], rel=1e-6)
    assert logged(first, "eval_loss")[0] != pytest.approx(logged(first, "eval_loss")[-1], rel=1e-3)
    begun, between, ended = start.model.state_dict(), weights(first / "model"), weights(out / "model")
    assert connector_moved(begun, between)
    assert connector_moved(between, ended)
    for name in between:
        if not name.startswith("multi_modal_projector."):
            assert torch.equal(between[name], begun[name]), name
            assert torch.equal(ended[name], between[name]) == name.startswith("audio_tower."), name


@pytest.fixture
def four_answers(tmp_path: Path, waveform: Callable[..., np.ndarray]) -> Path:
    """Two audio files and two instructions; each pair has its own answer."""
    answers = {
        ("low", "Translate the speech."): "green",
        ("low", "Say it again."): "the rain falls",
        ("high", "Translate the speech."): "forest town",
        ("high", "Say it again."): "dog",
    }
    for name, frequency in (("low", 200), ("high", 1500)):
        tone = 0.3 * np.sin(2 * np.pi * frequency * np.arange(8_000) / 16_000)
        soundfile.write(tmp_path / f"{name}.wav", tone + 0.01 * waveform(0.5), 16_000)
    rows = [
        {"id": f"{name} {target}", "audio": f"{name}.wav", "instruction": instruction, "target": target}
        for (name, instruction), target in answers.items()
    ]
    (path := tmp_path / "four.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def start_with_eos(start: Checkpoint, tmp_path: Path) -> Path:
    """The start model with an embedding for EOS, which transformers sets to 0 if EOS is also the padding token.

    The output head is the same matrix: if it is frozen, EOS cannot be learned.
    """
    embeddings: Any = start.llm.get_input_embeddings()
    with torch.no_grad():
        drawn = torch.randn(48, generator=torch.Generator().manual_seed(0))
        embeddings.weight[start.eos_token_ids[0]] = 0.2 * drawn
    start.save(tmp_path / "start")
    return tmp_path / "start"


@pytest.mark.parametrize(("strategy", "rate", "reached"), [("full", 3e-3, 0.05), ("lora", 1e-2, 0.3)])
def test_training_learns_answers_that_need_both_speech_and_instruction(
    strategy: str, rate: float, reached: float, four_answers: Path, start_with_eos: Path, trained: Train
) -> None:
    out = trained(
        f"model={{start: {start_with_eos}}}",
        f"train={four_answers}",
        f"eval={four_answers}",
        f"strategy={strategy}",
        f"learning_rate={rate}",
        "connector_learning_rate=3e-3",
        "weight_decay=0",
        "warmup=5",
        "max_steps=80",
        "eval_steps=80",
    )
    found = evaluation(out)
    assert logged(out, "eval_loss")[0] > 5
    assert found["eval_loss"] < reached  # without training of head and last norm, probabilities stay lower
    assert found["eval_speech_gain"] > 1
    assert found["eval_instruction_gain"] > 1
    checkpoint = lsm_probe.load(out / "model", device="cpu", dtype="float32")
    assert checkpoint.identity.checksums == "verified"
    for sample in read_manifest(four_answers):
        assert sample.audio is not None
        prompt = checkpoint.encode(sample.instruction, read_audio_file(sample.audio))
        [answer] = checkpoint.generate(checkpoint.embed([prompt]), max_new_tokens=20)
        assert answer == checkpoint.encode_response(sample.target or "")  # and ends there
