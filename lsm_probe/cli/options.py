"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lsm_probe.runner.options import (  # noqa: F401  # commands take all their options from this module
    CONVENTIONS,
    RUNNING,
    BatchSize,
    MaxNewTokens,
    OnError,
    Response,
    Seed,
)

if TYPE_CHECKING:
    from lsm_probe.data.speech import SpeechSettings

_CKPT = typer.Option(
    help="Folder, hub name, or built in: `builtin:llm` (text LLM), `builtin:untrained`, `builtin:vanilla_asr`, "
    "`builtin:self_powered` (LSMs). Repeat it to compare.",
    show_default=False,
)
Ckpt = Annotated[list[str], _CKPT]
OptionalCkpt = Annotated[list[str] | None, _CKPT]
Data = Annotated[
    str,
    typer.Option(
        help="JSONL manifest with `id`, `instruction` and `audio` or `text`; `builtin:probe`, or `builtin:commands`, "
        "from the same domain as the training data of the built-in LSMs."
    ),
]
Out = Annotated[Path | None, typer.Option(help="Output folder.  [default: runs/COMMAND/CHECKPOINT]")]
Template = Annotated[
    str | None,
    typer.Option(
        help="Prompt template: vicuna, vicuna_text, llama3, chat or chat_source_first.  [default: the checkpoint's own]"
    ),
]
AdapterBase = Annotated[
    str | None,
    typer.Option(
        help="Model that an adapter (PEFT) was trained on.  [default: the one its adapter_config.json names]",
        show_default=False,
    ),
]
Date = Annotated[
    str | None,
    typer.Option(
        help="Date used as today's date by chat templates that print one.  [default: 2024-07-26]", metavar="YYYY-MM-DD"
    ),
]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:1, ... `auto`: a GPU, if any, for each process; `spread`: one model over all GPUs.",
        rich_help_panel=RUNNING,
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(
        help="`auto`: float32 on CPU; on a GPU bfloat16, or float16 on a GPU without bfloat16.",
        rich_help_panel=RUNNING,
    ),
]
DrawSeed = Annotated[int, typer.Option(help="Seed of every random draw.", min=0, rich_help_panel=RUNNING)]
Instructions = Annotated[
    list[str] | None,
    typer.Option(
        help="Instruction pool: a built-in name or a YAML file of the same shape. Repeat it to join several.",
        show_default=False,
    ),
]
Voice = Annotated[
    list[str] | None,
    typer.Option(
        help="`hibari:heart`; with flite installed also `flite:slt`, `flite:rms`, ... Repeat it to draw one for each "
        "text.  [default: hibari:heart]",
        show_default=False,
    ),
]
Speed = Annotated[
    list[float] | None,
    typer.Option(
        help="0.5 to 2; 1 is the voice's own speed. Repeat it to draw one for each text.  [default: 1]",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that synthesize speech.  [default: one for each core]",
        min=1,
        rich_help_panel=RUNNING,
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(help="Only the first N samples.", min=1, rich_help_panel=RUNNING)]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=RUNNING)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=RUNNING)]
Read = Annotated[
    Literal["after_thinking", "all"] | None,
    typer.Option(
        help="Part of a reasoning model's response that is scored.  [default: the task's own, normally after_thinking]"
    ),
]
Responses = Annotated[
    Path | None, typer.Option(help="Take the responses stored in this result folder instead of generating.")
]


def speech_settings(voice: list[str] | None, speed: list[float] | None, seed: int) -> SpeechSettings:
    """How texts are spoken, as the argument of the functions that speak them."""
    from lsm_probe.data.speech import SpeechSettings
    from lsm_probe.data.voices import DEFAULT_VOICE

    return SpeechSettings(tuple(voice or [DEFAULT_VOICE]), tuple(speed or [1.0]), seed)
