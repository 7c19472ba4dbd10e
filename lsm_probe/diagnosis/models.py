"""The models of a diagnosis: each is loaded once, when it is first needed, and encodes each utterance once."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal

import torch
from accelerate.utils.memory import clear_device_cache

from lsm_probe.memory import fitting
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.runner.run import ToMeasure


@dataclass
class LazyModel:
    """A checkpoint that is loaded when it is first needed.

    Attributes:
        to_measure: the checkpoint's name and how to load it.
        on_load: called with the checkpoint after it is loaded.
    """

    to_measure: ToMeasure
    on_load: Callable[[Checkpoint], None] = lambda checkpoint: None
    _loaded: Checkpoint | None = None
    _device: torch.device | None = None
    _encoding_once: ExitStack = field(default_factory=ExitStack)

    @property
    def name(self) -> str:
        return self.to_measure.name

    @property
    def source(self) -> Literal["speech", "text"]:
        """The checkpoint's input; this loads the checkpoint if its name does not determine the input."""
        return self.to_measure.look_up() or self.get().source

    def get(self) -> Checkpoint:
        """The checkpoint on its device."""
        checkpoint = self.peek()
        if self._device is not None:
            with fitting(checkpoint.name, self._device):
                checkpoint.model.to(self._device)  # type: ignore[arg-type]  # transformers wraps `to` without its type
            self._device = None
        return checkpoint

    def peek(self) -> Checkpoint:
        """The checkpoint, possibly on the CPU (see [`park`]): for its tokenizer."""
        if self._loaded is None:
            self._loaded = self.to_measure.load()
            self._encoding_once.enter_context(self._loaded.encoding_speech_once())
            self.on_load(self._loaded)
        return self._loaded

    def park(self) -> None:
        """Move the model to the CPU's memory, so that another model can use the device, until [`get`] is called.

        A model that Accelerate or a quantiser has placed on devices cannot be moved, so it stays there.
        """
        model = None if self._loaded is None else self._loaded.model
        placed = hasattr(model, "hf_device_map") or getattr(model, "is_quantized", False)
        if model is None or placed or model.device.type == "cpu":
            return
        self._device = model.device
        model.to("cpu")  # type: ignore[arg-type]
        clear_device_cache()

    def free(self) -> None:
        """Drop the model to free its memory. A model that the caller passed in returns to its original device."""
        self._encoding_once.close()
        if self._loaded is not None:
            self.get()  # it may be on the CPU
        self._loaded = self._device = None
        gc.collect()
        clear_device_cache()
