"""The trained miniatures in the package, stored as differences from the embedded models.

They are two arms of `analyses/speech_anchor_bias`: SmolLM2-135M-Instruct behind Whisper tiny.en, trained through
adapters on spoken commands.
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
