"""Make `builtin:commands`: 24 held-out commands, each with a training and a held-out instruction.

    python analyses/speech_anchor_bias/probe.py self-powered/test held-out/test

The targets are SmolLM2's own answers to the transcripts.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from lsm_probe.data.manifest import builtin_manifest

UTTERANCES = 24
TARGET = builtin_manifest("commands").parent


def rows(folder: str) -> list[dict[str, str]]:
    lines = (Path(folder) / "manifest.jsonl").read_text(encoding="utf-8").splitlines()[:UTTERANCES]
    return [json.loads(line) | {"folder": folder} for line in lines]


def main(trained: str, held_out: str) -> None:
    TARGET.mkdir(exist_ok=True)
    with (TARGET / "manifest.jsonl").open("w", encoding="utf-8") as manifest:
        for pair in zip(rows(trained), rows(held_out), strict=True):
            for row, kind in zip(pair, ("trained", "held-out"), strict=True):
                source = Path(row.pop("folder")) / row["audio"]
                shutil.copyfile(source, TARGET / f"{row['id']}.flac")
                row |= {"audio": f"{row['id']}.flac", "id": f"{row['id']}/{kind}"}
                manifest.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
