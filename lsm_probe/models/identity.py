"""What tells one checkpoint from another: hashes of its weights and of its prompts, and whether its files are whole."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from lsm_probe.assets.cache import SEAL, sha256
from lsm_probe.checksums import read_checksums, verify
from lsm_probe.errors import InputError
from lsm_probe.models.audio_llm_processor import AudioLlmProcessor
from lsm_probe.models.checkpoint_names import require_folder
from lsm_probe.models.dates import pinned_date
from lsm_probe.models.processing_lsm import LsmProcessor
from lsm_probe.models.prompts import prompt_sha256
from lsm_probe.models.templates import AUDIO_TOKEN, TEMPLATES


def check_folder(folder: str | Path) -> str | None:
    """Verifies a local folder before anything of it is read.

    Returns:
        `verified`, or `unverified` for a folder without checksums; None where something else vouches for the files: a
        hub name's revision, a built-in checkpoint's pin.

    Raises:
        InputError: the checksums do not hold, or there is no such folder and the name is none of the hub's.
    """
    require_folder(folder)
    path = Path(folder)
    if not path.is_dir():
        return None
    if verify(path):
        return "verified"
    return None if (path / SEAL).is_file() else "unverified"


def identify(folder: str | Path, config: PreTrainedConfig, checksums: str | None = None) -> dict[str, Any]:
    """What tells one checkpoint from another: kind, hub revision where it has one, sha256 of its weights.

    `checksums` is what [`check_folder`] said of the folder.
    """
    identity: dict[str, Any] = {}
    if config is not None:
        identity["model_type"] = config.model_type
        revision = getattr(config, "_commit_hash", None)
        if revision:
            identity["revision"] = revision
    if checksums is not None:
        identity["checksums"] = checksums
    # The first kind that is there is what transformers loads.
    weights = sorted(Path(folder).glob("*.safetensors")) or sorted(Path(folder).glob("pytorch_model*.bin"))
    if weights:
        known = read_checksums(Path(folder)) if checksums == "verified" else {}  # read once, not twice
        identity["weights_sha256"] = {
            path.name: known[path.name]["sha256"] if path.name in known else sha256(path) for path in weights
        }
    return identity


def describe_prompt(
    tokenizer: Any,
    template: str,
    processor: LsmProcessor | AudioLlmProcessor | None,
    name: str,
    date: str | None,
) -> dict[str, str]:
    """What tells the prompts of one checkpoint from those of another.

    Args:
        tokenizer: of the checkpoint.
        template: name of the prompt template.
        processor: of a model that hears; None for a text LLM.
        name: of the checkpoint, for the warning.
        date: the date that was asked for, if any.

    Returns:
        `prompt_sha256`, the hash of an example prompt, and `date` if the template prints one. Empty if the template
        renders no prompt: whoever asks for a prompt is told why.

    Warns:
        UserWarning: a date was asked for that the template does not print.
    """
    try:
        if isinstance(processor, AudioLlmProcessor):
            example = processor.example()
        else:
            example = TEMPLATES[template](tokenizer, "{instruction}", AUDIO_TOKEN if processor else "{source}")
    except (InputError, LookupError):
        return {}
    parts = [getattr(processor, "processor", None), tokenizer] if template.startswith("chat") else []
    written = pinned_date(*parts)
    if date is not None and written is None:
        warnings.warn(f"--date {date} changes nothing: the prompt template of {name} writes no date", stacklevel=3)
    return {"prompt_sha256": prompt_sha256(example), **({} if written is None else {"date": written})}
