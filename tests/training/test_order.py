"""The order of the data: every sample once per epoch, random steps, determined by seed and epoch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import TrainerState

from lsm_probe.training.config import TrainConfig
from lsm_probe.training.order import LengthGrouped
from lsm_probe.training.run import train
from lsm_probe.training.trainer import LsmTrainer

LENGTHS = np.random.default_rng(0).integers(5, 60, size=53)


def epoch_of(number: int, batch_size: int = 8, seed: int = 0, lengths: Any = LENGTHS) -> list[int]:
    order = LengthGrouped(lengths, batch_size, seed)
    order.on_epoch_begin(None, TrainerState(epoch=float(number)), None)
    return list(order)


def steps_of(order: list[int], batch_size: int = 8) -> list[list[int]]:
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


@pytest.mark.parametrize(("batch_size", "drawn"), [(1, 53), (8, 56), (53, 53), (100, 100)])
def test_each_epoch_has_every_sample_and_the_last_step_is_filled_from_the_first(batch_size: int, drawn: int) -> None:
    for epoch in range(4):
        order = epoch_of(epoch, batch_size)
        times = np.bincount(order, minlength=53)
        assert set(order) == set(range(53))
        assert times.max() <= 2
        assert set(np.flatnonzero(times == 2)) <= set(order[:batch_size])
        assert len(order) == len(LengthGrouped(LENGTHS, batch_size, 0)) == drawn


def test_the_order_differs_between_epochs_and_seeds_and_is_reproducible() -> None:
    orders = [epoch_of(epoch, seed=seed) for epoch in range(4) for seed in range(4)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert orders == [epoch_of(epoch, seed=seed) for epoch in range(4) for seed in range(4)]


def test_the_order_follows_the_trainers_epoch() -> None:
    """After resuming within an epoch, the trainer state has a fractional epoch."""
    order = LengthGrouped(LENGTHS, 8, 0)
    order.on_epoch_begin(None, TrainerState(epoch=2 + 6 / 7), None)
    assert list(order) == epoch_of(2)
    order.on_epoch_begin(None, TrainerState(epoch=0), None)
    assert list(order) == epoch_of(0)


def test_a_step_is_sorted_by_length() -> None:
    for step in steps_of(epoch_of(1)):
        lengths = LENGTHS[step].tolist()
        assert lengths == sorted(lengths, reverse=True)


def test_a_step_is_a_random_draw_over_lengths() -> None:
    """If each step had one length, it would have one task."""
    means = [LENGTHS[step].mean() for epoch in range(40) for step in steps_of(epoch_of(epoch))[:-1]]
    expected = LENGTHS.std() / np.sqrt(8) * np.sqrt((53 - 8) / (53 - 1))  # drawn without replacement
    assert np.std(means) == pytest.approx(expected, rel=0.15)
    assert np.mean(means) == pytest.approx(LENGTHS.mean(), rel=0.02)


def test_lengths_decide_the_order_in_a_step_but_not_the_steps() -> None:
    for one, other in zip(steps_of(epoch_of(0)), steps_of(epoch_of(0, lengths=-LENGTHS)), strict=True):
        assert sorted(one) == sorted(other)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_trainer_uses_the_order_for_any_division_of_steps(
    workers: int, training_config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    step = LsmTrainer.training_step

    def recorded(self: LsmTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen.append(inputs["index"])
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LsmTrainer, "training_step", recorded)
    orders = []
    for size in (4,) if workers else (8, 2):
        seen.clear()
        overrides = [f"machine.per_device_batch_size={size}", f"machine.workers={workers}", "batch_size=8"]
        train(
            training_config(*overrides, "max_steps=6", "machine.save_steps=100", "machine.log_steps=100"),
            tmp_path / f"{size}",
        )
        assert all(len(indices) <= size for indices in seen)
        orders.append([i for indices in seen for i in indices])
    assert len(orders[0]) == 48  # two epochs of 20, the last step of each filled up
    assert all(order == orders[0] for order in orders)
    first, second = orders[0][:24], orders[0][24:]
    assert set(first) == set(second) == set(range(20))
    assert first != second
