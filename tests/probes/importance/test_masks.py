"""Masks: exactly the share asked for, on disk and back, how far they gather and overlap."""

import itertools

import numpy as np
import pytest
import torch

from lsm_probe.errors import InputError
from lsm_probe.probes.importance.masks import Masks, clustering, jaccard, top_masks, top_share


def drawn(seed=0, **shapes):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


def masks_of(**arrays):
    """Masks with these weights marked; the share is that of the first."""
    found = top_masks({name: torch.as_tensor(array, dtype=torch.float32) for name, array in arrays.items()}, 0.5)
    first = next(iter(arrays.values()))
    packed = {name: np.packbits(np.asarray(array, dtype=bool).ravel()) for name, array in arrays.items()}
    return Masks(float(np.mean(first)), packed, found.shapes)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.03, 0.05, 0.1, 1 / 3, 0.5, 0.77, 0.999])
def test_exactly_the_share_is_marked_and_one_weight_at_least(share, largest):
    for shape in [(1,), (7,), (3, 5), (8, 8), (20, 31), (2, 3, 5)]:
        score = drawn(x=shape)["x"]
        mask = top_share(score, share, largest=largest)
        count = max(1, round(share * score.numel()))
        assert mask.dtype == torch.bool
        assert mask.shape == score.shape
        assert int(mask.sum()) == count
        ordered = sorted(score.flatten().tolist(), reverse=largest)
        assert sorted(score[mask].tolist(), reverse=largest) == ordered[:count]


def test_equal_scores_are_marked_up_to_the_share_too():
    assert int(top_share(torch.zeros(10, 10), 0.05).sum()) == 5
    assert int(top_share(torch.zeros(10, 10), 0.05, largest=False).sum()) == 5


def test_each_matrix_has_its_own_share():
    """A matrix with scores a million times as large does not get all marks."""
    scores = drawn(small=(9, 11), large=(9, 11))
    scores["large"] *= 1e6
    masks = top_masks(scores, 0.1)
    assert {name: int(masks.mask(name).sum()) for name in scores} == {"small": 10, "large": 10}
    for name, score in scores.items():
        np.testing.assert_array_equal(masks.mask(name), top_share(score, 0.1).numpy())


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 9), (8, 8), (1, 17), (2, 3, 5)])
def test_masks_are_the_same_after_saving_and_loading(tmp_path, shape):
    """Eight weights share a byte; the unused bits of the last byte belong to no weight."""
    masks = top_masks(drawn(**{"model.layers.0.mlp.up_proj.weight": shape, "other": (4, 4)}), 0.3)
    masks.save(tmp_path / "new" / "masks.npz")
    loaded = Masks.load(tmp_path / "new" / "masks.npz")
    assert loaded.share == masks.share
    assert loaded.shapes == masks.shapes
    assert list(loaded.packed) == list(masks.packed)
    for name in masks.packed:
        assert loaded.mask(name).shape == masks.shapes[name]
        assert loaded.mask(name).dtype == bool
        np.testing.assert_array_equal(loaded.mask(name), masks.mask(name))


def test_a_byte_holds_eight_weights():
    masks = top_masks(drawn(x=(10, 10)), 0.1)
    assert masks.packed["x"].dtype == np.uint8
    assert len(masks.packed["x"]) == 13


def plain_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def other_arrays(path):
    np.savez(path, sums=np.ones(3))


def cut(path):
    top_masks(drawn(x=(40, 40)), 0.1).save(path)
    path.write_bytes(path.read_bytes()[:-60])


@pytest.mark.parametrize(
    "break_it",
    [
        lambda path: path.write_bytes(b"no masks at all"),
        lambda path: path.write_bytes(b""),
        lambda path: None,
        plain_array,
        other_arrays,
        cut,
    ],
    ids=["garbage", "empty", "missing", "plain array", "other arrays", "cut"],
)
def test_a_folder_without_masks_is_refused_in_one_line(tmp_path, break_it):
    path = tmp_path / "masks.npz"
    break_it(path)
    with pytest.raises(InputError, match=r"masks.npz holds no readable masks: make them with --masks"):
        Masks.load(path)


# Overlap


def test_equal_masks_overlap_fully_and_disjoint_masks_not_at_all():
    mask = np.array([[1, 0, 0, 0], [0, 0, 1, 0]])
    first, second = masks_of(x=mask), masks_of(x=mask[::-1].copy())
    assert jaccard(first, first) == {"x": 1.0}
    assert jaccard(first, second) == {"x": 0.0}


def test_overlap_is_intersection_over_union():
    first = masks_of(x=np.array([[1, 1, 1, 0, 0, 0]]), y=np.array([[1, 0, 0, 0]]))
    second = masks_of(x=np.array([[0, 1, 1, 1, 0, 0]]), y=np.array([[1, 0, 0, 0]]))
    assert jaccard(first, second) == {"x": 0.5, "y": 1.0}
    assert jaccard(second, first) == jaccard(first, second)


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_independent_masks_overlap_by_chance(share):
    first, second = (top_masks(drawn(seed, x=(300, 300)), share) for seed in (1, 2))
    assert jaccard(first, second)["x"] == pytest.approx(share / (2 - share), rel=0.1)


def test_masks_of_other_shares_or_matrices_are_refused():
    scores = drawn(x=(4, 6), y=(3, 3))
    masks = top_masks(scores, 0.25)
    with pytest.raises(InputError, match=r"mark 0.25 and 0.5 of the weights"):
        jaccard(masks, top_masks(scores, 0.5))
    for other in (drawn(x=(6, 4), y=(3, 3)), drawn(x=(4, 6)), drawn(x=(4, 6), z=(3, 3))):
        with pytest.raises(InputError, match="masks are of different matrices"):
            jaccard(masks, top_masks(other, 0.25))


# Clustering


def test_a_mask_of_whole_rows_is_concentrated_in_rows_only():
    mask = np.zeros((20, 30), bool)
    mask[[3, 11]] = True
    found = clustering(masks_of(x=mask, y=mask.T.copy()))
    assert found["x"]["rows"] == found["y"]["columns"] == 1.0
    # Each column holds two of its twenty: three columns of thirty hold a tenth of all that is marked.
    assert found["x"]["columns"] == found["y"]["rows"] == pytest.approx(0.1)


def test_an_evenly_spread_mask_is_not_concentrated():
    mask = np.zeros((20, 20), bool)
    for i, j in itertools.product(range(20), range(20)):
        mask[i, j] = (i + j) % 10 == 0
    assert clustering(masks_of(x=mask))["x"] == {"rows": pytest.approx(0.1), "columns": pytest.approx(0.1)}


def test_a_random_mask_is_hardly_concentrated():
    found = clustering(top_masks(drawn(x=(400, 300)), 0.1))["x"]
    for axis in ("rows", "columns"):
        assert 0.1 < found[axis] < 0.15


def test_one_marked_weight_is_all_in_its_row():
    mask = np.zeros((5, 5), bool)
    mask[2, 2] = True
    assert clustering(masks_of(x=mask))["x"] == {"rows": 1.0, "columns": 1.0}


def test_experts_in_one_tensor_have_the_same_concentration_as_separate_ones():
    """Of `[experts, rows, columns]` some models keep all experts in one parameter."""
    expert = np.zeros((10, 20), bool)
    expert[4] = True
    found = clustering(masks_of(x=np.stack([expert, expert, expert])))["x"]
    assert found["rows"] == 1.0
    assert found["columns"] == pytest.approx(0.1)
