"""MkDocs hooks: figures and the studies' pages beside docs/ join the site, and the command line writes its own page.

Links in the sources stay those of the repository, so that they also work where the sources are read.
"""

import re
from pathlib import Path
from typing import Any

import griffe
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.cli import get_docs_for_click

from lsm_probe.cli import app

ROOT = Path(__file__).parents[1]
PATTERNS = (
    "figures/**/*.png",
    "figures/**/*.svg",
    "analyses/*/README.md",
    "analyses/notebooks/*.ipynb",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
)


class Docstrings(griffe.Extension):
    """Adapts docstrings to griffe: `Example:` is its section `Examples:`, and the brackets of [`name`] are no link."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            obj.docstring.value = re.sub(r"\[(`[^`]+`)\]", r"\1", text)


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for path in sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern)):
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    files.append(File.generated(config, "cli.md", content=command_line_page()))
    return files


def command_line_page() -> str:
    command = typer.main.get_command(app)
    for each in command.commands.values():  # whole, where typer would cut it to 45 characters
        each.short_help = each.help.partition("\n\n")[0]
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="lsm-probe", title="Command line")


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    if page.file.src_uri.startswith("analyses/"):
        page.meta.setdefault("search", {})["boost"] = 0.1  # below the pages that explain how to use lsm-probe
    # One folder less to leave: the site's root is docs/.
    inner = "../" * page.file.src_uri.count("/")
    markdown = markdown.replace(f"]({inner}docs/", f"]({inner}")
    return markdown.replace(f"](../{inner}", f"]({inner}")
