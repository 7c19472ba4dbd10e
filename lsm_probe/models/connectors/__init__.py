"""Connectors: from the audio tower's states to the LLM's speech tokens."""

from lsm_probe.models.configuration_lsm import LsmConfig, LsmProjectorConfig
from lsm_probe.models.connectors.base import Connector
from lsm_probe.models.connectors.conv import Conv
from lsm_probe.models.connectors.frame_stack import FrameStack
from lsm_probe.models.connectors.linear import Linear
from lsm_probe.models.connectors.window_qformer import WindowQFormer

CONNECTORS: dict[str, type[Connector]] = {
    "window_qformer": WindowQFormer,
    "frame_stack": FrameStack,
    "conv": Conv,
    "linear": Linear,
}


def make_connector(config: LsmConfig) -> Connector:
    """The connector of a model of this configuration, its weights as torch draws them."""
    return CONNECTORS[config.projector_config.connector](
        config.projector_config, encoder_dim=config.audio_config.d_model, llm_dim=config.text_config.hidden_size
    )


def num_speech_tokens(config: LsmProjectorConfig, num_states: int) -> int:
    """Speech tokens the connector makes of a piece of `num_states` valid states."""
    return CONNECTORS[config.connector].num_tokens(config, num_states)


__all__ = [
    "CONNECTORS",
    "Connector",
    "Conv",
    "FrameStack",
    "Linear",
    "WindowQFormer",
    "make_connector",
    "num_speech_tokens",
]
