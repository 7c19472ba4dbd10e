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
    help="Folder (an LSM, a text LLM, an audio LLM of transformers, or a released checkpoint), hub name, or built in: "
    "`builtin:llm` (text LLM), `builtin:untrained`, `builtin:vanilla_asr`, `builtin:self_powered` (LSMs). Repeat it to "
    "compare.",
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
# By the names of their files: importing the registry takes seconds, also for --help.
_TEMPLATES = sorted(path.stem for path in (Path(__file__).parents[1] / "models" / "templates").glob("*.yaml"))
Template = Annotated[
    str | None,
    typer.Option(
        help=f"Prompt template: a YAML file, or one of: {', '.join(_TEMPLATES)}.  [default: the checkpoint's own]"
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


def _part(help: str) -> Any:
    """An option that names a part of a released checkpoint."""
    return typer.Option(help=help, rich_help_panel="Released checkpoints", show_default=False)


Encoder = Annotated[
    str | None,
    _part("Folder or hub name of the Whisper that a released checkpoint leaves out, or OpenAI's .pt file of it."),
]
Llm = Annotated[str | None, _part("Folder or hub name of the LLM that a released checkpoint leaves out.")]
Beats = Annotated[
    str | None, _part("File (.pt, of its authors) of the BEATs that a released checkpoint (SALMONN) leaves out.")
]
Device = Annotated[
    str,
    typer.Option(
        help="cpu, cuda, cuda:1, mps, ... `auto`: CUDA where there is a GPU, or else the CPU; `spread`: one model over "
        "all GPUs. Under torchrun, `auto` and `cuda` are a GPU for each process.",
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
