"""What a batch contains: labels on the response only, and padding that affects neither loss nor gradient."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor
from torch._utils import ExceptionWrapper
from transformers import GPT2Config, GPT2LMHeadModel

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.data.problems import Problems
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models import LsmProjectorConfig
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.segments import Segment
from lsm_probe.training.config import Stage
from lsm_probe.training.dataset import IGNORED, TrainingSet, collate
from lsm_probe.training.held_out_loss import sample_losses
from lsm_probe.training.parameters import prepare_model
from lsm_probe.training.states import SpeechStates

INSTRUCTION = "Continue writing the text."
TARGET = "the old town"
PAD = 2
# The compared sample first; then a longer prompt, a longer response, more speech, and several pieces: alone and all.
OURS: tuple[float, str, str] = (1.3, INSTRUCTION, TARGET)
LONG_PROMPT = (0.6, f"{INSTRUCTION} {'Say it again. ' * 5}", "rain")
LONG_RESPONSE = (0.9, "Translate the speech into German.", f"{TARGET} {'in early spring ' * 4}")
MORE_SPEECH = (5.2, INSTRUCTION, "green")
TWO_PIECES = (30.7, "Answer the question.", "she sells sea shells")
ALL = (OURS, LONG_PROMPT, LONG_RESPONSE, MORE_SPEECH, TWO_PIECES)
MakeSamples = Callable[..., list[Sample]]
BOTH_SPEECHES = pytest.mark.parametrize("variant", ["features", "states"], indirect=True)


@pytest.fixture
def make_samples(tmp_path: Path, waveform: Callable[..., np.ndarray]) -> MakeSamples:
    """`make_samples((seconds, instruction, target), ...)`: samples with audio files."""

    def make(*rows: tuple[float, str, str]) -> list[Sample]:
        samples = []
        for i, (seconds, instruction, target) in enumerate(rows):
            path = tmp_path / f"{i}-{seconds}.wav"
            soundfile.write(path, waveform(seconds, seed=round(10 * seconds)), 16_000, subtype="FLOAT")
            samples.append(Sample(id=f"s{i}", instruction=instruction, audio=path, target=target))
        return samples

    return make


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Callable[..., Any]) -> Path:
    """An LLM with learned absolute positions, which show any shift."""
    folder = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=448, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(params=["features", "states", "gpt2", "eager"])
def variant(
    request: pytest.FixtureRequest,
    tiny_lsm: Checkpoint,
    tiny_encoder_folder: Path,
    tiny_llm_folder: Path,
    gpt2_folder: Path,
    tiny_projector: Callable[..., LsmProjectorConfig],
    tmp_path: Path,
) -> tuple[Checkpoint, Callable[[list[Sample]], TrainingSet]]:
    """An LSM and a function that makes its training set: speech as features or cached states, Llama or GPT-2."""
    checkpoint = tiny_lsm
    if request.param != "features":
        llm = gpt2_folder if request.param == "gpt2" else tiny_llm_folder
        parts = {"projector": tiny_projector(), "encoder_context": "trimmed"}
        checkpoint = lsm_probe.build_lsm(tiny_encoder_folder, llm, **parts)
        checkpoint.llm.set_attn_implementation("eager" if request.param == "eager" else "sdpa")

    def make(samples: list[Sample]) -> TrainingSet:
        states = cached(checkpoint, samples, tmp_path) if request.param == "states" else None
        return TrainingSet(samples, checkpoint, states)

    return checkpoint, make


def cached(checkpoint: Checkpoint, samples: Sequence[Sample], root: Path) -> SpeechStates:
    states, problems = SpeechStates(root / "states", checkpoint), Problems()
    states.fill(checkpoint, states.missing(samples), problems, on_progress=lambda *_: None, batch_size=2)
    problems.settle("fail")
    return states


def batch_of(train_set: TrainingSet) -> dict[str, Tensor]:
    return collate(list(train_set), pad_id=PAD)


def run(checkpoint: Checkpoint, batch: dict[str, Tensor], **kwargs: Any) -> Any:
    return checkpoint.model(**{k: v for k, v in batch.items() if k != "index"}, use_cache=False, **kwargs)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal to 1e-5 of the tensor's largest value."""
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@BOTH_SPEECHES
def test_labels_are_on_response_tokens_only(variant: Any, make_samples: MakeSamples) -> None:
    checkpoint, make_set = variant
    samples = make_samples(*ALL)
    batch = batch_of(make_set(samples))
    prompts = checkpoint.processor(
        [s.instruction for s in samples], [read_audio(s) for s in samples], return_segments=True
    )
    start = prompts["input_ids"].shape[1]
    inside = prompts["attention_mask"].bool()
    assert torch.equal(batch["attention_mask"][:, :start], prompts["attention_mask"])
    assert torch.equal(batch["input_ids"][:, :start][inside], prompts["input_ids"][inside])
    assert {Segment.PADDING, Segment.SYSTEM, Segment.TEMPLATE, Segment.INSTRUCTION, Segment.SOURCE} == set(
        prompts["segments"].unique().tolist()
    )
    assert (batch["labels"][:, :start] == IGNORED).all()
    learned = batch["labels"] != IGNORED
    assert torch.equal(learned[:, start:], batch["attention_mask"][:, start:].bool())
    assert torch.equal(batch["labels"][learned], batch["input_ids"][learned])
    for row, sample in enumerate(samples):
        ids = batch["labels"][row][learned[row]].tolist()
        assert ids == checkpoint.encode_response(sample.target)
        assert checkpoint.tokenizer.decode(ids) == f"{sample.target}</s>"


