"""The trained miniatures in the package, stored as differences from the embedded models.

All are SmolLM2-135M-Instruct behind Whisper tiny.en, trained through adapters. `vanilla_asr` and `self_powered` are
arms of `analyses/speech_anchor_bias` (spoken commands), `open_vanilla_asr` and `open_self_powered` of
`analyses/open_speech` (any English sentences).
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from lsm_probe.models.stored_training import Training

_FOLDER = Path(str(resources.files("lsm_probe") / "models" / "arms"))


def builtin_arms() -> list[str]:
    """Names of the trained miniatures in the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def read_training(name: str) -> Training:
    """The training of this name; see [`builtin_arms`]."""
    return Training.read(arm_file(name))


def arm_file(name: str) -> Path:
    """The file that holds an arm."""
    return _FOLDER / f"{name}.safetensors"
