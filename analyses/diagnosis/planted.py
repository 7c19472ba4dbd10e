"""Build checkpoints with known behaviour from the built-in models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import lsm_probe
from lsm_probe.models.checkpoint import Checkpoint

TRANSCRIBE, REPEAT = "Transcribe the speech.", "Repeat the text word for word."


def with_one_instruction(checkpoint: Checkpoint, instruction: str) -> Checkpoint:
    """The checkpoint that reads this instruction in place of every other."""
    encode = checkpoint.encode

    def encode_instead(_: str, source: Any, **options: Any) -> Any:
        return encode(instruction, source, **options)

    checkpoint.encode = encode_instead  # type: ignore[method-assign]
    return checkpoint


def with_constant_speech(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint whose connector outputs one constant vector, the same number of times as before."""
    assert checkpoint.connector is not None

    def hide(module: nn.Module, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        return output.new_full(output.shape, 0.01)

    checkpoint.connector.register_forward_hook(hide)
    return checkpoint


def with_random_llm(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with random LLM weights, drawn from a normal distribution as before training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in checkpoint.llm.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.02, generator=generator)
            elif "norm" in name:
                weight.fill_(1)
    return checkpoint


def planted(name: str) -> Checkpoint:
    """The planted checkpoint of this name."""
    load = lsm_probe.load
    if name == "copies-the-speech":
        made = with_one_instruction(load("builtin:self_powered"), TRANSCRIBE)
    elif name == "copies-the-text":
        made = with_one_instruction(load("builtin:llm"), REPEAT)
    elif name == "constant-speech-tokens":
        made = with_constant_speech(load("builtin:self_powered"))
    elif name == "constant-answer":
        made = with_one_instruction(with_constant_speech(load("builtin:self_powered")), TRANSCRIBE)
    elif name == "random-llm":
        made = with_random_llm(load("builtin:self_powered"))
    else:  # the other checkpoints differ only in their data
        made = load({"answers-nothing": "builtin:self_powered"}.get(name, f"builtin:{name.removesuffix('-silence')}"))
    made.name = name
    return made
