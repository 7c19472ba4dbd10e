"""Strategy `align`: trains only the connector, by CTC onto the LLM's token embeddings."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from lsm_probe.errors import InputError
from lsm_probe.models import LsmProjectorConfig
from lsm_probe.models.building import build_lsm
from lsm_probe.models.checkpoint_kinds import Lsm
from lsm_probe.training import alignment
from lsm_probe.training.alignment import AlignmentLoss, AlignmentSet
from lsm_probe.training.config import TrainConfig
from lsm_probe.training.dataset import collate
from lsm_probe.training.run import train
from lsm_probe.training.samples import read_samples

TARGETS = ["The old!", "the, old", "Town.", "the the", "old old", "(town) the"]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory, waveform) -> Path:
    folder = tmp_path_factory.mktemp("spoken")
    rows = []
    for i, target in enumerate(TARGETS):
        soundfile.write(folder / f"{i}.wav", waveform(4.0, seed=i), 16_000)
        rows.append({"id": f"{i}", "instruction": "Transcribe.", "audio": f"{i}.wav", "target": target})
    (folder / "spoken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "spoken.jsonl"


@pytest.fixture
def checkpoint(tiny_encoder_folder: Path, tiny_llm_folder: Path) -> Lsm:
    projector = LsmProjectorConfig(connector="transformer", window=34, hidden_size=24, intermediate_size=24)
    return build_lsm(tiny_encoder_folder, tiny_llm_folder, projector=projector, encoder_context="trimmed")


@pytest.fixture
def samples(manifest: Path, checkpoint: Lsm) -> AlignmentSet:
    return AlignmentSet(read_samples([manifest], tasks=None, limit=4, on_error="fail"), checkpoint)


@pytest.fixture
def config(training_config, manifest: Path) -> Callable[..., TrainConfig]:
    connector = "model.connector={connector: transformer, hidden_size: 24, intermediate_size: 24}"
    given = (connector, f"train={manifest}", f"eval={manifest}", "strategy=align", "batch_size=3")
    return lambda *more: training_config(*given, "machine.per_device_batch_size=3", "learning_rate=3e-3", *more)


def nats_by_paths(log_probs: np.ndarray, target: list[int], blank: int) -> float:
    """The definition: the sum over all paths that give the target after repetitions and blanks are removed."""
    total = 0.0
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        merged = [token for token, _ in itertools.groupby(path) if token != blank]
        if merged == target:
            total += np.exp(sum(log_probs[t, token] for t, token in enumerate(path)))
    return -np.log(total)


def test_the_loss_equals_the_sum_over_all_ctc_paths(checkpoint: Lsm, samples: AlignmentSet) -> None:
    lsm = checkpoint.model.eval()
    batch = collate([samples[i] for i in range(4)], pad_id=0)
    loss = AlignmentLoss(checkpoint, [samples])
    with torch.no_grad():
        found = loss(lsm, batch).numpy()
    vocabulary = loss.vocabulary.tolist()
    embeddings = lsm.get_input_embeddings().weight.detach().double().numpy()[vocabulary]
    scale = 5 / np.linalg.norm(embeddings, axis=1).mean() ** 2
    compared = np.concatenate([np.zeros((1, embeddings.shape[1])), embeddings])  # the blank is the origin
    for i in range(4):
        with torch.no_grad():
            alone = collate([samples[i]], pad_id=0)
            features = {k: alone[k] for k in ("input_features", "input_features_mask")}
            speech = lsm.get_audio_features(**features).double().numpy()
        logits = -scale * ((speech[:, None] - compared[None]) ** 2).sum(-1)
        log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        target = [1 + vocabulary.index(token) for token in samples.responses[i].tolist()]
        assert found[i, 1] == len(target)
        assert found[i, 0] == pytest.approx(nats_by_paths(log_probs, target, 0), rel=1e-4)


def test_targets_ignore_case_and_punctuation(checkpoint: Lsm, samples: AlignmentSet) -> None:
    spelled = [checkpoint.tokenizer.decode(ids).split() for ids in samples.responses]
    assert spelled == [["the", "old"], ["the", "old"], ["town"], ["the", "the"]]


def test_fewer_candidates_change_the_partition_function_only(
    checkpoint: Lsm, samples: AlignmentSet, monkeypatch
) -> None:
    batch = collate([samples[2]], pad_id=0)
    loss = AlignmentLoss(checkpoint, [samples])
    lsm = checkpoint.model.train()
    lsm.multi_modal_projector.eval()  # without dropout
    whole = loss(lsm, batch)[0, 0]
    monkeypatch.setattr(alignment, "CANDIDATES", 1)
    torch.manual_seed(0)
    assert loss(lsm, batch)[0, 0] < whole


def test_only_the_connector_is_trained(config, tmp_path: Path) -> None:
    train(config("max_steps=40"), tmp_path / "out")
    history = json.loads((tmp_path / "out" / "history.json").read_text())
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    weights = load_file(tmp_path / "out" / "model" / "model.safetensors")
    train(config("max_steps=1", "learning_rate=1e-12", "weight_decay=0"), tmp_path / "start")
    before = load_file(tmp_path / "start" / "model" / "model.safetensors")
    changed = {name.split(".")[0] for name in weights if not torch.equal(weights[name], before[name])}
    assert changed == {"multi_modal_projector"}


def test_a_resumed_run_ends_with_the_same_weights(config, stop_at, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(alignment, "CANDIDATES", 1)
    train(config(), tmp_path / "whole")
    with pytest.raises(BaseException, match="step 5"):
        train(config(), tmp_path / "stopped", on_progress=stop_at(5))
    train(config(), tmp_path / "stopped", resume=True)
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_target_longer_than_its_speech_is_refused_or_skipped(config, manifest: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) | {"audio": str(manifest.parent / "0.wav")} for line in manifest.read_text().splitlines()]
    rows[3]["target"] = "the old town " * 20
    (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"sample '3': the target needs \d+ speech tokens, but .* only \d+"):
        train(config(f"train={tmp_path / 'bad.jsonl'}"), tmp_path / "out")
    with pytest.warns(UserWarning, match=r"left out 1: sample '3'"):
        report = train(config(f"train={tmp_path / 'bad.jsonl'}"), tmp_path / "skipped", on_error="skip")
    assert report["stages"][0]["samples"] == len(rows) - 1
