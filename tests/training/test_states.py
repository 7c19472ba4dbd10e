"""The cache of the frozen encoder's states: equal to the encoder's output, computed once, shared by equal speech."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

import lsm_probe
from lsm_probe.data.audio import read_audio
from lsm_probe.data.problems import Problems
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.models import LsmForConditionalGeneration, LsmProjectorConfig
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.training.states import SpeechStates

SECONDS = [1.1, 0.4, 30.9, 1.1]  # the third makes two pieces


@pytest.fixture
def samples(tmp_path: Path, waveform: Callable[..., np.ndarray]) -> list[Sample]:
    found = []
    for i, seconds in enumerate(SECONDS):
        soundfile.write(tmp_path / f"{i}.wav", waveform(seconds, seed=i), 16_000)
        found.append(Sample(id=f"s{i}", instruction="Say it.", audio=tmp_path / f"{i}.wav", target="green"))
    return found


@pytest.fixture
def build(
    tiny_encoder_folder: Path, tiny_llm_folder: Path, tiny_projector: Callable[..., LsmProjectorConfig]
) -> Callable[..., Checkpoint]:
    """`build(encoder=folder, ...)`: a tiny LSM."""

    def make(encoder: Path = tiny_encoder_folder, **kwargs: Any) -> Checkpoint:
        return lsm_probe.build_lsm(encoder, tiny_llm_folder, **{"projector": tiny_projector()} | kwargs)

    return make


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pieces in each call of the audio tower."""
    calls: list[int] = []
    encode = LsmForConditionalGeneration.encode_speech

    def counted(self: Any, input_features: Any, *rest: Any, **others: Any) -> Any:
        calls.append(len(input_features))
        return encode(self, input_features, *rest, **others)

    monkeypatch.setattr(LsmForConditionalGeneration, "encode_speech", counted)
    return calls


def fill(states: SpeechStates, checkpoint: Checkpoint, samples: Sequence[Sample], **kwargs: Any) -> list[str]:
    problems = Problems()
    progress = kwargs.pop("on_progress", lambda *_: None)
    states.fill(checkpoint, states.missing(samples), problems, on_progress=progress, **kwargs)
    return problems.found


