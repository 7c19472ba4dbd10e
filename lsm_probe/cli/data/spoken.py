"""What the commands that speak text have in common: a folder to go on in, a bar, and how fast it went."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from lsm_probe.cli.data.run import show_counts
from lsm_probe.cli.progress import progress
from lsm_probe.data.build import build_manifests
from lsm_probe.data.pools import read_pool
from lsm_probe.data.problems import OnError, Problems
from lsm_probe.data.speech import Delivery, Spoken, speak, texts_sha256
from lsm_probe.data.utterance import Utterance
from lsm_probe.data.voices import check_text
from lsm_probe.folders import work_folder


@contextmanager
def spoken_in(
    out: Path,
    utterances: Sequence[Utterance],
    delivery: Delivery,
    *,
    workers: int | None,
    settings: dict[str, Any],
    resume: bool,
    problems: Problems,
    on_error: OnError,
) -> Iterator[Spoken]:
    """Speaks utterances into `out/audio` and gives what came of it, to be written beside while the folder is ours.

    Args:
        settings: of the command, that decide what is written; a folder begun with others is refused.
        problems: those there are already; with `on_error` "fail" nothing is spoken if there are any, or if a text
            cannot be spoken.
    """
    if on_error == "fail":
        for utterance in utterances:
            with problems.catching(utterance.place):
                check_text(utterance.text or "")
        problems.settle("fail")
    config = {**settings, **asdict(delivery), "texts": texts_sha256(utterances)}
    try:
        with work_folder(out, config, resume=resume):
            with progress() as on_progress:
                spoken = speak(
                    utterances,
                    out / "audio",
                    delivery,
                    workers=workers,
                    problems=problems,
                    on_progress=lambda done: on_progress("speech", done, len(utterances)),
                )
            yield spoken
            problems.write(out)
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on from here", file=sys.stderr)
        raise typer.Exit(130) from None


def speak_to_manifests(
    out: Path,
    utterances: Sequence[Utterance],
    delivery: Delivery,
    *,
    command: str,
    tasks: Sequence[str],
    instructions: Sequence[str],
    workers: int | None,
    resume: bool,
    problems: Problems,
    on_error: OnError,
    as_json: bool,
) -> None:
    """Speaks utterances whose answers are known and writes `{split}.{task}.jsonl`."""
    pool = read_pool(*instructions).only(tasks)
    settings = {"command": command, "tasks": list(tasks), "instructions": list(instructions)}
    with spoken_in(
        out,
        utterances,
        delivery,
        workers=workers,
        settings=settings,
        resume=resume,
        problems=problems,
        on_error=on_error,
    ) as spoken:
        counts = build_manifests(
            spoken.utterances, out, tasks, pool, seed=delivery.seed, problems=problems, on_error=on_error
        )
    show_spoken(out, counts, spoken, problems, as_json=as_json)


def show_spoken(out: Path, counts: dict[str, int], spoken: Spoken, problems: Problems, *, as_json: bool) -> None:
    """Manifests, speech made and its speed, on stdout."""
    speed = {
        "spoken": spoken.new,
        "already": spoken.already,
        "seconds": round(spoken.seconds, 3),
        "wall_seconds": round(spoken.wall_seconds, 3),
        "times_real_time": round(spoken.times_real_time, 1),
    }
    show_counts(out, counts, problems, as_json=as_json, **speed)
    if not as_json:
        print(
            f"spoken: {spoken.new} texts, {spoken.seconds:.0f} s of speech in {spoken.wall_seconds:.0f} s, "
            f"{spoken.times_real_time:.0f} times real time; {spoken.already} were there already"
        )
