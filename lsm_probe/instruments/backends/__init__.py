"""Backends of the attention probe: activations come from our own capture, from TransformerLens or from nnsight.

A backend is one function, a [`RunPass`], that runs a teacher-forced pass and shows each layer's attention to a visitor.
The three backends obtain the activations independently, so that each can check the others. Only the norms
([`norm_attention`]) and the sums by segment are the same code. The libraries run eager attention on a second model
with the same weights, so the LLM itself does not change.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from torch import Tensor
from transformers import PreTrainedModel

from lsm_probe.errors import InputError
from lsm_probe.instruments.backends.foreign import RunPass
from lsm_probe.instruments.capture import Visit, capture

BACKENDS = ("native", "transformer-lens", "nnsight")


@contextmanager
def open_backend(backend: str, llm: PreTrainedModel) -> Iterator[RunPass]:
    """Prepares a causal LM for passes through a backend; afterwards the LLM is as before.

    The weights must not change inside the block, because products of them are stored.

    Args:
        backend: one of `BACKENDS`.
        llm: a causal LM in evaluation mode that runs `sdpa` attention.

    Raises:
        InputError: the backend is unknown or not installed, or it, or our own capture, cannot measure the model.
    """
    if backend == "native":
        with capture(llm) as captured:

            def run_pass(inputs: Tensor, mask: Tensor, rows: Tensor, row_mask: Tensor, visit: Visit) -> list[Tensor]:
                with captured.at_rows(rows, row_mask, visit):
                    llm(inputs_embeds=inputs, attention_mask=mask, use_cache=False, logits_to_keep=1)
                return captured.errors_by_sample()

            yield run_pass
    elif backend == "transformer-lens":
        from lsm_probe.instruments.backends.transformer_lens import TransformerLensPass

        yield TransformerLensPass(llm)
    elif backend == "nnsight":
        from lsm_probe.instruments.backends.nnsight import NNsightPass

        yield NNsightPass(llm)
    else:
        raise InputError(f"backend {backend!r} is unknown; choose one of: {', '.join(BACKENDS)}")


def backend_versions(backend: str) -> dict[str, str]:
    """Version of the library behind a backend, as stored with a result."""
    return {} if backend == "native" else {backend: version(backend)}
