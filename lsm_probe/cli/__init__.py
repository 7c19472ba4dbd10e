"""The command line: one module for each command, but those of probes, which are made from their [`Measurement`]."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import typer

from lsm_probe.cli.augment import augment
from lsm_probe.cli.check import check
from lsm_probe.cli.data import app as data
from lsm_probe.cli.demo import demo
from lsm_probe.cli.diagnose import diagnose
from lsm_probe.cli.evaluate import evaluate
from lsm_probe.cli.figure import figure
from lsm_probe.cli.help import Command, Group
from lsm_probe.cli.import_release import import_release
from lsm_probe.cli.measurement_command import measurement_command
from lsm_probe.cli.options import POOLS, TEMPLATES
from lsm_probe.cli.report import report
from lsm_probe.cli.score import score
from lsm_probe.cli.stopping import sigterm_raises, stoppable
from lsm_probe.cli.text_ability import text_ability
from lsm_probe.cli.threads import set_thread_defaults
from lsm_probe.cli.timeline import timeline
from lsm_probe.cli.train import train
from lsm_probe.console import print_any_character
from lsm_probe.errors import CommandError, InputError, Stopped, WorkFailed, one_line
from lsm_probe.files import disk_is_full
from lsm_probe.probes.registry import PROBES
from lsm_probe.runner.measurement import Measurement
from lsm_probe.version import __version__


class Commands(Group):
    """All commands. Those of other packages are imported when they are called, or listed by `--help`.

    Ctrl-C leaves a command as Interrupted: at KeyboardInterrupt typer would end without a line.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return [*names, *(name for name in PROBES if name not in names)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        found = super().get_command(ctx, cmd_name)
        return found if found is not None or cmd_name not in PROBES else _command_of(PROBES[cmd_name])

    def invoke(self, ctx: Any) -> Any:
        with stoppable(hint=""):
            return super().invoke(ctx)


app = typer.Typer(
    name="lsm-probe",
    cls=Commands,
    help=f"""Find and measure speech anchor bias in speech LLMs (arXiv 2410.03798).

--ckpt takes a folder or hub name of an LSM, a text LLM, an audio LLM of transformers or a released checkpoint; or
`builtin:llm` (text LLM), `builtin:vanilla_asr`, `builtin:self_powered`, `builtin:open_vanilla_asr`,
`builtin:open_self_powered` and `builtin:untrained` (LSMs). --data takes a JSONL file with `id`, `instruction` and
`audio` or `text`; or `builtin:probe` or `builtin:commands`. --template takes a YAML file or one of
{", ".join(TEMPLATES)}. --instructions takes a YAML file or one of {", ".join(POOLS)}.""",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
MEASURE = "Measure"
"""Panel of the probes."""
PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Diagnose": {"diagnose": diagnose, "demo": demo, "check": check},
    MEASURE: {
        **{probe.name: measurement_command(probe) for probe in PROBES.built_in.values()},
        "timeline": timeline,
    },
    "Report": {"report": report, "figure": figure},
    "Make data": {"augment": augment},
    "Train": {"train": train, "import": import_release},
    "Evaluate": {"evaluate": evaluate, "score": score, "text-ability": text_ability},
}
for panel, commands in PANELS.items():
    for name, command in commands.items():
        app.command(name, cls=Command, rich_help_panel=panel)(command)
app.add_typer(data, name="data", rich_help_panel="Make data")


def _command_of(probe: Measurement) -> Any:
    """The command of another package's probe; None, with a warning, where its code cannot be used."""
    own = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    try:
        own.command(probe.name, cls=Command, rich_help_panel=MEASURE)(measurement_command(probe))
        return typer.main.get_command(own)
    except Exception as error:  # whatever the other package's code raises
        warnings.warn(f"the probe {probe.name!r} cannot be used ({type(error).__name__}: {error})", stacklevel=2)
        return None


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", is_eager=True, callback=_print_version, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Runs the command line. Exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 terminated.

    All but the first come with one line on stderr; [`lsm_probe.errors`] says which exception has which code.
    """
    print_any_character()
    set_thread_defaults()
    # Pictures go into files, whatever a window would need; a report's notebook has a kernel that sets its own.
    os.environ.pop("MPLBACKEND", None)
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {one_line(str(message))}", file=sys.stderr)
    try:
        with nullcontext() if "RANK" in os.environ else sigterm_raises():
            sys.exit(app(standalone_mode=False, prog_name="lsm-probe"))
    except CommandError as error:
        _exit(error.exit_code, f"error: {error}" if str(error) else "")
    except typer.TyperException as error:
        _exit(InputError.exit_code, _usage_error(error))
    except Stopped as stop:
        _exit(stop.exit_code, str(stop))
    except OSError as error:
        # What was being written has been taken back; what was finished before is whole.
        place = f" at {error.filename}" if error.filename else ""
        if disk_is_full(error):
            reason = f"the disk is full{place}: make room, then run it again (--resume continues)"
        elif error.errno is not None and place:
            reason = f"cannot read or write {error.filename}: {error.strerror}; check the path and its permissions"
        else:
            raise
        _exit(WorkFailed.exit_code, f"error: {reason}")


def _usage_error(error: typer.TyperException) -> str:
    """One line about an option or argument; empty if the help is printed instead."""
    message = one_line(error.format_message()).removesuffix(".").replace("Value error, ", "")  # a prefix of pydantic's
    if not message:
        return ""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else app.info.name
    return f"error: {message[0].lower()}{message[1:]}; see {command} --help"


def _exit(code: int, line: str) -> None:
    if line and "RANK" in os.environ:  # as `torchrun` sets it
        from lsm_probe.distributed import print_on_main

        print_on_main(line)
    elif line:
        print(line, file=sys.stderr)
    sys.exit(code)
