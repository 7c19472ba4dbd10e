"""Resolves the name of a checkpoint; no other module decides what a name means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lsm_probe.errors import InputError
from lsm_probe.models.adapters import find_adapter, read_adapter
from lsm_probe.models.building import BUILTIN_LSMS
from lsm_probe.models.checkpoint_names import may_be_on_hub, require_folder
from lsm_probe.models.gguf_files import find_gguf
from lsm_probe.models.published import PARTS, Parts, cached_config, download_release, find_release, missing_parts

BUILTIN_LLM = "builtin:llm"
BUILTIN = (BUILTIN_LLM, *BUILTIN_LSMS)


@dataclass(frozen=True)
class Resolved:
    """The meaning of a checkpoint's name.

    Attributes:
        name: as it was given.
        kind: `builtin`; `adapter`; `published`, the release of a published system; `gguf`; `folder`, any other folder;
            `hub`, any other name, which may be on the model hub.
        path: the adapter's folder, the release's folder or file, or the GGUF file; None of the other kinds.
    """

    name: str
    kind: Literal["builtin", "adapter", "published", "gguf", "folder", "hub"]
    path: Path | None = None

    def find_base(self, given: str | None = None) -> str:
        """The name of an adapter's base; see [`lsm_probe.models.adapters.Adapter.find_base`]."""
        assert self.path is not None
        return read_adapter(self.path).find_base(given)


def resolve(name: str, *, download: bool = False) -> Resolved:
    """Resolves a name from the files of its folder, or, for a hub name, from the local copy of its files.

    Args:
        name: as of [`lsm_probe.load`].
        download: whether to query the hub for the `config.json` of a name, and to download the whole release of a
            published system or the whole adapter.

    Raises:
        InputError: there is no such built-in, folder or file, or the folder holds several GGUF files.
    """
    check_builtin(name)
    if name in BUILTIN:
        return Resolved(name, "builtin")
    if (adapter := find_adapter(name)) is not None:
        return Resolved(name, "adapter", adapter)
    find = download_release if download and may_be_on_hub(name) else find_release
    if (release := find(name)) is not None:
        return Resolved(name, "published", release)
    if (gguf := find_gguf(name)) is not None:
        return Resolved(name, "gguf", gguf)
    require_folder(name)
    if Path(name).is_dir():
        return Resolved(name, "folder")
    if download and cached_config(name) is None and (adapter := find_adapter(name, on_hub=True)) is not None:
        return Resolved(name, "adapter", adapter)
    return Resolved(name, "hub")


def check_builtin(name: str) -> None:
    """Raises InputError for a built-in checkpoint that does not exist."""
    if name.startswith("builtin:") and name not in BUILTIN:
        raise InputError(f"--ckpt {name} is unknown; built-in checkpoints are: {', '.join(BUILTIN)}")


def used_parts(name: str, parts: Parts, base: str | None = None) -> Parts:
    """Selects, among the given parts, those that a checkpoint (or the base of an adapter) leaves out.

    If any part is given, the model hub is asked for what a hub name stands for, and gives the whole release.

    Args:
        name, base: as of [`lsm_probe.load`].
        parts: the parts.

    Raises:
        InputError: there is no such checkpoint, it is damaged, or the hub does not give its files.
    """
    if parts == Parts():
        return parts
    found = resolve(name, download=True)
    if found.kind == "adapter":
        return used_parts(found.find_base(base), parts)
    if found.kind == "hub" and cached_config(name) is None:
        return parts  # the hub does not provide it: loading reports the reason
    needs = missing_parts(found.path) if found.kind == "published" and found.path else ()
    return Parts(**{part: getattr(parts, part) for part in PARTS if part in needs})


def check_parts(bases: Mapping[str, str | None], parts: Parts) -> None:
    """Refuses a part that every given checkpoint already has.

    Args:
        bases: names of the checkpoints, and of each the base to use if it is an adapter; None: the adapter's own.
        parts: the parts given.

    Raises:
        InputError: such a part was given, or as [`used_parts`].
    """
    used = [used_parts(name, parts, base) for name, base in bases.items()]
    for part in PARTS:
        given = getattr(parts, part)
        if given is not None and not any(getattr(each, part) for each in used):
            whose = f"{next(iter(bases))} has its own" if len(bases) == 1 else "every checkpoint has its own"
            none = " or was trained without" if part == "beats" else ""
            raise InputError(f"--{part} {given}: {whose}{none}; leave the option out")
