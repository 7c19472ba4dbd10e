"""`lsm-probe data`: makes and checks manifests."""

from __future__ import annotations

import typer

from lsm_probe.cli.data.commands import commands
from lsm_probe.cli.data.corpus import add_corpora
from lsm_probe.cli.data.speak import speak
from lsm_probe.cli.data.validate import validate

app = typer.Typer(
    help="Make manifests from corpora or synthesized speech, and check manifests.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.command()(validate)
app.command()(speak)
app.command()(commands)
add_corpora(app)
