"""Makes the large speech-text model and its processor known to transformers' Auto classes."""

from transformers import AutoConfig, AutoModelForMultimodalLM, AutoProcessor

from lsm_probe.models.configuration_lsm import LsmConfig
from lsm_probe.models.connectors import LsmProjectorConfig
from lsm_probe.models.modeling_lsm import LsmForConditionalGeneration
from lsm_probe.models.processing_lsm import LsmProcessor

AutoConfig.register(LsmConfig.model_type, LsmConfig)
AutoModelForMultimodalLM.register(LsmConfig, LsmForConditionalGeneration)
AutoProcessor.register(LsmConfig, LsmProcessor)

__all__ = ["LsmConfig", "LsmForConditionalGeneration", "LsmProcessor", "LsmProjectorConfig"]
