"""Schemas of stored results: the version written now, and what earlier versions held in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lsm_probe.errors import InputError

SCHEMA_VERSION = 2
"""Version 2 stores what a control and a cascade are made of; version 1 told it in their names alone."""


def read_schema(schema: str) -> tuple[str, int]:
    """Measurement and version of a schema such as `lsm-probe/attention/2`.

    Raises:
        InputError: it is no schema of lsm-probe, or a later one.
    """
    program, _, rest = schema.partition("/")
    name, _, version = rest.rpartition("/")
    if program != "lsm-probe" or not name or version not in map(str, range(1, SCHEMA_VERSION + 1)):
        raise InputError(f"schema {schema!r} is unknown: this version of lsm-probe reads up to {SCHEMA_VERSION}")
    return name, int(version)


def upgrade_identity(checkpoint: Mapping[str, Any], version: int) -> dict[str, Any]:
    """A checkpoint's identity as the present schema stores it."""
    upgraded = dict(checkpoint)
    if version == 1 and "control" in checkpoint:
        llm, _, speech = checkpoint["name"].partition(" at length of ")
        upgraded["control"] = {"control_of": llm, "source_length_of": [speech] if speech else []}
    if version == 1 and "transcriber" in checkpoint:
        upgraded["cascade_of"] = checkpoint["name"].split(" + ", 1)
    return upgraded
