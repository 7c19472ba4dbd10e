"""Saved progress of a run: finished batches on disk, which an interrupted run reuses only with the same settings."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from lsm_probe.errors import InputError
from lsm_probe.files import replacing


@dataclass(frozen=True)
class Record:
    """The measurement of one sample.

    Attributes:
        sample: its row of `samples.jsonl`.
        utterance: key of its utterance.
        arrays: the probe's arrays, by name. Empty if the sample was left out.
        excluded: why it was left out, or None.
    """

    sample: dict[str, Any]
    utterance: str
    arrays: dict[str, np.ndarray]
    excluded: str | None = None


class Progress:
    """Keep the records of finished batches in a folder; do nothing without a folder.

    Args:
        folder: where to keep them; created with the first batch.
        settings: everything that affects the numbers.

    Raises:
        InputError: the folder holds the progress of a run with other settings.
    """

    def __init__(self, folder: Path | None, settings: dict[str, Any]):
        self.folder = folder
        # JSON with sorted keys, so that the same settings have the same hash in another process.
        text = json.dumps(settings, sort_keys=True, default=str)
        self.stamp = hashlib.sha256(text.encode()).hexdigest()
        stamp_file = None if folder is None else folder / "settings.sha256"
        if stamp_file is not None and stamp_file.exists() and stamp_file.read_text() != self.stamp:
            raise InputError(
                f"{folder} holds an interrupted run with another checkpoint, data or settings: use those again, or "
                "start again without --resume"
            )

    def get(self, batch: int) -> list[Record] | None:
        """The records of a finished batch, or None."""
        path = self._path(batch)
        if path is None or not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as stored:
                described = json.loads(str(stored["records"]))
                return [
                    Record(**about, arrays={name: stored[f"{i}/{name}"] for name in names})
                    for i, (about, names) in enumerate(described)
                ]
        except (OSError, ValueError, KeyError, BadZipFile):
            return None  # damaged, for example by a system crash: run the batch again

    def put(self, batch: int, records: list[Record]) -> list[Record]:
        """Saves the records of a batch atomically, and returns them."""
        path = self._path(batch)
        if path is None or self.folder is None:
            return records
        with replacing(self.folder / "settings.sha256") as temporary:
            temporary.write_text(self.stamp)
        described = [
            ({"sample": r.sample, "utterance": r.utterance, "excluded": r.excluded}, list(r.arrays)) for r in records
        ]
        arrays = {f"{i}/{name}": a for i, r in enumerate(records) for name, a in r.arrays.items()}
        with replacing(path) as temporary:
            np.savez(temporary, records=np.array(json.dumps(described)), allow_pickle=False, **arrays)
        return records

    def _path(self, batch: int) -> Path | None:
        return None if self.folder is None else self.folder / f"batch-{batch:06d}.npz"
