"""Training of LSM checkpoints with transformers' Trainer, and measuring the bias during any training."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsm_probe.training.bias_callback import BiasCallback as BiasCallback

__all__ = ["BiasCallback"]


def __getattr__(name: str) -> Any:
    if name == "BiasCallback":  # imported at first use, so that the command line does not load torch
        from lsm_probe.training.bias_callback import BiasCallback

        return BiasCallback
    raise AttributeError(f"module 'lsm_probe.training' has no attribute {name!r}")
