"""What the commands that write manifests have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lsm_probe.cli.progress import progress
from lsm_probe.data.build import build_manifests
from lsm_probe.data.corpora import Corpus
from lsm_probe.data.pools import read_pool
from lsm_probe.data.problems import LEFT_OUT, OnError, Problems
from lsm_probe.errors import InputError
from lsm_probe.folders import work_folder


def corpus_to_manifests(
    corpus: Corpus,
    root: Path,
    out: Path,
    *,
    splits: Sequence[str] | None,
    tasks: Sequence[str],
    instructions: Sequence[str],
    seed: int,
    limit: int | None,
    on_error: OnError,
    as_json: bool,
) -> None:
    """Reads a corpus and writes its manifests."""
    check_tasks(corpus, tasks)
    pool, problems = read_pool(*instructions).only(tasks), Problems()
    utterances = islice(corpus.read(root, problems, splits), limit)
    config = {
        "command": f"data {corpus.module}",
        "root": str(root.absolute()),
        "splits": splits,
        "tasks": tasks,
        "instructions": instructions,
        "seed": seed,
        "limit": limit,
    }
    # Always from the start: it takes a corpus's tables minutes at most.
    with work_folder(out, config, resume=None), progress() as on_progress:
        counts = build_manifests(
            utterances,
            out,
            tasks,
            pool,
            seed=seed,
            splits=splits or (),
            problems=problems,
            on_error=on_error,
            on_progress=lambda done: on_progress(corpus.title, done, None),
        )
        problems.write(out)
    show_counts(out, counts, problems, as_json=as_json)


def check_tasks(corpus: Corpus, tasks: Sequence[str]) -> None:
    known = list(dict.fromkeys([*corpus.tasks, "transcription"]))
    for task in tasks:
        if task not in known:
            raise InputError(f"--task {task!r} is none of {corpus.title}; choose from: {', '.join(known)}")


def show_counts(out: Path, counts: dict[str, int], problems: Problems, *, as_json: bool, **more: Any) -> None:
    """The manifests written and what was left out, on stdout."""
    if as_json:
        print(json.dumps({"out": str(out), "samples": counts, "left_out": len(problems.found), **more}))
        return
    for name, count in sorted(counts.items()):
        print(f"{out / name}: {count} samples")
    if problems.found:
        print(f"left out: {len(problems.found)}, each with its reason in {out / LEFT_OUT}")
