"""Files of pictures and their numbers: written atomically, and identical for identical numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lsm_probe.errors import InputError, WorkFailed
from lsm_probe.files import disk_is_full, replacing
from lsm_probe.runner.result import MeasurementResult
from lsm_probe.runner.style import own_settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG and SVG to `path`, which has no suffix."""
    with own_settings():
        _settle(figure)
        for suffix in (".png", ".svg"):
            with replacing(path.with_name(path.name + suffix)) as temporary:
                figure.savefig(temporary, dpi=200, metadata={"Date": None} if suffix == ".svg" else None)


def save_frame(frame: pd.DataFrame, path: Path) -> None:
    """Writes the numbers behind a picture as CSV with six decimals."""
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.6f")


def save_frames(results: Sequence[MeasurementResult], path: Path) -> None:
    """Write the frames of all results as one table."""
    save_frame(pd.concat([result.to_frame() for result in results], ignore_index=True), path)


def _settle(figure: Figure) -> None:
    """Fix the layout in rounded numbers: the solver may differ in the last digit, and SVG ids hash all digits."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for half in figure.subfigs:
        half.bbox_relative.set_points(np.round(half.bbox_relative.get_points(), 6))
    for ax in figure.axes:
        ax.set_position(np.round(ax.get_position().bounds, 6))


@contextmanager
def report_drawing_failure(out: Path) -> Iterator[None]:
    """Ends a command with one line if the block fails; the block draws the results stored in `out`.

    Raises:
        WorkFailed: matplotlib raised any error.
    """
    try:
        yield
    except (InputError, WorkFailed):
        raise
    except Exception as error:
        if disk_is_full(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise WorkFailed(f"the numbers are in {out}, but drawing them failed ({reason})") from error
