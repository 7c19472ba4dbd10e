"""Norm-based attention: pure maths over tensors, no model and no I/O.

Definition (Kobayashi et al., EMNLP 2020, arXiv 2004.10102, section 3; arXiv 2410.03798, equation 6): what key `j`
sends to row `m` is the vector `sum_h alpha^h_mj f^h(x_j)` with `f^h(x_j) = v^h(x_j) W_O^h`, the value bias inside `v`
and the output bias left out. `a(m, j)` is its Euclidean norm.

Building the vectors would take `[heads, rows, keys, d]`. But `a(m, j)^2 = alpha_mj^T G_j alpha_mj` with the small
Gram matrix `G_j[h, i] = f^h(x_j) f^i(x_j)^T = v^h(x_j) (W_O^h W_O^i^T) v^i(x_j)^T`, exactly, and the square roots of
`G_j`'s diagonal are the norms of the single heads. The products of the weights are made once; G being symmetric, half
of them do, so that a key costs about `d^2 / 2` multiply-adds a layer, where the layer itself costs some `12 d^2`.

Axis names: B batch, H query heads, R rows (query positions), K keys (key positions), e head width, d model width.
All sums are accumulated in float32 (float64 for float64 input).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_weights(
    query: Tensor,
    key: Tensor,
    rows: Tensor,
    *,
    scaling: float,
    mask: Tensor | None,
    causal: bool,
    sinks: Tensor | None = None,
) -> Tensor:
    """Recomputes the attention probabilities of chosen rows.

    Args:
        query: `[B, H, T, e]`, after the position encoding.
        key: `[B, H_kv, K, e]`, one for each group of query heads.
        rows: `[B, R]`, the query positions wanted.
        scaling: factor on the scores.
        mask: what transformers hands to its sdpa attention: None, boolean (True = may attend) or additive,
            `[B or 1, H or 1, T, K]`.
        causal: whether a row sees only keys at or before it; used where there is no mask.
        sinks: `[H]`, a score of each head that takes its share of the probability and has no value (gpt-oss).

    Returns:
        alpha, `[B, H, R, K]`, float32 (float64 for float64 input).
    """
    dtype = _compute_dtype(query)
    batch, heads, _, width = query.shape
    kv_heads, keys = key.shape[1:3]
    chosen = query.gather(2, rows[:, None, :, None].expand(batch, heads, -1, width)).to(dtype)
    grouped = chosen.reshape(batch, kv_heads, -1, width)  # the query heads of a group side by side with their rows
    scores = (grouped @ key.to(dtype).transpose(2, 3)).view(batch, heads, -1, keys).mul_(scaling)
    if mask is not None:
        mask = mask.expand(batch, -1, -1, keys)
        mask = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, keys))
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    elif causal:
        seen = torch.arange(keys, device=rows.device) <= rows[:, None, :, None]
        scores = scores.masked_fill_(~seen, -torch.inf)
    if sinks is None:
        return scores.softmax(-1)
    sink = sinks.to(dtype)[:, None, None].expand(batch, -1, scores.shape[2], 1)
    return torch.cat([scores, sink], -1).softmax(-1)[..., :-1]


def output_metric(w_o: Tensor, kv_heads: int) -> list[Tensor]:
    """The products `W_O^h W_O^i^T` that turn values into Gram matrices; worth keeping, they depend on weights alone.

    Args:
        w_o: output projection, `[H, e, d]`, one matrix for each *query* head.
        kv_heads: number of groups of query heads that share a value.

    Returns:
        A matrix for each group g, `[e, (g + 1) * q * q * e]` with `q = H / kv_heads`: the heads of g against the heads
        of groups 0 to g. float32 (float64 for float64 input).
    """
    w = w_o.to(_compute_dtype(w_o)).unflatten(0, (kv_heads, -1))  # [G, q, e, d]
    return [torch.einsum("qed,gpfd->egqpf", w[g], w[: g + 1]).flatten(1) for g in range(kv_heads)]


def norm_attention(
    alpha: Tensor, value: Tensor, metric: list[Tensor], row_weight: Tensor, key_mask: Tensor, *, chunk: int = 256
) -> tuple[Tensor, Tensor]:
    """A_j: norm-based attention to each key, averaged over rows (arXiv 2410.03798, equations 6 and 7).

    Args:
        alpha: attention probabilities, `[B, H, R, K]`.
        value: `[B, H_kv, K, e]`, before it is repeated over the query heads of a group.
        metric: [`output_metric`] of the output projection.
        row_weight: `[B, R]`, weights of the rows, summing to 1 over the real rows of a sample, 0 for padding.
        key_mask: `[B, K]`, True for the keys wanted; the others come back as 0 and cost nothing.
        chunk: keys worked on at a time; bounds the memory at about `chunk * H * (q * e + H + 2 R)` numbers.

    Returns:
        `(a, a_heads)`: `[B, K]`, the norm of the sum over heads; and `[B, H, K]`, the norm of each head.
    """
    dtype = _compute_dtype(alpha)
    keys_alpha = alpha.permute(0, 3, 1, 2)[key_mask]  # [N, H, R], N = all wanted keys of the batch
    keys_value = value.transpose(1, 2)[key_mask].to(dtype)  # [N, H_kv, e]
    weights = row_weight.to(dtype)[key_mask.nonzero()[:, 0]]  # [N, R]
    summed, by_head = [], []
    for a_HR, v_Ge, w_R in zip(keys_alpha.split(chunk), keys_value.split(chunk), weights.split(chunk), strict=True):
        gram = _gram(v_Ge, metric)
        squares = (a_HR * (gram @ a_HR)).sum(1)  # [n, R]
        summed.append((squares.clamp_min_(0).sqrt_() * w_R).sum(-1))
        head_norms = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        by_head.append((a_HR * w_R[:, None]).sum(-1) * head_norms)
    a = alpha.new_zeros(key_mask.shape)
    a_heads = alpha.new_zeros(*key_mask.shape, alpha.shape[1])
    if summed:
        a[key_mask] = torch.cat(summed)
        a_heads[key_mask] = torch.cat(by_head)
    return a, a_heads.transpose(1, 2)


def row_norms(alpha: Tensor, value: Tensor, metric: list[Tensor], *, chunk: int = 256) -> Tensor:
    """a(m, j) itself, of every row and key: what [`norm_attention`] averages over rows.

    Args:
        alpha: `[B, H, R, K]`.
        value: `[B, H_kv, K, e]`.
        metric: [`output_metric`] of the output projection.
        chunk: keys worked on at a time, over all samples.

    Returns:
        `[B, R, K]`.
    """
    keys_alpha = alpha.permute(0, 3, 1, 2).flatten(0, 1)  # [B * K, H, R]
    keys_value = value.transpose(1, 2).flatten(0, 1).to(_compute_dtype(alpha))  # [B * K, H_kv, e]
    norms = []
    for a_HR, v_Ge in zip(keys_alpha.split(chunk), keys_value.split(chunk), strict=True):
        norms.append((a_HR * (_gram(v_Ge, metric) @ a_HR)).sum(1).clamp_min_(0).sqrt_())
    return torch.cat(norms).unflatten(0, (len(alpha), -1)).transpose(1, 2)


def recompose(alpha: Tensor, value: Tensor, w_o: Tensor, bias: Tensor | None) -> Tensor:
    """What the attention module must have put out at the rows, from the same alpha, v and W_O: the self-check.

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


def _gram(value: Tensor, metric: list[Tensor]) -> Tensor:
    """`G_j` for keys `value [n, G, e]`: `[n, H, H]`."""
    n, groups, width = value.shape
    q = math.isqrt(metric[0].shape[1] // width)  # query heads of a group
    gram = value.new_empty(n, groups, q, groups, q)
    for g, block in enumerate(metric):
        half = (value[:, g] @ block).view(n, g + 1, q * q, width)
        products = half.mul_(value[:, : g + 1, None]).sum(-1).view(n, g + 1, q, q)
        gram[:, g, :, : g + 1] = products.transpose(1, 2)
        gram[:, :g, :, g] = products[:, :g].transpose(2, 3)
    return gram.view(n, groups * q, groups * q)
