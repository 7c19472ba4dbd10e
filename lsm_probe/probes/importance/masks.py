"""Masks of the most important weights: the top share of each matrix, their clustering, the overlap of two sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from lsm_probe.errors import InputError
from lsm_probe.files import replacing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Masks:
    """The most important weights of each matrix.

    Attributes:
        share: the share of each matrix's weights that is marked.
        packed: eight weights per byte (`numpy.packbits`), by name of the matrix.
        shapes: of the matrices.
    """

    share: float
    packed: dict[str, NDArray[np.uint8]]
    shapes: dict[str, tuple[int, ...]]

    def mask(self, name: str) -> NDArray[np.bool_]:
        """True where a weight of the matrix is among the most important ones, in the matrix's own shape."""
        shape = self.shapes[name]
        return np.unpackbits(self.packed[name], count=int(np.prod(shape))).astype(bool).reshape(shape)

    def save(self, path: Path) -> None:
        """Writes the masks as one `.npz` file."""
        arrays: dict[str, Any] = {f"mask/{name}": bits for name, bits in self.packed.items()}
        arrays |= {f"shape/{name}": np.array(shape) for name, shape in self.shapes.items()}
        with replacing(path) as temporary:
            np.savez_compressed(temporary, share=np.array(self.share), **arrays)

    @classmethod
    def load(cls, path: Path) -> Masks:
        """Reads what [`save`] wrote.

        Raises:
            InputError: there are no readable masks.
        """
        try:
            with np.load(path, allow_pickle=False) as stored:
                names = [key.removeprefix("mask/") for key in stored.files if key.startswith("mask/")]
                shapes = {name: tuple(int(n) for n in stored[f"shape/{name}"]) for name in names}
                return cls(float(stored["share"]), {name: stored[f"mask/{name}"] for name in names}, shapes)
        except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
            raise InputError(f"{path} holds no readable masks: make them with --masks") from error


def top_masks(scores: Mapping[str, Tensor], share: float) -> Masks:
    """Marks the top share of each matrix. Each matrix is ranked by itself, because their scales differ.

    The code of arXiv 2402.14700 does the same.

    Args:
        scores: importance of each weight, by name of the matrix.
        share: between 0 and 1; at least one weight of each matrix is marked.
    """
    masks = {name: top_share(score, share).numpy() for name, score in scores.items()}
    return Masks(
        share,
        {name: np.packbits(mask.ravel()) for name, mask in masks.items()},
        {name: mask.shape for name, mask in masks.items()},
    )


def top_share(score: Tensor, share: float, *, largest: bool = True) -> Tensor:
    """Marks `round(share * numel)` weights, at least one, with the largest (or smallest) scores; boolean."""
    import torch  # imported here, because saved masks are read without torch

    flat = score.flatten()
    count = max(1, round(share * flat.numel()))
    chosen = torch.topk(flat, count, largest=largest, sorted=False).indices
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[chosen] = True
    return mask.view(score.shape)


def jaccard(first: Masks, second: Masks) -> dict[str, float]:
    """Overlap of two sets of masks by matrix: `|A and B| / |A or B|`.

    Two independent masks of share p overlap by about p / (2 - p).

    Raises:
        InputError: the masks mark different shares, or belong to matrices of different models.
    """
    if first.share != second.share:
        raise InputError(f"the masks mark {first.share} and {second.share} of the weights: make them with one --masks")
    if first.shapes != second.shapes:
        raise InputError("the masks are of different matrices: only models of one architecture can be overlaid")
    overlap = {}
    for name in first.packed:
        a, b = first.mask(name), second.mask(name)
        overlap[name] = float((a & b).sum() / (a | b).sum())
    return overlap


def clustering(masks: Masks) -> dict[str, dict[str, float]]:
    """How much a mask concentrates in rows and in columns ("rank clustering", arXiv 2509.23755).

    For each matrix and axis, take the fullest rows (columns), as many as the mask's share of all rows. The number is
    the share of all marked weights that they hold: the mask's share if it is spread evenly, 1 if it fills whole rows.
    """
    found = {}
    for name in masks.packed:
        mask = masks.mask(name)
        matrices = mask.reshape(-1, *mask.shape[-2:])  # experts that share one tensor are separate matrices
        found[name] = {
            axis: float(np.mean([_concentration(m.sum(i), masks.share) for m in matrices if m.any()]))
            for axis, i in (("rows", 1), ("columns", 0))
        }
    return found


def _concentration(counts: NDArray[np.int64], share: float) -> float:
    fullest = np.sort(counts)[::-1][: max(1, round(share * len(counts)))]
    return float(fullest.sum() / counts.sum())
