"""The command that installs the packages of an optional extra."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires
from typing import Literal

Extra = Literal["speech", "interop", "voxtral", "evaluation", "scale", "vllm", "quantized", "notebooks"]


def install_command(extra: Extra) -> str:
    """The `pip install` command for an extra, with the packages that the metadata of lsm-probe list for it.

    `pip install lsm-probe[NAME]` would need an index that has lsm-probe. This command also works for a clone or a
    wheel.

    Example:
        >>> install_command("voxtral")
        'pip install "mistral-common[audio]>=1.11.7"'
    """
    try:
        listed = requires("lsm-probe") or []
    except PackageNotFoundError:  # imported from a clone that was not installed
        return f'pip install ".[{extra}]" in the clone of lsm-probe'
    marker = f"extra == '{extra}'"
    found = (line.partition(";")[0].strip() for line in listed if line.replace('"', "'").endswith(marker))
    return " ".join(["pip install", *(name if name.replace("-", "").isalnum() else f'"{name}"' for name in found)])
