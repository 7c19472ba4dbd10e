"""`lsm-probe data NAME`: a corpus in its own layout to manifests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from lsm_probe.cli import options as opt
from lsm_probe.data.corpora import CORPORA, Corpus

Root = Annotated[Path, typer.Option(help="Where the corpus lies.", show_default=False)]
Out = Annotated[Path, typer.Option(help="Folder for the manifests.", show_default=False)]
Split = Annotated[
    list[str] | None, typer.Option(help="Only this split. Repeat it for several.  [default: all]", show_default=False)
]
Task = Annotated[
    list[str] | None, typer.Option(help="What to ask for. Repeat it for several.  [default: the first named above]")
]


def add_corpora(app: typer.Typer) -> None:
    """Adds a command for each corpus that has sound."""
    for name, corpus in CORPORA.items():
        if corpus.spoken:
            app.command(name, help=_help(name, corpus), rich_help_panel="Corpora")(_command(name, corpus))


def _help(name: str, corpus: Corpus) -> str:
    tasks = ", ".join(dict.fromkeys([*corpus.tasks, "transcription"]))
    return f"""{corpus.title} to manifests. --root: {corpus.root}. Tasks: {tasks}.

Writes `<split>.<task>.jsonl` for each split and task, with the evaluation instruction of the task and the right answer
as target. Nothing is copied: the manifests name the corpus's own files, whose headers are checked.

Example:

    lsm-probe data {name} --root /data/{name} --out manifests/{name}
"""


def _command(name: str, corpus: Corpus) -> Callable[..., None]:
    def command(
        root: Root,
        out: Out,
        split: Split = None,
        task: Task = None,
        instructions: opt.Instructions = None,
        seed: opt.DrawSeed = 0,
        limit: opt.Limit = None,
        on_error: opt.OnError = "fail",
        json: opt.Json = False,
    ) -> None:
        from functools import partial

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
            on_error=opt.one_of("--on-error", on_error, "fail", "skip"),
        )
        prepare_and_show(prepare, out, resumable=False, as_json=json)

    command.__name__ = name
    return command
