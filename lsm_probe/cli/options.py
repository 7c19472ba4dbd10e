"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lsm_probe.errors import InputError

if TYPE_CHECKING:
    from lsm_probe.data.speech import Delivery

RUN, NUMBERS = "Running", "Conventions"

Ckpt = Annotated[
    list[str],
    typer.Option(
        help="Folder, hub name, or built in: `builtin:llm` (text LLM), `builtin:untrained`, `builtin:vanilla_asr`, "
        "`builtin:self_powered` (LSMs). Repeat it to compare.",
        show_default=False,
    ),
]
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
BatchSize = Annotated[
    str, typer.Option(help="Samples run together; halved where memory runs out.", rich_help_panel=RUN)
]
Seed = Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0, rich_help_panel=RUN)]
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
OnError = Annotated[
    Literal["fail", "skip"],
    typer.Option(help="At a sample that cannot be used: stop, or skip and count it.", rich_help_panel=RUN),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=RUN)]
MaxNewTokens = Annotated[int, typer.Option(help="Longest generated response, in tokens.", min=1)]
Response = Annotated[str, typer.Option(help="generated or reference.", rich_help_panel=NUMBERS)]
ResponsePart = Annotated[
    str,
    typer.Option(
        help="Part of a reasoning model's response that is measured: `all`, `thinking` or `answer`.",
        rich_help_panel=NUMBERS,
    ),
]
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


def batch_size(value: str) -> dict[str, int]:
    """As the keyword argument of a probe; `auto` leaves it to the probe."""
    if value == "auto":
        return {}
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"--batch-size {value!r} is neither `auto` nor a positive number")
    return {"batch_size": int(value)}


def loading(device: str, dtype: str, template: str | None, date: str | None) -> dict[str, Any]:
    """As the keyword arguments of `load`."""
    return {"device": device, "dtype": dtype, "template": template, "date": date}


def probing(seed: int, on_error: str, size: str) -> dict[str, Any]:
    """What every probe takes, as its keyword arguments."""
    return {"seed": seed, "on_error": one_of("--on-error", on_error, "fail", "skip"), **batch_size(size)}


def delivery(voice: list[str] | None, speed: list[float] | None, seed: int) -> Delivery:
    """How texts are spoken, as the argument of the functions that speak them."""
    from lsm_probe.data.speech import Delivery
    from lsm_probe.data.voices import DEFAULT_VOICE

    return Delivery(tuple(voice or [DEFAULT_VOICE]), tuple(speed or [1.0]), seed)
