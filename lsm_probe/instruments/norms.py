"""Norm-based attention: pure maths over tensors, no model and no I/O.

Definition (Kobayashi et al., EMNLP 2020, arXiv 2004.10102, section 3; arXiv 2410.03798, equation 6): what key `j`
sends to row `m` is the vector `sum_h alpha^h_mj f^h(x_j)` with `f^h(x_j) = v^h(x_j) W_O^h`, the value bias inside `v`
and the output bias excluded. `a(m, j)` is its Euclidean norm.

Building the vectors would take `[heads, rows, keys, d]`. But `a(m, j)^2 = alpha_mj^T G_j alpha_mj` with the small
Gram matrix `G_j[h, i] = f^h(x_j) f^i(x_j)^T = v^h(x_j) (W_O^h W_O^i^T) v^i(x_j)^T`, exactly, and the square roots of
`G_j`'s diagonal are the norms of the single heads. The products of the weights are computed once. `G_j` is symmetric,
so half of it is enough: every pair of heads is computed once and counted twice.

Axis names: B batch, H query heads, G groups of query heads that share a value, q query heads of a group, R rows (query
positions), K keys (key positions), N keys of all samples, P pairs of heads, e head width, d model width.
All sums are accumulated in float32 (float64 for float64 input).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_NUMBERS_ON_CPU, _NUMBERS_ON_DEVICE = 2**22, 2**27
"""Numbers computed at a time. On the CPU they are 16 MiB of float32, about the size of the caches; larger chunks were
slower for 7B models. On other devices they are 512 MiB, so that there are few kernel launches."""


def attention_weights(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    *,
    scaling: float,
    mask: Tensor | None,
    causal: bool,
    first_row: int = 0,
    sinks: Tensor | None = None,
) -> Tensor:
    """Recomputes the attention probabilities of chosen rows.

    Args:
        query: `[B, H, T, e]`, after the position encoding.
        key: `[B, H_kv, K, e]`, one for each group of query heads.
        rows: `[B, R]`, the query positions to compute.
        scaling: factor on the scores.
        mask: the mask that transformers gives its sdpa attention: None, boolean (True = may attend) or additive,
            `[B or 1, H or 1, T, K]`.
        causal: whether a row attends only to keys at or before it; used if there is no mask.
        first_row: no row is before this position. A causal row attends to all keys up to here, so these need no mask.
        sinks: `[H]`, a score for each head that takes part of the probability but has no value (gpt-oss).

    Returns:
        alpha, `[B, H, R, K]`, float32 (float64 for float64 input). In memory keys are the outermost axis, as
        [`norm_attention`] reads them.
    """
    dtype = _compute_dtype(query)
    batch, heads, _, width = query.shape
    kv_heads, keys = key.shape[1:3]
    chosen = query.gather(2, rows[:, None, :, None].expand(batch, heads, -1, width)).to(dtype) * scaling
    grouped = chosen.reshape(batch * kv_heads, -1, width)  # the query heads of a group side by side with their rows
    scores = key.to(dtype).flatten(0, 1) @ grouped.mT  # [B * H_kv, K, q * R]
    scores = scores.transpose(0, 1).reshape(keys, batch, heads, -1)
    if mask is not None:
        mask = mask.expand(batch, -1, -1, keys)
        mask = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, keys)).permute(3, 0, 1, 2)
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    elif causal:
        positions = torch.arange(first_row, keys, device=rows.device)[:, None, None, None]
        scores[first_row:].masked_fill_(positions > rows[:, None], -torch.inf)
    sink = None if sinks is None else sinks.to(dtype)[:, None]
    alpha = _softmax_over_keys(scores, sink)
    return alpha.permute(1, 2, 3, 0)


def _softmax_over_keys(scores: Tensor, sink: Tensor | None) -> Tensor:
    """Softmax over the first axis of `scores [K, B, H, R]`, in place, with `sink [H, 1]` as a further key.

    `Tensor.softmax` adds up numbers of an outer axis one after another, which loses a digit over thousands of keys;
    `Tensor.sum` does not.
    """
    largest = scores.amax(0)
    if sink is not None:
        largest = largest.maximum(sink)
    alpha = scores.sub_(largest).exp_()
    total = alpha.sum(0)
    if sink is not None:
        total += (sink - largest).exp_()
    return alpha.div_(total)


@dataclass(frozen=True)
class OutputMetric:
    """Products `W_O^h W_O^i^T` of the output projection, as [`output_metric`] makes them: about `d^2 / 2` numbers.

    The groups form a ring, and each is paired with itself and with the next `G // 2`. This covers all pairs of groups.
    Every group has equally many pairs, so batched products need no loop over groups.

    Attributes:
        own: pairs of heads inside each group, `[G, e, 1, q * (q + 1) / 2, e]`.
        others: pairs with the heads of the next groups, `[G, e, G // 2, q * q, e]`.
        places: positions of each group's pairs, `own` and then `others`, in a flattened `[H, H]`, `[G, P]`.
    """

    own: Tensor
    others: Tensor
    places: Tensor


def output_metric(w_o: Tensor, kv_heads: int) -> OutputMetric:
    """Multiplies the output projections of heads with each other. Reuse it, because it depends only on weights.

    Args:
        w_o: output projection, `[H, e, d]`, one matrix for each *query* head.
        kv_heads: number of groups of query heads that share a value.

    Returns:
        float32 (float64 for float64 input). A pair that stands for two entries of the Gram matrix counts twice.
    """
    w = w_o.to(_compute_dtype(w_o)).unflatten(0, (kv_heads, -1))  # [G, q, e, d]
    q, reach = w.shape[1], kv_heads // 2
    steps, heads = torch.arange(reach + 1), torch.arange(q)
    step, head, other = torch.cartesian_prod(steps, heads, heads).unbind(1)
    kept = (step > 0) | (head >= other)
    step, head, other = step[kept], head[kept], other[kept]
    # Groups on opposite sides of the ring are paired from both.
    once = ((step == 0) & (head == other)) | (2 * step == kv_heads)
    group = torch.arange(kv_heads)[:, None]
    places = (group * q + head) * len(w_o) + (group + step) % kv_heads * q + other
    kept, times = kept.nonzero()[:, 0].to(w.device), torch.where(once, 1, 2)[:, None].to(w.device)
    ring = torch.cat([w, w[:reach]])
    pairs = []
    for g in range(kv_heads):
        products = torch.einsum("ped,srfd->esprf", w[g], ring[g : g + reach + 1]).flatten(1, 3)
        pairs.append(products[:, kept] * times)  # [e, P, e]
    own, others = torch.stack(pairs).split([q * (q + 1) // 2, reach * q * q], 2)
    return OutputMetric(
        own[:, :, None].contiguous(), others.unflatten(2, (reach, q * q)).contiguous(), places.to(w.device)
    )


def wanted_keys(key_mask: Tensor) -> Tensor | None:
    """The keys that a mask `[B, K]` on the host selects, in the form that [`norm_attention`] takes: None if all.

    Returns:
        Positions in the flattened `[K, B]`, `[N]`.
    """
    return None if key_mask.all() else key_mask.t().flatten().nonzero()[:, 0]


def norm_attention(
    alpha: Tensor,
    value: Tensor,
    metric: OutputMetric,
    row_weight: Tensor,
    keys: Tensor | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A_j: norm-based attention to each key, averaged over rows (arXiv 2410.03798, equations 6 and 7).

    Several averages, such as one over all rows and one over the answer's rows, share the Gram matrices and norms.

    A key costs `e^2` multiply-adds for each pair of heads, together about `d^2 / 2`, where the projections of a layer
    cost some `12 d^2`; then `H^2 R` for the squares, and `2 H R` for the means over rows.

    Args:
        alpha: attention probabilities, `[B, H, R, K]`; with keys outermost in memory they are not copied.
        value: `[B, H_kv, K, e]`, before it is repeated over the query heads of a group.
        metric: [`output_metric`] of the output projection.
        row_weight: `[..., B, R]`, weights of the rows for each average, summing to 1 over the real rows of a sample, 0
            for padding.
        keys: [`wanted_keys`], on the device of alpha; the other keys are returned as 0 at no cost.
        chunk: number of keys processed at a time; by default chosen for the device.

    Returns:
        `(a, a_heads)`: `[..., B, K]`, the norm of the sum over heads; and `[..., B, H, K]`, the norm of each head.
    """
    batch, heads, rows, length = alpha.shape
    averages = row_weight.to(alpha.dtype).reshape(-1, batch, rows)
    weights = [average.expand(length, -1, -1).flatten(0, 1)[:, None] for average in averages]  # [K * B, 1, R] each
    alpha, value = _keys_first(alpha, value)
    found = []
    for part in _parts(keys, len(alpha), chunk or _keys_at_once(alpha, metric)):
        a_HR = alpha[part]
        gram = _gram(value[:, part], metric)
        norms = _squares(a_HR, gram).sqrt_()[:, None]  # [n, 1, R]
        head_norms = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt_()
        means = [
            torch.cat([(norms * w_R).sum(2), (a_HR * w_R).sum(2).mul_(head_norms)], 1)
            for w_R in (weight[part] for weight in weights)
        ]
        found.append(torch.stack(means))  # [averages, n, 1 + H]
    a = torch.cat(found, 1) if found else alpha.new_zeros(len(weights), 0, 1 + heads)
    if keys is not None:
        a = a.new_zeros(len(weights), length * batch, 1 + heads).index_copy_(1, keys, a)
    a = a.view(*row_weight.shape[:-2], length, batch, 1 + heads).movedim(-3, -1)  # [..., B, 1 + H, K]
    return a[..., 0, :], a[..., 1:, :]


