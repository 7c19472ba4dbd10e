"""Strict readers of YAML, JSON and compressed files: no value changes its type, and no repeated key is dropped."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from lsm_probe.errors import InputError

_PACKED = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ": "xz", b"BZh": "bzip2", b"PK\x03\x04": "zip"}
"""First bytes of a file -> the compression that they mark."""


class RepeatedKey(ValueError):
    """A key occurs twice in one JSON object, so it is unclear which of its values is meant."""


def load_yaml(content: str | bytes) -> Any:
    """Reads YAML 1.2: only `true` and `false` are booleans, so `on`, `off`, `yes` and `no` are strings. `010` and
    `1:30` are not numbers, and no value is read as a date.

    Raises:
        yaml.YAMLError: it is not YAML, or a key occurs twice in a mapping.
    """
    return yaml.load(content, _Yaml)  # safe: a SafeLoader builds plain values only


def load_json(content: str | bytes) -> Any:
    """Reads JSON.

    Raises:
        RepeatedKey: a key occurs twice in an object.
        ValueError, RecursionError: it is not JSON that can be read.
    """
    return json.loads(content, object_pairs_hook=_without_repeats)


def open_unpacked(path: Path) -> gzip.GzipFile | io.BufferedReader:
    """Opens a file to read its bytes; a gzip file is decompressed, whatever its name.

    Raises:
        InputError: it is compressed in another format.
        OSError: it cannot be opened.
    """
    with path.open("rb") as file:
        begin = file.read(5)
    for magic, kind in _PACKED.items():
        if begin.startswith(magic):
            raise InputError(f"{path} is packed with {kind}: unpack it, or pack it with gzip")
    return gzip.open(path, "rb") if begin.startswith(b"\x1f\x8b") else path.open("rb")


class _Yaml(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                twice = f"the key {key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
            seen.add((key.tag, str(key.value)))
        return super().construct_mapping(node, deep)


# The core schema of YAML 1.2 (section 10.3.2), without octal numbers; and `<<` as in YAML 1.1.
_Yaml.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Yaml.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def _without_repeats(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise RepeatedKey(f"the key {key!r} is there twice")
        values[key] = value
    return values
