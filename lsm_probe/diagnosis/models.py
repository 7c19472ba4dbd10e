"""The models of a diagnosis: each is loaded when it is first needed, and only once."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate.utils.memory import clear_device_cache

from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.runner.run import ToMeasure


@dataclass
class LazyModel:
    """A checkpoint that is loaded when it is first needed.

    Attributes:
        to_measure: its name, and how it is loaded.
        on_load: called with the checkpoint when it is loaded.
    """

    to_measure: ToMeasure
    on_load: Callable[[Checkpoint], None] = lambda checkpoint: None
    _loaded: Checkpoint | None = None
    _device: torch.device | None = None

    @property
    def name(self) -> str:
        return self.to_measure.name

    @property
    def source(self) -> Literal["speech", "text"]:
        """What it reads; it is loaded if its name does not determine this."""
        return self.to_measure.look_up() or self.get().source

    def get(self) -> Checkpoint:
        """The checkpoint on its device."""
        checkpoint = self.peek()
        if self._device is not None:
            checkpoint.model.to(self._device)  # type: ignore[arg-type]  # transformers wraps `to` without its type
            self._device = None
        return checkpoint

    def peek(self) -> Checkpoint:
        """The checkpoint, which may be parked: for its tokenizer."""
        if self._loaded is None:
            self._loaded = self.to_measure.load()
            self.on_load(self._loaded)
        return self._loaded

    def park(self) -> None:
        """Move the model to the CPU's memory, so that another model can use the device, until [`get`] is called.

        A model that Accelerate or a quantiser has placed cannot be moved, and stays where it is.
        """
        model = None if self._loaded is None else self._loaded.model
        placed = hasattr(model, "hf_device_map") or getattr(model, "is_quantized", False)
        if model is None or placed or model.device.type == "cpu":
            return
        self._device = model.device
        model.to("cpu")  # type: ignore[arg-type]
        clear_device_cache()

    def free(self) -> None:
        """Forget the model, so that its memory can be used again. One that the caller gave stays where it was."""
        if self._loaded is not None:
            self.get()  # it may be parked
        self._loaded = self._device = None
        gc.collect()
        clear_device_cache()


def in_tokens_of(reader: Checkpoint, writer: Checkpoint, responses: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Responses of one model as token ids of another, where their tokenizers differ.

    Args:
        reader: whose token ids are wanted.
        writer: whose token ids the responses are.
        responses: token ids by sample id.

    Returns:
        Token ids by sample id: the same text, closed with EOS where the response was. Responses without text are left
        out.
    """
    if has_same_tokenizer(reader, writer):
        return dict(responses)
    found = {}
    for sample, ids in responses.items():
        again = reader.encode_response(writer.decode(ids))
        ended = bool(ids) and ids[-1] in writer.eos_token_ids
        if again:
            found[sample] = again if ended or len(again) < 2 else again[:-1]
    return found


def has_same_tokenizer(reader: Checkpoint, writer: Checkpoint) -> bool:
    """Whether all token ids of one model stand for the same text in another, which may have more tokens."""
    return writer.tokenizer.get_vocab().items() <= reader.tokenizer.get_vocab().items()