def row_norms(alpha: Tensor, value: Tensor, metric: OutputMetric, *, chunk: int | None = None) -> Tensor:
    """a(m, j) for every row and key; [`norm_attention`] gives its mean over rows.

    Args:
        alpha: `[B, H, R, K]`.
        value: `[B, H_kv, K, e]`.
        metric: [`output_metric`] of the output projection.
        chunk: as in [`norm_attention`].

    Returns:
        `[B, R, K]`.
    """
    batch = len(alpha)
    alpha, value = _keys_first(alpha, value)
    parts = _parts(None, len(alpha), chunk or _keys_at_once(alpha, metric))
    norms = [_squares(alpha[part], _gram(value[:, part], metric)).sqrt_() for part in parts]
    return torch.cat(norms).unflatten(0, (-1, batch)).permute(1, 2, 0)


def recompose(alpha: Tensor, value: Tensor, w_o: Tensor, bias: Tensor | None) -> Tensor:
    """The attention module's output at the rows, recomputed from alpha, v and W_O for the self-check.

    Args:
        alpha: `[B, H, R, K]` over *all* keys.
        value: `[B, H_kv, K, e]`.
        w_o: `[H, e, d]`.
        bias: output bias `[d]`, or None.

    Returns:
        `[B, R, d]`.
    """
    batch, heads, rows, keys = alpha.shape
    kv_heads = value.shape[1]
    mixed = alpha.reshape(batch, kv_heads, -1, keys) @ value.to(alpha.dtype)
    mixed = mixed.view(batch, heads, rows, -1).transpose(1, 2).flatten(2)  # [B, R, H * e]
    output = mixed @ w_o.to(alpha.dtype).flatten(0, 1)
    return output if bias is None else output + bias.to(alpha.dtype)


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _keys_at_once(alpha: Tensor, metric: OutputMetric) -> int:
    """Number of keys of `alpha [N, H, R]` to process at a time, so that intermediate tensors have a suitable size."""
    numbers = (metric.own.numel() + metric.others.numel()) // metric.own.shape[1] + alpha.shape[1:].numel()
    return max(1, (_NUMBERS_ON_CPU if alpha.device.type == "cpu" else _NUMBERS_ON_DEVICE) // numbers)


def _parts(keys: Tensor | None, total: int, chunk: int) -> Sequence[slice | Tensor]:
    """The selected keys in chunks: as slices, which need no copy, if all keys are selected."""
    if keys is not None:
        return keys.split(chunk)
    return [slice(first, first + chunk) for first in range(0, total, chunk)]


def _keys_first(alpha: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of all samples as one axis: alpha `[K * B, H, R]` and value `[G, K * B, e]`, in the same dtype."""
    value = value.permute(1, 2, 0, 3).flatten(1, 2)
    return alpha.permute(3, 0, 1, 2).flatten(0, 1), value.to(alpha.dtype)


def _gram(value: Tensor, metric: OutputMetric) -> Tensor:
    """`[n, H, H]` whose quadratic forms are those of `G_j`, with the same diagonal, for keys `value [G, n, e]`."""
    groups, n, _ = value.shape
    reach = metric.others.shape[2]
    next_groups = torch.cat([value[1:], value[:reach]]).unfold(0, reach, 1).permute(0, 1, 3, 2)  # [G, n, G // 2, e]
    pairs = torch.cat(
        [_products(value, metric.own, value[:, :, None]), _products(value, metric.others, next_groups)], 2
    )
    heads = groups * math.isqrt(metric.others.shape[3])
    gram = value.new_zeros(n, heads * heads)
    return gram.index_copy_(1, metric.places.flatten(), pairs.transpose(0, 1).flatten(1)).view(n, heads, heads)


def _products(value: Tensor, metric: Tensor, partner: Tensor) -> Tensor:
    """Pairs of heads of each group: values `[G, n, e]` through the metric times values `[G, n, s, e]`, `[G, n, P]`."""
    half = torch.bmm(value, metric.flatten(2)).unflatten(2, metric.shape[2:])
    return half.mul_(partner[:, :, :, None]).sum(-1).flatten(2)


def _squares(alpha: Tensor, gram: Tensor) -> Tensor:
    """`alpha_mj^T G_j alpha_mj` of keys and rows: alpha `[n, H, R]` and gram `[n, H, H]` give `[n, R]`."""
    return torch.bmm(gram, alpha).mul_(alpha).sum(1).clamp_min_(0)
