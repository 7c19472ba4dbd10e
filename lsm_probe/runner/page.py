"""Sections of a report: what a measurement contributes to the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lsm_probe.runner.page_pictures import Picture
from lsm_probe.runner.tables import Table


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        anchor: its id.
        title: its heading.
        intro: how to read it.
        pictures: figures.
        tables: numbers.
    """

    anchor: str
    title: str
    intro: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