SHAPES: dict[str, dict[str, Any]] = {
    "full": {},
    "trimmed": {"encoder_context": "trimmed"},
    "decoder": {"decoder_states": 7},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_size", [1, 3])
@torch.no_grad()
def test_stored_states_equal_the_encoder_output(
    shape: str, batch_size: int, build: Callable[..., Checkpoint], samples: list[Sample], tmp_path: Path
) -> None:
    checkpoint = build(**SHAPES[shape])
    states = SpeechStates(tmp_path / "cache", checkpoint)
    assert fill(states, checkpoint, samples, batch_size=batch_size) == []
    for sample in samples[:: -1 if batch_size == 1 else 1][:3]:
        speech = checkpoint.processor.extract(read_audio(sample))
        expected, lengths = checkpoint.model.encode_speech(**speech)
        pieces = states.read(sample)
        assert [len(piece) for piece in pieces] == lengths.tolist()
        for piece, row in zip(pieces, expected, strict=True):
            assert piece.dtype == torch.float32
            assert (piece - row[: len(piece)]).abs().max() <= 1e-5 * row.abs().max()


def test_each_utterance_is_encoded_once(
    build: Callable[..., Checkpoint], samples: list[Sample], encoded: list[int], tmp_path: Path
) -> None:
    checkpoint = build(encoder_context="trimmed")
    other_task = [s.model_copy(update={"id": f"t-{s.id}", "instruction": "Translate.", "task": "t"}) for s in samples]
    states = SpeechStates(tmp_path / "cache", checkpoint)
    assert not any(sample in states for sample in samples)
    seen: list[tuple[Any, ...]] = []
    fill(states, checkpoint, [*samples, *other_task], batch_size=3, on_progress=lambda *now: seen.append(now))
    assert sum(encoded) == 5  # pieces of four utterances
    assert seen[-1][1:] == (4, 4)
    assert all(sample in states for sample in [*samples, *other_task])
    again = SpeechStates(tmp_path / "cache", build(encoder_context="trimmed"))
    assert again.missing([*samples, *other_task]) == []
    fill(again, checkpoint, samples)
    assert sum(encoded) == 5


def test_equal_speech_at_another_path_shares_its_states(
    build: Callable[..., Checkpoint], samples: list[Sample], tmp_path: Path
) -> None:
    checkpoint = build(encoder_context="trimmed")
    states = SpeechStates(tmp_path / "cache", checkpoint)
    fill(states, checkpoint, samples[:1])
    assert samples[0].audio is not None
    copy = samples[0].model_copy(update={"audio": Path(shutil.copy(samples[0].audio, tmp_path / "copy.wav"))})
    assert copy in states
    assert torch.equal(states.read(copy)[0], states.read(samples[0])[0])
    section = samples[0].model_copy(update={"start": 0.2, "duration": 0.5})
    assert section not in states
    assert section.model_copy(update={"duration": 0.6}) not in states


def test_changed_audio_at_the_same_path_is_encoded_again(
    build: Callable[..., Checkpoint], samples: list[Sample], waveform: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    checkpoint = build(encoder_context="trimmed")
    states = SpeechStates(tmp_path / "cache", checkpoint)
    fill(states, checkpoint, samples[:1])
    [before] = states.read(samples[0])
    assert samples[0].audio is not None
    soundfile.write(samples[0].audio, waveform(SECONDS[0], seed=99), 16_000)
    assert states.missing(samples[:1]) == samples[:1]
    fill(states, checkpoint, samples[:1])
    [after] = states.read(samples[0])
    assert before.shape == after.shape
    assert not torch.allclose(before, after)


def test_the_folder_name_depends_on_everything_that_changes_the_states(
    build: Callable[..., Checkpoint], save_encoder: Callable[..., Path], tmp_path: Path
) -> None:
    def folder(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Path:
        return SpeechStates(tmp_path, checkpoint, dtype).folder

    plain = folder(build())
    assert folder(build(seed=7, projector=LsmProjectorConfig(connector="conv"))) == plain  # any connector
    others = [
        folder(build(encoder=save_encoder(tmp_path / "other", seed=1))),
        folder(build(encoder_context="trimmed")),
        folder(build(decoder_states=7)),
        folder(build(decoder_states=8)),
        folder(build(), torch.bfloat16),
    ]
    assert len({plain, *others}) == 6
    assert {path.parent for path in others} == {tmp_path}


def test_bfloat16_states_are_stored_exactly(
    build: Callable[..., Checkpoint], samples: list[Sample], tmp_path: Path
) -> None:
    checkpoint = build(encoder_context="trimmed")
    exact, rounded = (SpeechStates(tmp_path, checkpoint, dtype) for dtype in (torch.float32, torch.bfloat16))
    for states in (exact, rounded):
        fill(states, checkpoint, samples[:2])
    for sample in samples[:2]:
        [expected], [actual] = exact.read(sample), rounded.read(sample)
        assert actual.dtype == torch.bfloat16
        assert 0 < (actual.float() - expected).abs().max() <= 0.05 * expected.abs().max()


@pytest.mark.parametrize("damage", ["empty", "truncated", "garbage"])
def test_a_damaged_file_is_refused_by_name(
    damage: str, build: Callable[..., Checkpoint], samples: list[Sample], tmp_path: Path
) -> None:
    checkpoint = build(encoder_context="trimmed")
    states = SpeechStates(tmp_path / "cache", checkpoint)
    fill(states, checkpoint, samples[:1])
    [path] = states.folder.glob("*/*.safetensors")
    content = {"empty": b"", "truncated": path.read_bytes()[:-40], "garbage": b"not states " * 20}
    path.write_bytes(content[damage])
    with pytest.raises(InputError) as caught:
        states.read(samples[0])
    assert str(caught.value).startswith(f"{path} cannot be read (")
    assert "delete it" in str(caught.value)


def test_unusable_audio_is_left_out_and_the_rest_is_encoded(
    build: Callable[..., Checkpoint], samples: list[Sample], tmp_path: Path
) -> None:
    checkpoint = build(encoder_context="trimmed")
    assert samples[1].audio is not None
    samples[1].audio.write_bytes(b"not audio at all")
    states = SpeechStates(tmp_path / "cache", checkpoint)
    [problem] = fill(states, checkpoint, samples, batch_size=3)
    assert problem.startswith(f"sample 's1': {samples[1].audio}: cannot be decoded")
    assert [sample in states for sample in samples] == [True, False, True, True]


def test_an_unusable_last_sample_of_a_batch_loses_no_other(
    build: Callable[..., Checkpoint], samples: list[Sample], tmp_path: Path
) -> None:
    checkpoint = build(encoder_context="trimmed")
    for number in (1, 3):
        audio = samples[number].audio
        assert audio is not None
        audio.write_bytes(b"no audio" * number)
    states = SpeechStates(tmp_path / "cache", checkpoint)
    assert len(fill(states, checkpoint, samples, batch_size=2)) == 2
    assert [sample in states for sample in samples] == [True, False, True, False]