@BOTH_SPEECHES
def test_shift_labels_equal_the_labels_shifted_by_one(variant: Any, make_samples: MakeSamples) -> None:
    _, make_set = variant
    batch = batch_of(make_set(make_samples(*ALL)))
    columns = batch["logits_to_keep"]
    assert torch.equal(batch["shift_labels"], batch["labels"][:, columns + 1])
    assert (batch["shift_labels"] != IGNORED).sum() == (batch["labels"] != IGNORED).sum()


def test_speech_tokens_have_no_labels_and_labels_are_integers(tiny_lsm: Checkpoint, make_samples: MakeSamples) -> None:
    """BLSP (5cdf012) and Qwen2-Audio (issue 137): -100 written into a boolean mask is True, which is token 1."""
    batch = batch_of(TrainingSet(make_samples(*ALL), tiny_lsm))
    speech = batch["input_ids"] == tiny_lsm.model.config.audio_token_id
    assert speech.sum() == sum(map(len, speech_tokens(tiny_lsm, batch)))
    for name in ("labels", "shift_labels"):
        assert batch[name].dtype == torch.int64
        assert not torch.isin(batch[name], torch.tensor([0, 1])).any()
    assert batch["labels"][speech].unique().tolist() == [IGNORED]


def speech_tokens(checkpoint: Checkpoint, batch: dict[str, Tensor]) -> list[list[int]]:
    ids = batch["input_ids"].tolist()
    return [[i for i in row if i == checkpoint.model.config.audio_token_id] for row in ids]


@pytest.mark.parametrize("companions", [(), (LONG_PROMPT,), (LONG_PROMPT, TWO_PIECES, LONG_RESPONSE)])
def test_left_padding_does_not_shift_the_labels(
    tiny_lsm: Checkpoint, make_samples: MakeSamples, companions: tuple[tuple[float, str, str], ...]
) -> None:
    """Qwen2-Audio-finetune (issue 3): a mask counted from the left end of a row that is padded there."""
    batch = batch_of(TrainingSet(make_samples(OURS, *companions), tiny_lsm))
    padding = int((batch["attention_mask"][0].cumsum(0) == 0).sum())
    assert (padding > 0) == bool(companions)
    prompt = len(tiny_lsm.encode(INSTRUCTION, np.ones(round(OURS[0] * 16_000), np.float32)))
    response = tiny_lsm.encode_response(TARGET)
    row = batch["labels"][0].tolist()
    assert row[: padding + prompt] == [IGNORED] * (padding + prompt)
    assert row[padding + prompt :][: len(response)] == response
    assert set(row[padding + prompt + len(response) :]) <= {IGNORED}


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(variant: Any, make_samples: MakeSamples) -> None:
    checkpoint, make_set = variant
    items = list(make_set(make_samples(*ALL)))
    alone = collate(items[:1], pad_id=PAD)
    expected = run(checkpoint, alone).logits[0]
    for companions in ([1], [2], [3], [4], [1, 2, 3, 4]):
        together = collate([items[i] for i in (0, *companions)], pad_id=PAD)
        real = together["attention_mask"][0].bool()
        assert real.sum() < len(real)  # there is padding
        assert torch.equal(together["input_ids"][0, real], alone["input_ids"][0])
        logits = run(checkpoint, together).logits
        assert_close(logits[0, : len(expected)], expected)
        loss = sample_losses(logits, together["shift_labels"])[0]
        assert_close(loss, sample_losses(expected[None], alone["shift_labels"])[0])


