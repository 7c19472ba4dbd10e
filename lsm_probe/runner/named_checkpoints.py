"""Checkpoints given by name, in the form that a run measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lsm_probe.errors import InputError
from lsm_probe.models.adapters import CONFIG, is_adapter
from lsm_probe.models.checkpoint_names import may_be_on_hub
from lsm_probe.models.loading import load
from lsm_probe.models.lookup import look_up
from lsm_probe.models.published import PARTS, Parts
from lsm_probe.models.resolve import check_parts, used_parts
from lsm_probe.runner.run import Source, ToMeasure


def loading_for(name: str, loading: Mapping[str, Any]) -> dict[str, Any]:
    """Selects, from keyword arguments of [`load`] for several checkpoints, those for one: parts only if it lacks
    them."""
    used = used_parts(name, _parts(loading), loading.get("base"))
    return {key: value for key, value in loading.items() if key not in PARTS or getattr(used, key) is not None}


def _parts(loading: Mapping[str, Any]) -> Parts:
    return Parts(**{part: loading.get(part) for part in PARTS})


def named_checkpoints(
    names: Sequence[str], loading: dict[str, Any], *, base: str | None = None, source: Source | None = None
) -> list[ToMeasure]:
    """Checkpoints given by name.

    Args:
        names, loading, source: as in [`named_checkpoint`].
        base: the model that the adapters among them were trained on; None: the model that each adapter names.

    Raises:
        InputError: a base is given but no checkpoint is an adapter, or a part is given but no checkpoint lacks it.
    """
    adapters = [name for name in names if is_adapter(name)] or [name for name in names if may_be_on_hub(name)]
    if base is not None and not adapters:
        raise InputError(f"--base {base} cannot be used: {', '.join(names)} is not an adapter (a folder with {CONFIG})")
    check_parts({name: base if name in adapters else None for name in names}, _parts(loading))
    with_base = {**loading, "base": base}
    return [named_checkpoint(name, with_base if name in adapters else loading, source=source) for name in names]


def named_checkpoint(name: str, loading: dict[str, Any], *, source: Source | None = None) -> ToMeasure:
    """A checkpoint given by name.

    Args:
        name: as [`load`] takes it.
        loading: keyword arguments of [`load`], for several checkpoints.
        source: its input, if it differs from the checkpoint's own.
    """

    def find_source() -> Source | None:
        found = look_up(name, base=loading.get("base"))  # raises for an unknown name, whatever the source
        return source or found

    return ToMeasure(name, lambda: load(name, **loading_for(name, loading)), find_source)
