"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsm_probe.errors import InputError
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

RUN = RUNNING

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
        "in which the trained miniatures are at home."
    ),
]
Out = Annotated[Path | None, typer.Option(help="Output folder.  [default: runs/COMMAND/CHECKPOINT]")]
Template = Annotated[
    str | None,
    typer.Option(
        help="Prompt template: vicuna, vicuna_text, llama3, chat or chat_source_first.  [default: the checkpoint's own]"
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
        rich_help_panel=RUN,
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="float32, bfloat16, float16; `auto`: float32 on CPU; on a GPU bfloat16, or float16 on a GPU without "
        "bfloat16.",
        rich_help_panel=RUN,
    ),
]
DrawSeed = Annotated[int, typer.Option(help="Seed of every draw.", min=0, rich_help_panel=RUN)]
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
        rich_help_panel=RUN,
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(help="Only the first N samples.", min=1, rich_help_panel=RUN)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from an interrupted run.", rich_help_panel=RUN)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=RUN)]
Read = Annotated[
    str | None,
    typer.Option(
        help="Part of a reasoning model's response that is scored: `after_thinking` or `all`.  [default: the task's "
        "own setting, normally after_thinking]"
    ),
]
Responses = Annotated[
    Path | None, typer.Option(help="Take the responses stored in this result folder instead of generating.")
]


def one_of(option: str, value: str, *allowed: str) -> Any:
    """`value`, if it is one of those allowed."""
    if value not in allowed:
        raise InputError(f"{option} {value!r} is unknown; choose one of: {', '.join(allowed)}")
    return value


def loading(device: str, dtype: str, template: str | None, date: str | None) -> dict[str, Any]:
    """As the keyword arguments of `load`."""
    return {"device": device, "dtype": dtype, "template": template, "date": date}


def speech_settings(voice: list[str] | None, speed: list[float] | None, seed: int) -> SpeechSettings:
    """How texts are spoken, as the argument of the functions that speak them."""
    from lsm_probe.data.speech import SpeechSettings
    from lsm_probe.data.voices import DEFAULT_VOICE

    return SpeechSettings(tuple(voice or [DEFAULT_VOICE]), tuple(speed or [1.0]), seed)