@torch.no_grad()
def test_the_losses_of_a_batch_equal_those_of_single_samples(variant: Any, make_samples: MakeSamples) -> None:
    checkpoint, make_set = variant
    items = list(make_set(make_samples(*ALL)))
    batches = [collate([item], pad_id=PAD) for item in items]
    expected = torch.cat([sample_losses(run(checkpoint, b).logits, b["shift_labels"]) for b in batches])
    together = collate(items, pad_id=PAD)
    assert_close(sample_losses(run(checkpoint, together).logits, together["shift_labels"]), expected)


def test_the_gradient_of_a_batch_is_the_sum_of_single_gradients(variant: Any, make_samples: MakeSamples) -> None:
    checkpoint, make_set = variant
    items = list(make_set(make_samples(*ALL)))
    prepare_model(checkpoint.model, Stage())
    expected: dict[str, Tensor] = {}
    for item in items:
        for name, gradient in gradients(checkpoint, collate([item], pad_id=PAD)).items():
            expected[name] = expected.get(name, torch.zeros_like(gradient)) + gradient
    actual = gradients(checkpoint, collate(items, pad_id=PAD))
    assert actual.keys() == expected.keys()
    assert {name.split(".")[0] for name in actual} == {"multi_modal_projector", "language_model"}
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert actual[name].isfinite().all(), name
        # A softmax does not depend on a key's bias: its gradient is only rounding error.
        assert (actual[name] - gradient).abs().max() <= 1e-5 * max(gradient.abs().max(), 1e-2 * largest), name


