"""`lsm-probe data`: makes and checks manifests."""

from __future__ import annotations

import typer

from lsm_probe.cli.data.commands import commands
from lsm_probe.cli.data.corpus import add_corpora
from lsm_probe.cli.data.speak import speak
from lsm_probe.cli.data.validate import validate
from lsm_probe.cli.help import Command, Group

app = typer.Typer(
    help="Make and check manifests, from corpora or synthesized speech.",
    no_args_is_help=True,
    cls=Group,
)
app.command(cls=Command)(validate)
app.command(cls=Command)(speak)
app.command(cls=Command)(commands)
add_corpora(app)
