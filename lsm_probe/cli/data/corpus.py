"""`lsm-probe data NAME`: a command for each corpus and question set, which writes their manifests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from lsm_probe.cli import options as opt
from lsm_probe.cli.help import Command
from lsm_probe.data.corpora import CORPORA, Corpus, question_sets

Root = Annotated[Path, typer.Option(help="The corpus: a folder or file, see above.", metavar="PATH")]
Out = Annotated[Path, typer.Option(help="Folder for the manifests.", metavar="FOLDER")]
Split = Annotated[list[str] | None, typer.Option(help="Only this split. Repeatable. [default: all]", metavar="SPLIT")]

_CORPUS_HELP = """Write manifests of {corpus.title}.

--root is {corpus.root}. Writes SPLIT.TASK.jsonl for each split and task, with the evaluation instruction of the task
and the correct answer as target. No audio is copied: the manifests name the corpus's own files, whose headers are
checked.

Example:
    lsm-probe data {name} --root /data/{name} --out manifests/{name}
"""
_QUESTIONS_HELP = """Synthesize the questions of {corpus.title}, and write manifests.

--root is {corpus.root}. Writes FILE.TASK.jsonl for each task, with the evaluation instruction of the task and the
correct answer as target.

Example:
    lsm-probe data {name} --root {name}.jsonl --out spoken/{name}
"""


def add_corpora(app: typer.Typer) -> None:
    """Add a command for each corpus that has sound, and for each question set."""
    for name, corpus in CORPORA.items():
        if corpus.spoken:
            text = _CORPUS_HELP.format(corpus=corpus, name=name)
            app.command(name, cls=Command, help=text, rich_help_panel="Corpora")(_corpus_command(corpus))
    for name, corpus in question_sets().items():
        text = _QUESTIONS_HELP.format(corpus=corpus, name=name)
        app.command(name, cls=Command, help=text, rich_help_panel="Question sets")(_questions_command(corpus))


def _corpus_command(corpus: Corpus) -> Callable[..., None]:
    def command(
        root: Root,
        out: Out,
        split: Split = None,
        task: list[str] | None = None,
        instructions: opt.Instructions = None,
        seed: opt.DrawSeed = 0,
        limit: opt.Limit = None,
        on_error: opt.OnError = "fail",
        json: opt.Json = False,
    ) -> None:
        from lsm_probe.cli.data.show import prepare_and_show
        from lsm_probe.data.prepare import prepare_corpus

        prepare = partial(
            prepare_corpus,
            corpus,
            root,
            out,
            tasks=task or list(corpus.tasks[:1]),
            splits=split,
            instructions=instructions or ["evaluation"],
            seed=seed,
            limit=limit,
            on_error=on_error,
        )
        prepare_and_show(prepare, out, resumable=False, as_json=json)

    command.__annotations__["task"] = _task_option(corpus)
    return command


def _questions_command(corpus: Corpus) -> Callable[..., None]:
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

    command.__annotations__["task"] = _task_option(corpus)
    return command


def _task_option(corpus: Corpus) -> Any:
    """`--task`, with the tasks of a corpus shown and completed; what is given is checked as the corpus is read."""
    option = typer.Option(
        help=f"Task of the manifests. Repeatable. [choices: {', '.join(corpus.all_tasks)}; default: {corpus.tasks[0]}]",
        metavar="TASK",
        autocompletion=lambda: corpus.all_tasks,
        show_default=False,
    )
    return Annotated[list[str] | None, option]