def gradients(checkpoint: Checkpoint, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the summed loss, without dropout."""
    model = checkpoint.model.eval()
    model.zero_grad()
    run(checkpoint, batch, num_items_in_batch=1).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_content_of_the_padding_does_not_matter(variant: Any, make_samples: MakeSamples) -> None:
    checkpoint, make_set = variant
    items = list(make_set(make_samples(*ALL)))
    prepare_model(checkpoint.model, Stage())
    one, other = (gradients(checkpoint, collate(items, pad_id=pad_id)) for pad_id in (PAD, 300))
    largest = max(gradient.abs().max() for gradient in one.values())
    for name, gradient in one.items():
        assert (other[name] - gradient).abs().max() <= 1e-6 * largest, name


@torch.no_grad()
def test_the_loss_equals_the_cross_entropy_over_all_positions(variant: Any, make_samples: MakeSamples) -> None:
    checkpoint, make_set = variant
    batch = batch_of(make_set(make_samples(*ALL)))
    speech = {key: batch[key] for key in batch if key.startswith(("speech", "input_features"))}
    logits = checkpoint.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, **speech
    ).logits
    nats = []
    for row, column in (batch["labels"] != IGNORED).nonzero().tolist():
        scores = logits[row, column - 1].double().numpy()
        nats.append(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[batch["labels"][row, column]])
    assert run(checkpoint, batch).loss.item() == pytest.approx(np.mean(nats), rel=1e-5)
    assert run(checkpoint, batch, num_items_in_batch=7).loss.item() == pytest.approx(np.sum(nats) / 7, rel=1e-5)
    kept = sample_losses(run(checkpoint, batch).logits, batch["shift_labels"])
    assert kept[:, 0].sum().item() == pytest.approx(np.sum(nats), rel=1e-5)
    assert kept[:, 1].sum().item() == len(nats)


@BOTH_SPEECHES
def test_lengths_equal_the_token_counts_of_the_items(variant: Any, make_samples: MakeSamples) -> None:
    _, make_set = variant
    train_set = make_set(make_samples(*ALL))
    found = [len(train_set[i]["prompt"]) + len(train_set[i]["response"]) for i in range(len(train_set))]
    assert train_set.lengths.tolist() == found


@BOTH_SPEECHES
def test_an_item_depends_on_its_index_only(variant: Any, make_samples: MakeSamples) -> None:
    _, make_set = variant
    train_set = make_set(make_samples(*ALL))
    first = batch_of(train_set)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002  # the global generator is what an item must not read
    again = collate(list(reversed([train_set[i] for i in reversed(range(len(train_set)))])), pad_id=PAD)
    assert first.keys() == again.keys()
    assert first.pop("index") == again.pop("index")
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_cached_states_give_the_same_logits_as_features(
    tiny_lsm: Checkpoint, make_samples: MakeSamples, tmp_path: Path
) -> None:
    samples = make_samples(*ALL)
    given = [batch_of(TrainingSet(samples, tiny_lsm, s)) for s in (None, cached(tiny_lsm, samples, tmp_path))]
    assert torch.equal(given[0]["input_ids"], given[1]["input_ids"])
    with torch.no_grad():
        expected, actual = (run(tiny_lsm, batch).logits for batch in given)
    assert_close(actual, expected)


def test_a_section_of_a_file_equals_a_file_with_that_section(tiny_lsm: Checkpoint, make_samples: MakeSamples) -> None:
    [whole] = make_samples((3.0, INSTRUCTION, TARGET))
    section = whole.model_copy(update={"start": 1.0, "duration": 1.5})
    cut = read_audio(whole)[16_000:40_000]
    assert whole.audio is not None
    soundfile.write(path := whole.audio.with_name("cut.wav"), cut, 16_000, subtype="FLOAT")
    one, other = (TrainingSet([s], tiny_lsm) for s in (section, whole.model_copy(update={"audio": path})))
    assert one.lengths.tolist() == other.lengths.tolist()
    assert torch.equal(one[0]["input_features"], other[0]["input_features"])


def test_a_sample_longer_than_the_context_is_refused(tiny_lsm: Checkpoint, make_samples: MakeSamples) -> None:
    samples = make_samples(OURS, (0.5, INSTRUCTION, "the old town " * 500))
    with pytest.raises(InputError, match=r"^sample 's1': its \d+ tokens exceed the LLM's context of 1024; shorten it$"):
        TrainingSet(samples, tiny_lsm)


def test_a_target_without_tokens_is_refused(tiny_lsm: Checkpoint, make_samples: MakeSamples) -> None:
    with pytest.raises(InputError, match=r"^sample 's0': the target '' has no tokens$"):
        TrainingSet(make_samples((0.5, INSTRUCTION, "")), tiny_lsm)


def test_no_samples_are_refused(tiny_lsm: Checkpoint) -> None:
    with pytest.raises(InputError, match=r"^no usable sample is left"):
        TrainingSet([], tiny_lsm)


@BOTH_SPEECHES
def test_damage_found_in_a_loader_process_is_reported_in_one_line(
    variant: Any, make_samples: MakeSamples, tmp_path: Path
) -> None:
    _, make_set = variant
    train_set = make_set(make_samples(OURS))
    for path in (*tmp_path.glob("*.wav"), *tmp_path.glob("states/*/*/*.safetensors")):
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError) as here:
        train_set[0]
    try:
        train_set[0]
    except InputError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")  # what a worker passes on
    with pytest.raises(InputError) as there:
        wrapped.reraise()
    assert str(there.value) == str(here.value)
    assert len(str(here.value).splitlines()) == 1
