"""What `--help` prints: options with their placeholders, choices and defaults, and examples that can be pasted."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer

_PLACEHOLDERS = {"<str>": "TEXT", "<int>": "N", "<int range>": "N", "<float>": "X", "<float range>": "X"}
_EXAMPLE = "    "
"""How each line begins that is printed as it stands."""
_WIDEST = 100


class _PlainHelp:
    def format_help(self, ctx: Any, formatter: Any) -> None:
        _print_help(self, ctx)


class Command(_PlainHelp, typer.core.TyperCommand):
    """A command with this module's help."""


class Group(_PlainHelp, typer.core.TyperGroup):
    """A group of commands with this module's help."""


def _print_help(command: Any, ctx: Any) -> None:
    """Print the usage, the help text, and a section for each panel of options and commands."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, emoji=False, markup=False)
    console.width = min(console.width, _WIDEST)
    console.print(command.get_usage(ctx), style="bold")
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        text, _, examples = f"\n{paragraph}".partition(f"\n{_EXAMPLE}")
        if text:
            console.print("\n", _code_in_bold(text), sep="")
        if examples:
            console.print(Text(_EXAMPLE + examples, style="cyan"), no_wrap=True, overflow="ignore", crop=False)
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in command.get_params(ctx):
        if not getattr(param, "hidden", False) and param.name != "help":
            panel = "Arguments" if param.param_type_name == "argument" else "Options"
            row = _signature(param, ctx), _description(param, ctx)
            sections.setdefault(getattr(param, "rich_help_panel", None) or panel, []).append(row)
    for name, found in _commands(command, ctx):
        panel = getattr(found, "rich_help_panel", None) or "Commands"
        sections.setdefault(panel, []).append((name, summary(found.help or "")))
    for title, rows in sections.items():
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True, style="bold cyan")
        table.add_column()
        for first, second in rows:
            table.add_row(f"  {first}", _code_in_bold(second))
        console.print(Text(f"\n{title}", style="bold"))
        console.print(table)


def summary(help: str) -> str:
    """The first paragraph of a help text, in one line."""
    return " ".join(inspect.cleandoc(help).split("\n\n")[0].split())


def _commands(command: Any, ctx: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(command, typer.core.TyperGroup):
        for name in command.list_commands(ctx):
            found = command.get_command(ctx, name)
            if found is not None and not found.hidden:
                yield name, found


def _code_in_bold(text: str) -> Any:
    from rich.text import Text

    parts = re.split(r"`([^`]+)`", " ".join(text.split()))
    return Text.assemble(*((part, "bold" if i % 2 else "") for i, part in enumerate(parts)))


def _signature(param: Any, ctx: Any) -> str:
    """`--data MANIFEST`: the option and the placeholder of its value."""
    if param.param_type_name == "argument":
        return str(param.metavar or param.name.upper()) + ("..." if param.nargs == -1 and not param.metavar else "")
    names = "/".join([*param.opts, *param.secondary_opts])
    return names if param.is_flag else f"{names} {param.metavar or _placeholder(param, ctx)}"


def _placeholder(param: Any, ctx: Any) -> str:
    kind = re.sub(r"^<list\[(.*)\]>$", r"<\1>", param.display_type(ctx))
    return "NAME" if _choices(param, ctx) else _PLACEHOLDERS.get(kind, kind.strip("<>").upper())


def _choices(param: Any, ctx: Any) -> list[str]:
    kind = re.sub(r"^<list\[(.*)\]>$", r"<\1>", param.display_type(ctx))
    return kind.strip("<>").split("|") if "|" in kind else []


def _description(param: Any, ctx: Any) -> str:
    """The help of an option, its choices, and its default."""
    default = param.get_default(ctx, call=False)
    if choices := _choices(param, ctx):
        note = ", ".join(f"{choice} (default)" if choice == default else choice for choice in choices)
    elif param.required:
        note = "required"
    elif default is not None and not isinstance(default, bool) and param.show_default:
        note = f"default: {default}"
    else:
        note = ""
    text, *default_in_words = (param.help or "").partition(" [default: ")
    return "".join([text, note and f" [{note}]", *default_in_words])
