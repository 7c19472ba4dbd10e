"""The held-out loss, and its increase when the speech or the instruction comes from another sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsm_probe.data.sample import Sample
from lsm_probe.intervals import interval, leave_one_out, number_clusters
from lsm_probe.training.dataset import IGNORED

CONTROLS = ("speech", "instruction")
"""The inputs that are shuffled between samples."""


def sample_losses(logits: Tensor, shift_labels: Tensor) -> Tensor:
    """Negative log-likelihood and token count of each response, `[batch, 2]`, accumulated in float32.

    Args:
        logits: `[batch, response, vocab_size]`.
        shift_labels: `[batch, response]`, the token each position predicts, -100 for none.
    """
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), shift_labels, ignore_index=IGNORED, reduction="none"
    )
    return torch.stack([losses.sum(-1), (shift_labels != IGNORED).sum(-1)], dim=-1)


def summarise(losses: dict[str, NDArray[Any]], samples: Sequence[Sample]) -> dict[str, float]:
    """Losses in nats per response token, with paired 95 % intervals over utterances of the differences.

    Args:
        losses: `[samples, 2]` of [`sample_losses`] under `true` and, where it could be made, each of [`CONTROLS`].
        samples: the held-out samples, in the same order.

    Returns:
        `eval_loss`; for each control `eval_loss_{control}_shuffled` and `eval_{control}_gain`, the increase in loss
        when that input comes from another sample, with `_low` and `_high` if there are at least three utterances; and
        `eval_loss_task_{task}` if there are several tasks.
    """
    clusters = number_clusters([sample.utterance for sample in samples])
    true = losses["true"].astype(np.float64)
    metrics = {"eval_loss": _per_token(true)}
    for control in CONTROLS:
        if control in losses:
            shuffled = losses[control].astype(np.float64)
            metrics[f"eval_loss_{control}_shuffled"] = _per_token(shuffled)
            gain = _per_token(shuffled) - _per_token(true)
            low, high = interval(gain, _left_out(shuffled, clusters) - _left_out(true, clusters))
            metrics[f"eval_{control}_gain"] = gain
            if not np.isnan(low):
                metrics |= {f"eval_{control}_gain_low": float(low), f"eval_{control}_gain_high": float(high)}
    tasks = np.array([sample.task or "" for sample in samples])
    names = sorted(set(tasks.tolist()))
    if len(names) > 1:
        metrics |= {f"eval_loss_task_{name or 'none'}": _per_token(true[tasks == name]) for name in names}
    return metrics


def _per_token(losses: NDArray[np.float64]) -> float:
    return float(losses[:, 0].sum() / losses[:, 1].sum())


def _left_out(losses: NDArray[np.float64], clusters: NDArray[np.int64]) -> NDArray[np.float64]:
    """Nats per token without each utterance in turn, `[utterances]`."""
    nats, tokens = leave_one_out(losses, clusters).T
    # With one utterance, no samples are left.
    with np.errstate(invalid="ignore"):
        return nats / tokens
