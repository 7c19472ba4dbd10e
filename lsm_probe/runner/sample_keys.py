"""The keys that a checkpoint needs in each sample."""

from __future__ import annotations

from collections.abc import Sequence

from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError

SOURCE_KEYS = {"speech": "audio", "text": "text"}
"""The key of a sample that holds its source."""


def check_key(key: str, name: str, samples: Sequence[Sample]) -> None:
    """Refuse samples without a key that the checkpoint of this name needs.

    Raises:
        InputError: samples lack the key.
    """
    without = [sample.id for sample in samples if getattr(sample, key) is None]
    if without:
        remedy = "add it to the manifest" + (", or take --response generated" if key == "target" else "")
        raise InputError(
            f"{len(without)} of {len(samples)} samples have no `{key}`, which {name} needs here "
            f"(first: {without[0]}): {remedy}"
        )
