"""`lsm-probe data commands`: synthesizes household commands whose meaning is known."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt


def commands(
    out: Annotated[Path, typer.Option(help="Folder for the audio files and manifests.", metavar="FOLDER")],
    count: Annotated[int, typer.Option(help="How many sentences, 240 to 10,400.")] = 2_000,
    voice: opt.Voice = None,
    speed: opt.Speed = None,
    instructions: opt.Instructions = None,
    seed: opt.DrawSeed = 0,
    workers: opt.Workers = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    """Synthesize household commands with labels, and write manifests.

    A command is a sentence such as "Could you switch on the lamp in the kitchen, please?". The vocabulary is small.
    Writes SPLIT.TASK.jsonl for the splits train, validation and test (80, 10 and 10 %; no sentence is in two of them)
    and the tasks transcription, intent, keywords, device, place and capitals.

    Example:
        lsm-probe data commands --out commands --count 2000
    """
    from functools import partial

    from lsm_probe.cli.data.show import prepare_and_show
    from lsm_probe.data.commands import TASKS, command_utterances
    from lsm_probe.data.prepare import prepare_utterances

    prepare = partial(
        prepare_utterances,
        command_utterances(count, seed),
        out,
        opt.speech_settings(voice, speed, seed),
        name="data commands",
        tasks=TASKS,
        instructions=instructions or ["commands"],
        workers=workers,
        resume=resume,
        on_error=on_error,
    )
    prepare_and_show(prepare, out, resumable=True, as_json=json)
