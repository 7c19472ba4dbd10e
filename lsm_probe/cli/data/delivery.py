"""Options of the commands that speak text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lsm_probe.cli import options as opt

if TYPE_CHECKING:
    from lsm_probe.data.speech import Delivery

Voice = Annotated[
    list[str] | None,
    typer.Option(
        help="`hibari:heart`; where flite is installed `flite:slt`, `flite:rms`, ... too. Repeat it to draw one for "
        "each text.  [default: hibari:heart]",
        show_default=False,
    ),
]
Speed = Annotated[
    list[float] | None,
    typer.Option(
        help="0.5 to 2; 1 is the voice's own pace. Repeat it to draw one for each text.  [default: 1]",
        show_default=False,
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that speak.  [default: one for each core]", min=1, rich_help_panel=opt.RUN, show_default=False
    ),
]


def delivery(voice: list[str] | None, speed: list[float] | None, seed: int) -> Delivery:
    """How the options say that texts are spoken."""
    from lsm_probe.data.speech import Delivery
    from lsm_probe.data.voices import DEFAULT_VOICE

    return Delivery(tuple(voice or [DEFAULT_VOICE]), tuple(speed or [1.0]), seed)
