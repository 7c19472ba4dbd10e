"""The two engines that respond to the prompts of self-powered data: transformers in this process, or a server."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lsm_probe.data.augmentation.at_scale import augment_at_scale, require_datatrove
from lsm_probe.data.augmentation.local import BATCH_SIZE
from lsm_probe.data.augmentation.run import augment
from lsm_probe.data.augmentation.servers import IN_FLIGHT, find_server
from lsm_probe.errors import InputError
from lsm_probe.models.loading import load
from lsm_probe.models.lookup import load_prompter

Augment = Callable[..., dict[str, Any]]
"""[`augment`] without its first argument, the checkpoint."""


def load_engine(
    llm: str, *, loading: dict[str, Any], server: str | None = None, workers: int = 1, batch_size: int | None = None
) -> Augment:
    """Loads the LLM, or finds the server that runs it and tests it with one prompt.

    Args:
        llm: the text LLM: folder, hub name or `builtin:llm`.
        loading: keyword arguments of [`load`].
        server: `vllm`, or the URL of a running server; None generates in this process.
        workers: processes that send prompts to a running server.
        batch_size: prompts in one batch, or simultaneous requests; None takes the engine's default.

    Raises:
        InputError: LLM or server cannot be used, or an option is for the other engine.
    """
    if server is None:
        if workers > 1:
            raise InputError("--workers is for --server URL; in this process raise --batch-size instead")
        return partial(augment, load(llm, **loading), batch_size=batch_size or BATCH_SIZE)
    if loading["device"] != "auto":
        raise InputError("--device is for generation in this process; CUDA_VISIBLE_DEVICES chooses for --server vllm")
    require_datatrove()
    prompter = load_prompter(llm, template=loading["template"], date=loading["date"])
    found = find_server(server, prompter, dtype=loading["dtype"])

    def augment_through_server(
        *data: Any, on_progress: Callable[[int, int, float, int], None], **options: Any
    ) -> dict[str, Any]:
        # The server's tokens and seconds are unknown here.
        return augment_at_scale(
            prompter,
            *data,
            server=found,
            workers=workers,
            in_flight=batch_size or IN_FLIGHT,
            on_progress=lambda done, total: on_progress(done, 0, 0.0, total),
            **options,
        )

    return augment_through_server
