"""What a backend is: a function that runs one pass."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lsm_probe.instruments.capture import Visit


class RunPass(Protocol):
    """One pass of an LLM, its attention shown layer by layer."""

    def __call__(self, inputs: Tensor, mask: Tensor, rows: Tensor, row_mask: Tensor, visit: Visit, /) -> list[Tensor]:
        """Runs the LLM and shows every layer to `visit`, in order.

        Args:
            inputs: embedded prompts and responses, `[batch, tokens, d]`, right-padded.
            mask: `[batch, tokens]`, 1 for real tokens.
            rows: query positions to look at, `[batch, rows]`.
            row_mask: `[batch, rows]`, False for padding among them; a padded row names a real position.
            visit: shown a [`LayerAttention`] for each layer.

        Returns:
            The self-check's relative errors, `[layers, rows]` for each sample: how far what was shown (alpha, v and
            W_O) is from reproducing the attention output that the same means reported.

        Raises:
            InputError: if an error exceeds [`error_bounds`].
        """
