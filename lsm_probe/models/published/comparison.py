"""Check whether a given part is the one that a release was trained with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def is_same_part(held: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    """Whether a part's tensors in a release equal those of the part that was given.

    Args:
        held: tensors of the part in the release, by their names in the LSM; these may be only some of its tensors.
        given: tensors of the given part, by the same names. Either side may be stored in half precision.
    """
    return all(name in given and _is_close(tensor, given[name]) for name, tensor in held.items())


def _is_close(one: Tensor, other: Tensor) -> bool:
    # Half precision has 8 to 11 significant bits.
    return one.shape == other.shape and torch.allclose(one.float(), other.float(), rtol=2**-7, atol=1e-6)
