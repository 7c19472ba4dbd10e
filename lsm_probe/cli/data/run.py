"""What the commands that write manifests have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsm_probe.cli.progress import progress
from lsm_probe.data.build import build_manifests
from lsm_probe.data.corpora import Corpus
from lsm_probe.data.pools import read_pool
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.errors import InputError
from lsm_probe.files import replacing
from lsm_probe.folders import alone_in

LEFT_OUT = "left_out.txt"


def corpus_to_manifests(
    corpus: Corpus,
    root: Path,
    out: Path,
    *,
    splits: Sequence[str] | None,
    tasks: Sequence[str],
    instructions: Sequence[str],
    seed: int,
    on_error: OnError,
    as_json: bool,
) -> None:
    """Reads a corpus and writes its manifests."""
    check_tasks(corpus, tasks)
    pool, problems = read_pool(*instructions), Problems()
    utterances = corpus.read(root, problems, splits)
    with alone_in(out), progress() as on_progress:
        counts = build_manifests(
            utterances,
            out,
            tasks,
            pool,
            seed=seed,
            problems=problems,
            on_error=on_error,
            on_progress=lambda done: on_progress(corpus.title, done, None),
        )
        write_left_out(out, problems)
    show_counts(out, counts, problems, as_json=as_json)


def check_tasks(corpus: Corpus, tasks: Sequence[str]) -> None:
    known = list(dict.fromkeys([*corpus.tasks, "transcription"]))
    for task in tasks:
        if task not in known:
            raise InputError(f"--task {task!r} is none of {corpus.title}; choose from: {', '.join(known)}")


def write_left_out(out: Path, problems: Problems) -> None:
    """Every entry that was left out, a line each; no file where there is none."""
    path = out / LEFT_OUT
    if not problems.found:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in problems.found), encoding="utf-8")


def show_counts(out: Path, counts: dict[str, int], problems: Problems, *, as_json: bool, **more: Any) -> None:
    """The manifests written and what was left out, on stdout."""
    if as_json:
        print(json.dumps({"out": str(out), "samples": counts, "left_out": len(problems.found), **more}))
        return
    for name, count in sorted(counts.items()):
        print(f"{out / name}: {count} samples")
    if problems.found:
        print(f"left out: {len(problems.found)}, each with its reason in {out / LEFT_OUT}")
