"""`lsm-probe data NAME` for question sets: synthesizes the questions and writes manifests."""

from __future__ import annotations

from collections.abc import Callable

import typer

from lsm_probe.cli import options as opt
from lsm_probe.cli.data.corpus import Out, Root, task_option
from lsm_probe.data.corpora import Corpus, question_sets


def add_question_sets(app: typer.Typer) -> None:
    """Adds a command for each question set."""
    for name, corpus in question_sets().items():
        app.command(name, help=_help(name, corpus), rich_help_panel="Question sets")(_command(name, corpus))


def _help(name: str, corpus: Corpus) -> str:
    return f"""{corpus.title}: synthesize the questions and write manifests.

`--root` is {corpus.root}. Writes `<file>.<task>.jsonl` for each task, with the evaluation instruction of the task and
the correct answer as target.

Example:

    lsm-probe data {name} --root {name}.jsonl --out spoken/{name}
"""


def _command(name: str, corpus: Corpus) -> Callable[..., None]:
    def command(
        root: Root,
        out: Out,
        task: list[str] | None = None,
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
        from functools import partial

        from lsm_probe.cli.data.show import prepare_and_show
        from lsm_probe.data.prepare import prepare_questions

        prepare = partial(
            prepare_questions,
            corpus,
            root,
            out,
            opt.speech_settings(voice, speed, seed),
            tasks=task or list(corpus.tasks[:1]),
            limit=limit,
            instructions=instructions or ["evaluation"],
            workers=workers,
            resume=resume,
            on_error=on_error,
        )
        prepare_and_show(prepare, out, resumable=True, as_json=json)

    command.__annotations__["task"] = task_option(corpus)
    return command
