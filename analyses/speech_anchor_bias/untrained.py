"""Build the arms before any training, with a random connector.

python analyses/speech_anchor_bias/untrained.py SEED FOLDER
"""

import sys

import lsm_probe
from lsm_probe import assets
from lsm_probe.training.config import read_config

settings = read_config(f"{__file__.rpartition('/')[0]}/arms/transcribe.yaml").model
lsm_probe.build_lsm(
    assets.speech_encoder(),
    assets.language_model(),
    projector=settings.connector,
    encoder_context=settings.encoder_context,
    seed=int(sys.argv[1]),
).save(sys.argv[2])
