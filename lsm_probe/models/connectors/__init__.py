"""Connectors: from the audio tower's states to the LLM's speech tokens.

The modules of the built-in ones are imported here, which registers them.
"""

from lsm_probe.models.connectors.base import CONNECTORS, Connector, LsmProjectorConfig, num_speech_tokens
from lsm_probe.models.connectors.conv import Conv
from lsm_probe.models.connectors.frame_stack import FrameStack
from lsm_probe.models.connectors.linear import Linear
from lsm_probe.models.connectors.swiglu_stack import SwigluStack
from lsm_probe.models.connectors.transformer import Transformer
from lsm_probe.models.connectors.window_qformer import WindowQFormer

__all__ = [
    "CONNECTORS",
    "Connector",
    "Conv",
    "FrameStack",
    "Linear",
    "LsmProjectorConfig",
    "SwigluStack",
    "Transformer",
    "WindowQFormer",
    "num_speech_tokens",
]
