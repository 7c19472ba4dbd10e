"""Finds the identity of weights: verifies a folder's checksums, and hashes its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME, cached_file, extract_commit_hash

from lsm_probe.assets.cache import SEAL, sha256
from lsm_probe.checksums import read_checksums, verify
from lsm_probe.models.checkpoint_names import require_folder
from lsm_probe.models.identity import Checksums, WeightsIdentity
from lsm_probe.models.weight_files import find_weights


def check_folder(folder: str | Path) -> Checksums | None:
    """Verifies a local folder before any of its content is read.

    Returns:
        `verified`, or `unverified` for a folder without checksums; None if something else verifies the files: the
        revision of a hub name, or the pinned hash of a built-in checkpoint.

    Raises:
        InputError: the checksums do not match, or there is no such folder and the name is not on the hub.
    """
    require_folder(folder)
    path = Path(folder)
    if not path.is_dir():
        return None
    if verify(path):
        return "verified"
    return None if (path / SEAL).is_file() else "unverified"


def identify(folder: str | Path, config: PreTrainedConfig, checksums: Checksums | None = None) -> WeightsIdentity:
    """Identifies the weights of a folder or hub name, given its configuration and what [`check_folder`] returned."""
    weights = find_weights(Path(folder))
    return WeightsIdentity(
        model_type=config.model_type,
        revision=_find_revision(folder),
        checksums=checksums,
        weights_sha256=identify_files(weights, folder, checksums),
    )


def _find_revision(name: str | Path) -> str | None:
    """The commit of a hub name, whose files the hub's cache holds once they are loaded; None of a folder."""
    if Path(name).is_dir():
        return None
    try:
        return extract_commit_hash(cached_file(str(name), CONFIG_NAME, local_files_only=True), None)
    except OSError:
        return None


def identify_files(files: Sequence[Path], folder: str | Path, checksums: Checksums | None) -> dict[str, str] | None:
    """sha256 (hexadecimal) of files of a folder by their names; None of no files."""
    known = read_checksums(Path(folder)) if checksums == "verified" else {}  # avoids reading the weights again
    hashes = {path.name: known[path.name]["sha256"] if path.name in known else sha256(path) for path in files}
    return hashes or None
