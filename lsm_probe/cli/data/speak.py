"""`lsm-probe data speak`: sentences to speech and a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt
from lsm_probe.cli.data.delivery import Speed, Voice, Workers, delivery


def speak(
    sentences: Annotated[
        Path,
        typer.Argument(
            help="Text file, one sentence a line, or JSONL rows with `text` and perhaps `id`, `instruction`, `target`, "
            "`task`, `language`, `context`."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the sound files and the manifest.", show_default=False)],
    voice: Voice = None,
    speed: Speed = None,
    instructions: opt.Instructions = None,
    seed: opt.DrawSeed = 0,
    workers: Workers = None,
    limit: opt.Limit = None,
    resume: opt.Resume = False,
    on_error: opt.OnError = "fail",
    json: opt.Json = False,
) -> None:
    """Speaks English sentences and writes `manifest.jsonl` for them.

    A row that brings an instruction keeps it; any other gets one of the pool's for transcription, with its text as
    target. Voice and speed are drawn for each sentence; the draw and the sound depend on --seed and the id alone.

    Example:

        lsm-probe data speak sentences.txt --out spoken --voice hibari:heart --voice flite:slt --speed 0.9 --speed 1.1
    """
    from functools import partial

    from lsm_probe.cli.data.show import prepare_and_show
    from lsm_probe.data.prepare import prepare_sentences

    prepare = partial(
        prepare_sentences,
        sentences,
        out,
        delivery(voice, speed, seed),
        instructions=instructions or ["transcription"],
        workers=workers,
        limit=limit,
        resume=resume,
        on_error=opt.one_of("--on-error", on_error, "fail", "skip"),
    )
    prepare_and_show(prepare, out, resumable=True, as_json=json)
