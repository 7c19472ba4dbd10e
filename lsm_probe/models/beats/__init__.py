"""BEATs, an audio encoder that SALMONN uses beside Whisper's: waveform to features, features to states."""

from lsm_probe.models.beats.checkpoint import convert_beats, convert_beats_config
from lsm_probe.models.beats.configuration import BeatsConfig
from lsm_probe.models.beats.features import beats_features, num_beats_states
from lsm_probe.models.beats.modeling import Beats

__all__ = ["Beats", "BeatsConfig", "beats_features", "convert_beats", "convert_beats_config", "num_beats_states"]
