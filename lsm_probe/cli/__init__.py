"""The command line: one module for each command, no logic of its own."""

from __future__ import annotations

import sys
import warnings

import typer

from lsm_probe.cli.attention import attention
from lsm_probe.cli.demo import demo
from lsm_probe.errors import InputError

app = typer.Typer(
    name="lsm-probe",
    help="Shows, locates and measures speech anchor bias in large speech-text models (arXiv 2410.03798).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(attention)
app.command()(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(version("lsm-probe"))
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_print_version, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
