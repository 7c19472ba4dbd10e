"""Options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lsm_probe.runner.options import (  # noqa: F401  # commands take all their options from this module
    CONVENTIONS,
    RUNNING,
    BatchSize,
    MaxNewTokens,
    OnError,
    Response,
    Seed,
    VerifyPrecision,
)

if TYPE_CHECKING:
    from lsm_probe.data.speech import SpeechSettings

_CKPT = typer.Option(
    help="Folder, hub name or `builtin:NAME`. Repeatable.",
    metavar="NAME",
    show_default=False,
)
Ckpt = Annotated[list[str], _CKPT]
OptionalCkpt = Annotated[list[str] | None, _CKPT]
Data = Annotated[str, typer.Option(help="JSONL file of samples, or `builtin:NAME`.", metavar="MANIFEST")]
Out = Annotated[Path | None, typer.Option(help="Output folder. [default: runs/COMMAND/CHECKPOINT]", metavar="FOLDER")]


def _names(folder: str) -> list[str]:
    """The names of a folder's YAML files: importing the registries takes seconds, also for --help."""
    root = Path(__file__).parents[1] / folder
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml"))


TEMPLATES, POOLS, PRESETS = _names("models/templates"), _names("data/instructions"), _names("training/presets")

Preset = Annotated[
    str,
    typer.Argument(help=f"A YAML file or one of {', '.join(PRESETS)}.", autocompletion=lambda: PRESETS),
]
Template = Annotated[
    str | None,
    typer.Option(
        help="Prompt template. [default: the checkpoint's own]",
        metavar="NAME",
        autocompletion=lambda: TEMPLATES,
    ),
]
AdapterBase = Annotated[
    str | None,
    typer.Option(
        help="Base model of adapters. [default: the one they name]",
        metavar="NAME",
    ),
]
Date = Annotated[
    str | None,
    typer.Option(help="Date for chat templates. [default: 2024-07-26]", metavar="YYYY-MM-DD"),
]


Encoder = Annotated[str | None, typer.Option(help="Whisper that a released checkpoint leaves out.", metavar="NAME")]
Llm = Annotated[str | None, typer.Option(help="LLM that a released checkpoint leaves out.", metavar="NAME")]
Beats = Annotated[str | None, typer.Option(help="BEATs (.pt) that a SALMONN checkpoint leaves out.", metavar="FILE")]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:1, mps, auto (CUDA or CPU), or spread (over all GPUs).",
        metavar="NAME",
        rich_help_panel=RUNNING,
    ),
]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="auto: float32 on CPU, half precision on GPU.", rich_help_panel=RUNNING),
]
DrawSeed = Annotated[int, typer.Option(help="Seed of every random draw.", min=0, rich_help_panel=RUNNING)]
Instructions = Annotated[
    list[str] | None,
    typer.Option(
        help="Instruction pool: a name or a YAML file. Repeatable.",
        metavar="NAME",
        autocompletion=lambda: POOLS,
        show_default=False,
    ),
]
Voice = Annotated[
    list[str] | None,
    typer.Option(
        help="`hibari:heart`; with flite installed also `flite:slt`, `flite:rms`, ... If repeated, one is drawn for "
        "each text. [default: hibari:heart]",
        metavar="NAME",
        show_default=False,
    ),
]
Speed = Annotated[
    list[float] | None,
    typer.Option(
        help="From 0.5 to 2; 1 is the voice's own speed. If repeated, one is drawn for each text. [default: 1]",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes that synthesize speech. [default: one for each core]", min=1, rich_help_panel=RUNNING),
]
Limit = Annotated[int | None, typer.Option(help="Only the first N samples.", min=1, rich_help_panel=RUNNING)]
Resume = Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.", rich_help_panel=RUNNING)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.", rich_help_panel=RUNNING)]
Read = Annotated[
    Literal["after_thinking", "all"] | None,
    typer.Option(
        help="Part of a reasoning model's response that is scored. [default: the task's own, normally after_thinking]"
    ),
]
Responses = Annotated[
    Path | None,
    typer.Option(help="Use the responses of this result folder.", metavar="FOLDER"),
]


def loading_options(
    *,
    device: str,
    dtype: str,
    template: str | None,
    date: str | None,
    encoder: str | None,
    llm: str | None,
    beats: str | None,
) -> dict[str, Any]:
    """The options that say how checkpoints are loaded, as keyword arguments of `lsm_probe.load`."""
    given = {"encoder": encoder, "llm": llm, "beats": beats}
    parts = {part: place for part, place in given.items() if place is not None}
    return {"device": device, "dtype": dtype, "template": template, "date": date, **parts}


def speech_settings(voice: list[str] | None, speed: list[float] | None, seed: int) -> SpeechSettings:
    """How texts are spoken, as the argument of the functions that speak them."""
    from lsm_probe.data.speech import SpeechSettings
    from lsm_probe.data.voices import DEFAULT_VOICE

    return SpeechSettings(tuple(voice or [DEFAULT_VOICE]), tuple(speed or [1.0]), seed)
