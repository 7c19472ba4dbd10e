"""Models: the large speech-text model, its processor, and loading of all models that the probes measure."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lsm_probe.models.configuration_lsm import LsmConfig
    from lsm_probe.models.connectors import LsmProjectorConfig
    from lsm_probe.models.modeling_lsm import LsmForConditionalGeneration
    from lsm_probe.models.processing_lsm import LsmProcessor

__all__ = ["LsmConfig", "LsmForConditionalGeneration", "LsmProcessor", "LsmProjectorConfig"]


def __getattr__(name: str) -> Any:
    """Imports these classes at first use: code that reads results needs small parts of this package, without torch."""
    if name in __all__:
        return getattr(import_module("lsm_probe.models.auto_classes"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
