"""Norm-based attention compared with the equation in float64, on random input."""

import pytest
import torch

from lsm_probe.instruments.norms import (
    attention_weights,
    norm_attention,
    output_metric,
    recompose,
    row_norms,
    wanted_keys,
)


def brute_force(alpha, value, w_o):
    """`a(m, j) = |sum_h alpha^h_mj v^h(x_j) W_O^h|` and the norm of each head, straight from the equation, float64."""
    alpha, value, w_o = alpha.double(), value.double(), w_o.double()
    batch, heads, rows, keys = alpha.shape
    group = heads // value.shape[1]
    a = torch.zeros(batch, rows, keys, dtype=torch.float64)
    a_heads = torch.zeros(batch, heads, rows, keys, dtype=torch.float64)
    for b in range(batch):
        for m in range(rows):
            for j in range(keys):
                vectors = [alpha[b, h, m, j] * (value[b, h // group, j] @ w_o[h]) for h in range(heads)]
                a[b, m, j] = sum(vectors).norm()
                a_heads[b, :, m, j] = torch.stack([v.norm() for v in vectors])
    return a, a_heads


def norms(alpha, value, w_o, row_weight, key_mask, **options):
    metric = output_metric(w_o, value.shape[1])
    return norm_attention(alpha, value, metric, row_weight, wanted_keys(key_mask), **options)


def random_case(heads=6, kv_heads=2, rows=4, keys=9, width=5, d=17, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    alpha = torch.randn(batch, heads, rows, keys, generator=generator).softmax(-1)
    value = torch.randn(batch, kv_heads, keys, width, generator=generator)
    w_o = torch.randn(heads, width, d, generator=generator)
    return alpha, value, w_o


def everything(alpha):
    """Weights and mask that include every row and key."""
    batch, _, rows, keys = alpha.shape
    return torch.full((batch, rows), 1 / rows), torch.ones(batch, keys, dtype=torch.bool)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 3), (6, 2), (6, 1), (8, 4), (1, 1)])
@pytest.mark.parametrize("chunk", [1, 4, None])
def test_norms_equal_a_brute_force_computation(heads, kv_heads, chunk):
    alpha, value, w_o = random_case(heads, kv_heads)
    a, a_heads = norms(alpha, value, w_o, *everything(alpha), chunk=chunk)
    expected, expected_heads = brute_force(alpha, value, w_o)
    torch.testing.assert_close(a.double(), expected.mean(1), rtol=1e-5, atol=0)
    torch.testing.assert_close(a_heads.double(), expected_heads.mean(2), rtol=1e-5, atol=0)


def test_norms_are_exact_in_float64():
    alpha, value, w_o = (t.double() for t in random_case())
    row_weight, key_mask = everything(alpha)
    a, _ = norms(alpha, value, w_o, row_weight.double(), key_mask)
    torch.testing.assert_close(a, brute_force(alpha, value, w_o)[0].mean(1), rtol=1e-12, atol=0)


def test_row_norms_equal_a_brute_force_computation():
    alpha, value, w_o = random_case()
    found = row_norms(alpha, value, output_metric(w_o, 2), chunk=4)
    torch.testing.assert_close(found.double(), brute_force(alpha, value, w_o)[0], rtol=1e-5, atol=0)


def test_masked_keys_and_rows_of_weight_zero_do_not_count():
    alpha, value, w_o = random_case()
    row_weight = torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    key_mask = torch.ones(2, 9, dtype=torch.bool)
    key_mask[0, 6:] = False
    a, a_heads = norms(alpha, value, w_o, row_weight, key_mask)
    expected, expected_heads = brute_force(alpha, value, w_o)
    torch.testing.assert_close(a[0, :6].double(), expected[0, :2, :6].mean(0), rtol=1e-5, atol=0)
    torch.testing.assert_close(a_heads[1].double(), expected_heads[1].mean(1), rtol=1e-5, atol=0)
    assert (a[0, 6:] == 0).all()
    assert (a_heads[0, :, 6:] == 0).all()


@pytest.mark.parametrize("masked", [False, True])
def test_several_averages_in_one_call_have_the_bits_of_single_calls(masked):
    alpha, value, w_o = random_case()
    key_mask = torch.ones(2, 9, dtype=torch.bool)
    key_mask[0, 6:] = not masked
    weights = torch.rand(3, 2, 4)
    weights[2, 1] = torch.nan  # a sample without an answer
    a, a_heads = norms(alpha, value, w_o, weights, key_mask, chunk=4)
    for i, weight in enumerate(weights):
        alone, alone_heads = norms(alpha, value, w_o, weight, key_mask, chunk=4)
        torch.testing.assert_close(a[i], alone, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(a_heads[i], alone_heads, rtol=0, atol=0, equal_nan=True)


def test_with_one_head_the_norm_is_alpha_times_the_value_norm():
    alpha, value, w_o = random_case(heads=1, kv_heads=1)
    a, _ = norms(alpha, value, w_o, *everything(alpha))
    expected = alpha[:, 0].mean(1) * (value[:, 0] @ w_o[0]).norm(dim=-1)
    torch.testing.assert_close(a, expected)


def test_sum_over_heads_is_at_most_the_sum_of_the_heads_norms():
    alpha, value, w_o = random_case()
    a, a_heads = norms(alpha, value, w_o, *everything(alpha))
    assert (a <= a_heads.sum(1) * (1 + 1e-6)).all()
    assert (a < a_heads.sum(1) * 0.99).any()  # heads have different directions


def test_permuting_heads_does_not_change_the_norms():
    alpha, value, w_o = random_case(heads=4, kv_heads=4)
    order = torch.tensor([2, 0, 3, 1])
    straight, _ = norms(alpha, value, w_o, *everything(alpha))
    permuted, _ = norms(alpha[:, order], value[:, order], w_o[order], *everything(alpha))
    torch.testing.assert_close(straight, permuted)


def test_grouped_query_attention_equals_repeated_values():
    alpha, value, w_o = random_case(heads=6, kv_heads=2)
    grouped, _ = norms(alpha, value, w_o, *everything(alpha))
    repeated, _ = norms(alpha, value.repeat_interleave(3, 1), w_o, *everything(alpha))
    torch.testing.assert_close(grouped, repeated)


def test_the_weighted_vectors_sum_to_the_attention_output():
    alpha, value, w_o = random_case()
    bias = torch.randn(17)
    wide = value.repeat_interleave(3, 1)
    expected = torch.einsum("bhmj,bhje,hed->bmd", alpha.double(), wide.double(), w_o.double()) + bias.double()
    torch.testing.assert_close(recompose(alpha, value, w_o, bias).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["causal", "bool", "additive", "none"])
def test_attention_weights_of_chosen_rows_equal_the_full_softmax(kind):
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn(2, 6, 8, 5, generator=generator), torch.randn(2, 2, 8, 5, generator=generator)
    seen = torch.ones(8, 8, dtype=torch.bool).tril().expand(2, 1, 8, 8).clone()
    if kind != "causal":
        seen[1, :, :, :3] = False  # left padding
        seen[1, :, :3, :] = True  # rows of padding may have any value
    if kind == "none":
        seen[:] = True
    scores = query.double() @ key.double().repeat_interleave(3, 1).transpose(2, 3) * 0.3
    full = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    mask = {"bool": seen, "additive": torch.zeros(2, 1, 8, 8).masked_fill(~seen, torch.finfo(torch.float32).min)}
    rows = torch.tensor([[4, 7], [5, 6]])
    alpha = attention_weights(query, key, rows, scaling=0.3, mask=mask.get(kind), causal=kind == "causal")
    expected = torch.stack([full[b, :, rows[b]] for b in range(2)])
    torch.testing.assert_close(alpha.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("sinks", [None, torch.tensor([0.5, -2.0])])
def test_attention_weights_over_thousands_of_keys_are_precise(sinks):
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 2, 8, 16, generator=generator), torch.randn(1, 1, 5000, 16, generator=generator)
    options = {"scaling": 1.0, "mask": None, "causal": False, "sinks": sinks}
    rows = torch.arange(8)[None]
    alpha = attention_weights(query, key, rows, **options)
    expected = attention_weights(query.double(), key.double(), rows, **options)
    torch.testing.assert_close(alpha.sum(-1).double(), expected.sum(-1), rtol=1e-6, atol=0)
    scores = query.double() @ key.double().mT
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[None, :, None, None].expand(1, 2, 8, 1)], -1)
    torch.testing.assert_close(expected, scores.softmax(-1)[..., :5000], rtol=1e-12, atol=0)
