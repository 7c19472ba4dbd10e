"""`lsm-probe data speak`: synthesizes sentences and writes their manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt


def speak(
    sentences: Annotated[
        Path,
        typer.Argument(
            help="Text file with a sentence on each line; or JSONL with `text` and, optionally, `id`, `instruction`, "
            "`target`, `task`, `language`, `context`."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the audio files and the manifest.", metavar="FOLDER")],
    voice: opt.Voice = None,
    speed: opt.Speed = None,
    instructions: opt.Instructions = None,
    seed: opt.DrawSeed = 0,
    workers: opt.Workers = None,
    limit: opt.Limit = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    r"""Synthesize English sentences, and write their manifest.

    A row with an instruction keeps it. Any other row gets a transcription instruction from the pool, and its text as
    target. Voice and speed are drawn for each sentence; they depend only on --seed and the id.

    Example:
        lsm-probe data speak sentences.txt --out spoken --voice hibari:heart \
            --voice flite:slt --speed 0.9 --speed 1.1
    """
    from functools import partial

    from lsm_probe.cli.data.show import prepare_and_show
    from lsm_probe.data.prepare import prepare_sentences

    prepare = partial(
        prepare_sentences,
        sentences,
        out,
        opt.speech_settings(voice, speed, seed),
        instructions=instructions or ["transcription"],
        workers=workers,
        limit=limit,
        resume=resume,
        on_error=on_error,
    )
    prepare_and_show(prepare, out, resumable=True, as_json=json)
