"""Ask five kinds of instruction about each of the first 24 natural clips.

    python analyses/open_speech/each_kind.py asked/manifest.jsonl each_kind.jsonl

So that D_i can be compared between kinds of instruction on the same clips. The instructions are the first wordings in
`instructions.yaml`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent
CLIPS = 24
GROUPS = {"one word": ("sentiment", "politeness", "question"), "free": ("title", "items")}
"""Kinds that ask for one word, and kinds that ask for words of one's own."""


def main(manifest: Path, out: Path) -> None:
    pool = yaml.safe_load((HERE / "instructions.yaml").read_text(encoding="utf-8"))["tasks"]
    wordings = {each["task"]: each["instructions"][0] for each in pool}
    lines = []
    for line in manifest.read_text(encoding="utf-8").splitlines()[:CLIPS]:
        clip = json.loads(line)
        for task in (task for tasks in GROUPS.values() for task in tasks):
            kept = {key: clip[key] for key in ("audio", "text")}
            lines.append({"id": f"{clip['id']}/{task}", "task": task, "instruction": wordings[task], **kept})
    out.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
