"""Output of a check for GitHub Actions: annotations on the run, a table in the job's summary."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lsm_probe.errors import InputError
from lsm_probe.regression.baseline import result_file
from lsm_probe.regression.kinds import Check


@contextmanager
def annotating(baseline: Path) -> Iterator[None]:
    """Annotates the baseline's file with the error that ends the block, if any; only in GitHub Actions."""
    try:
        yield
    except InputError as error:
        annotate("error", str(error), title="check unusable", file=baseline)
        raise


def publish(found: Check, baseline: Path) -> None:
    """Annotates the baseline's file with the notes and a regression, and appends to the job's summary."""
    for note in found.notes:
        annotate("warning", note, title=f"{found.about} check", file=baseline)
    if found.regressed:
        annotate("error", found.text(), title=f"{found.about} regressed", file=baseline)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if not summary:
        return
    try:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(markdown(found, baseline))
    except OSError as error:  # the result is valid without it
        warnings.warn(f"the job's summary was not written: {error.strerror}", stacklevel=2)


def annotate(level: str, message: str, *, title: str, file: Path) -> None:
    """Prints a workflow command in GitHub Actions, on stderr, which it also reads, so that stdout has only the
    result."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        place = _property(_in_workspace(result_file(file)))
        print(f"::{level} file={place},title={_property(title)}::{_data(message)}", file=sys.stderr)


def markdown(found: Check, baseline: Path) -> str:
    """The result as a section of the job's summary."""
    head, *rows = found.rows()
    table = [f"| {' | '.join(row)} |" for row in (head, [found.ALIGN] * len(head), *rows)]
    shown = str(baseline).replace("`", "'").replace("\n", " ")
    lines = [f"### {found.about} against `{shown}`", "", found.headline, "", *table, ""]
    lines += [f"- {line}" for line in (*([found.power] if found.power else []), *found.notes)]
    return "\n".join(lines) + "\n\n"


def _in_workspace(file: Path) -> str:
    """GitHub finds files by their path in the repository."""
    workspace = os.environ.get("GITHUB_WORKSPACE")
    absolute = Path(os.path.abspath(file))  # noqa: PTH100 - a link is in the repository, what it points to may not be
    if workspace and absolute.is_relative_to(workspace):
        return absolute.relative_to(workspace).as_posix()
    return str(file)


def _data(text: str) -> str:
    """A message in the encoding of the runner (actions/runner, ActionCommand.cs); `%` first, or it is escaped twice."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
