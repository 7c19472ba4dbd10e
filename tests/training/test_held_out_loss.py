"""The held-out losses and their intervals, compared with values computed by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lsm_probe.data.sample import Sample
from lsm_probe.training.held_out_loss import sample_losses, summarise


def samples_of(utterances: list[int], tasks: list[str | None]) -> list[Sample]:
    return [
        Sample(id=f"s{i}", instruction="x", audio=Path(f"{utterance}.wav"), target="y", task=task)
        for i, (utterance, task) in enumerate(zip(utterances, tasks, strict=True))
    ]


def test_each_response_has_its_own_sum_and_count() -> None:
    probabilities = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[0.2, 0.7, 0.1], [1 / 3, 1 / 3, 1 / 3]]])
    labels = torch.tensor([[0, 2], [1, -100]])
    losses = sample_losses(probabilities.log(), labels)
    expected = [[-math.log(0.5) - math.log(0.8), 2], [-math.log(0.7), 1]]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_losses_of_bfloat16_logits_are_summed_in_float32() -> None:
    logits = torch.randn(1, 300, 50, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(300)[None] % 50
    exact = torch.nn.functional.cross_entropy(logits[0].double(), labels[0], reduction="sum").item()
    assert sample_losses(logits, labels)[0, 0].item() == pytest.approx(exact, rel=1e-6)


def test_losses_and_gains_equal_those_computed_by_hand() -> None:
    losses = {
        "true": np.array([[6.0, 3], [2.0, 1], [4.0, 4]]),
        "speech": np.array([[9.0, 3], [3.0, 1], [9.0, 4]]),
    }
    metrics = summarise(losses, samples_of([0, 1, 1], ["a", "b", "b"]))
    assert metrics["eval_loss"] == 12 / 8  # over tokens, not over samples
    assert metrics["eval_loss_speech_shuffled"] == 21 / 8
    assert metrics["eval_speech_gain"] == 9 / 8
    assert metrics["eval_loss_task_a"] == 6 / 3
    assert metrics["eval_loss_task_b"] == 6 / 5
    # Two utterances are too few for an interval.
    assert metrics.keys() == {
        "eval_loss",
        "eval_loss_speech_shuffled",
        "eval_speech_gain",
        "eval_loss_task_a",
        "eval_loss_task_b",
    }


def test_the_interval_is_of_the_paired_difference_over_utterances(slow_interval: Callable[..., Any]) -> None:
    rng = np.random.default_rng(5)
    utterances = sorted(rng.integers(0, 9, size=30).tolist())
    samples = samples_of(utterances, [None] * 30)
    counts = rng.integers(1, 12, size=30).astype(float)
    true, speech, instruction = (np.stack([counts * rng.gamma(4, 0.5, 30), counts], axis=1) for _ in range(3))
    metrics = summarise({"true": true, "speech": speech, "instruction": instruction}, samples)
    for name, losses in (("speech", speech), ("instruction", instruction)):

        def gain(kept: list[int], losses: NDArray[np.float64] = losses) -> float:
            shuffled, own = losses[kept].sum(0), true[kept].sum(0)
            return float(shuffled[0] / shuffled[1] - own[0] / own[1])

        low, high = slow_interval(gain, utterances)
        assert metrics[f"eval_{name}_gain_low"] == pytest.approx(low, rel=1e-9)
        assert metrics[f"eval_{name}_gain_high"] == pytest.approx(high, rel=1e-9)
        assert low < metrics[f"eval_{name}_gain"] < high
    assert "eval_loss_task_none" not in metrics


def test_equal_losses_give_zero_gain() -> None:
    true = np.array([[3.0, 2], [5.0, 3], [1.0, 1]], dtype=np.float32)
    metrics = summarise({"true": true, "instruction": true.copy()}, samples_of([0, 1, 2], [None] * 3))
    gains = {key: value for key, value in metrics.items() if "_gain" in key}
    assert gains == {f"eval_instruction_gain{end}": 0.0 for end in ("", "_low", "_high")}


def test_samples_without_a_task_have_their_own_loss() -> None:
    losses = {"true": np.array([[4.0, 2], [9.0, 3]])}
    metrics = summarise(losses, samples_of([0, 1], ["a", None]))
    assert metrics == {"eval_loss": 13 / 5, "eval_loss_task_a": 2.0, "eval_loss_task_none": 3.0}


def test_float32_losses_of_many_samples_are_added_in_float64() -> None:
    true = np.tile(np.array([[0.1, 1]], dtype=np.float32), (2_000, 1))
    metrics = summarise({"true": true}, samples_of([0] * 2_000, [None] * 2_000))
    assert metrics["eval_loss"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)
