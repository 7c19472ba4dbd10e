"""transformers' Trainer, extended through its public hooks alone (and the one that gives the order of the data)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer

from lsm_probe.errors import WorkFailed
from lsm_probe.models.devices import read_numbers
from lsm_probe.training.alignment import AlignmentLoss
from lsm_probe.training.config import Stage
from lsm_probe.training.dataset import TrainingSet
from lsm_probe.training.held_out_loss import sample_losses, summarise
from lsm_probe.training.order import LengthGrouped
from lsm_probe.training.parameters import parameter_groups
from lsm_probe.training.stopping import StopOnSignal, leave_sigterm_to_trainer


class LsmTrainer(Trainer):
    """Trains an LSM on a [`TrainingSet`] and evaluates it with its inputs shuffled.

    `held_out` has the held-out samples under `true`, and under `speech` and `instruction` the controls. `alignment` is
    the loss of strategy `align`, in place of the model's own.
    """

    def __init__(
        self,
        *,
        stage: Stage,
        order: LengthGrouped,
        stop: StopOnSignal,
        held_out: dict[str, TrainingSet],
        alignment: AlignmentLoss | None = None,
        **kwargs: Any,
    ):
        self.stage, self.order, self.stop, self.held_out = stage, order, stop, held_out
        self.alignment = alignment
        # Of this process's passes of this step so far: the samples, and the loss on the device.
        self._passes: list[tuple[list[int], torch.Tensor]] = []
        super().__init__(
            eval_dataset=held_out.get("true"),
            preprocess_logits_for_metrics=sample_losses if alignment is None else lambda losses, labels: losses,
            callbacks=[order, stop],
            **kwargs,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            model = model or self.model
            optimizer, kwargs = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = optimizer(
                parameter_groups(model, self.get_decay_parameter_names(model), self.stage), **kwargs
            )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.order

    def get_train_dataloader(self) -> DataLoader[Any]:
        return _with_signal_safe_workers(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        return _with_signal_safe_workers(super().get_eval_dataloader(eval_dataset))

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """The Trainer's pass forward and back.

        Raises:
            WorkFailed: it is the last pass of a step, and the loss of a pass or the step's gradient is not finite;
                names step and samples. Nothing has been updated with it. (Clipping would make zeros of an infinite
                gradient, and hide it.)
        """
        with self.stop.interruptible():
            loss = super().training_step(model, inputs, *args, **kwargs)
        self._passes.append((inputs["index"], loss.detach()))
        if self.accelerator.sync_gradients:
            passes, self._passes = self._passes, []
            self._check_finite(model, passes)
        return loss

    def _check_finite(self, model: nn.Module, passes: list[tuple[list[int], torch.Tensor]]) -> None:
        """Looks at all of a step's numbers at once, as that waits for the device."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        *losses, norm_found = read_numbers([*(loss for _, loss in passes), norm]).tolist()
        for (indices, _), loss in zip(passes, losses, strict=True):
            if not math.isfinite(loss):
                raise self._not_finite(f"the loss is {loss}", indices)
        if not math.isfinite(norm_found):
            raise self._not_finite("the gradient is not finite", [i for indices, _ in passes for i in indices])

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The Trainer's loss, of what the model takes of the inputs; or the nats per token of the alignment."""
        if self.alignment is not None:
            losses = self.alignment(self.accelerator.unwrap_model(model), inputs)
            nats, tokens = losses.sum(0)
            loss = nats / (tokens if num_items_in_batch is None else num_items_in_batch)
            return (loss, {"loss": loss, "losses": losses}) if return_outputs else loss
        inputs = {key: value for key, value in inputs.items() if key != "index"} | {"use_cache": False}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _not_finite(self, what: str, indices: list[int]) -> WorkFailed:
        assert isinstance(self.train_dataset, TrainingSet)
        ids = [self.train_dataset.samples[i].id for i in indices]
        names = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
        return WorkFailed(
            f"step {self.state.global_step + 1}: {what}; samples: {names}. The weights were not updated; check these "
            "samples, or lower the learning rate"
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Held-out loss with the true inputs and with each control's; see [`summarise`]."""
        # A loader draws its workers' seed from the global generator. Evaluating must not change how training goes on.
        with torch.random.fork_rng(devices=[]), self.stop.interruptible():
            losses = {name: self._losses(view) for name, view in self.held_out.items()}
        metrics = summarise(losses, self.held_out["true"].samples)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _losses(self, view: TrainingSet) -> NDArray[np.float32]:
        output = self.evaluation_loop(
            self.get_eval_dataloader(view), description="Evaluation", prediction_loss_only=False
        )
        assert isinstance(output.predictions, np.ndarray)
        return output.predictions


def _with_signal_safe_workers(loader: DataLoader[Any]) -> DataLoader[Any]:
    inner = getattr(loader, "base_dataloader", loader)  # Accelerate's is a shell round a loader
    inner.worker_init_fn = leave_sigterm_to_trainer  # in place of the Trainer's seeds, which no item asks for
    return loader
