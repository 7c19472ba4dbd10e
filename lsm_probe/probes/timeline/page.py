"""The timeline as one HTML page: an audio player, and a cursor that moves over the pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from lsm_probe.files import replacing
from lsm_probe.models.speech_times import RATE
from lsm_probe.probes.timeline.plot import COLORS, PLACED, layer_picture, log_mel, readable, row_picture, spaced, tone
from lsm_probe.probes.timeline.result import Timeline
from lsm_probe.runner.style import own_settings

PAGE = "timeline.html"
"""The file that [`save_page`] writes."""
_WAVE_COLUMNS = 1_500


@own_settings()
def timeline_page(timeline: Timeline, layer: int | None = None) -> str:
    """The page: self-contained, without external scripts or images, and readable without JavaScript.

    Args:
        timeline: what to show.
        layer: the layer that is shown first; see [`Timeline.choose_layer`].

    Raises:
        InputError: there is no such layer.
    """
    environment = Environment(
        loader=PackageLoader("lsm_probe", "probes/timeline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("timeline.html.j2").render(
        timeline=timeline,
        layer=timeline.choose_layer(layer),
        layout=_layout(timeline),
        placed=PLACED[timeline.times_from],
        tokens=[readable(token) for token in timeline.tokens],
        table=_table(timeline),
        audio=_data_uri("audio/flac", _flac(timeline.waveform)),
        wave=_wave_path(timeline.waveform),
        mel=_picture(log_mel(timeline)[::-1]),
        layers=_picture(tone(layer_picture(timeline))[::-1]),
        rows=[
            [_picture(tone(row_picture(timeline, i, standing_out=over))) for over in (False, True)]
            for i in range(timeline.n_layers)
        ],
    )


def save_page(timeline: Timeline, out: Path, layer: int | None = None) -> None:
    """Writes `PAGE`."""
    with replacing(out / PAGE) as temporary:
        temporary.write_text(timeline_page(timeline, layer), encoding="utf-8")


def _layout(timeline: Timeline) -> dict[str, Any]:
    """Positions in the picture, in its own units: room for words above, left edge and width of the time axis, heights,
    ticks."""
    width = round(max(840, 110 * timeline.seconds))
    step = next(s for s in (0.5, 1, 2, 5, 10, 30, 60, 300) if timeline.seconds / s <= width / 60)
    scale = width / timeline.seconds
    words = timeline.words or []
    # Slanted lines of 11 units do not overlap if they begin 11 / sin 48 apart.
    places = spaced([word.begin * scale for word in words], 15)
    longest = max((len(word.text) for word in words), default=0)
    ticks = np.arange(0, timeline.seconds, step).tolist()
    return {
        "above": min(max(78, 14 + 5 * longest), 160),
        "left": 96,
        "width": width,
        "right": 150,
        "layers": max(160, 8 * timeline.n_layers),
        "rows": 13 * len(timeline.tokens),
        "ticks": [(f"{tick:g}", tick * scale) for tick in ticks],
        "words": [(word, word.begin * scale, place) for word, place in zip(words, places, strict=True)],
    }


def _table(timeline: Timeline) -> dict[str, list[float | None]]:
    """The numbers of each layer, first layer in the top row; None where undefined."""
    titles = {"eta": "η", "advance": "advance", "advance_standing_out": "advance, over the mean"}
    if timeline.words_to_silence() is not None:
        titles["words_to_silence"] = "words : silence"
    frame = timeline.to_frame()
    return {title: [float(v) if np.isfinite(v) else None for v in frame[name]] for name, title in titles.items()}


def _picture(values: NDArray[np.floating[Any]]) -> str:
    """A heatmap `[rows, columns]` as a PNG with one pixel per value."""
    from matplotlib import colormaps
    from matplotlib.image import imsave

    low, high = float(values.min()), float(values.max())
    colored = colormaps[COLORS]((values - low) / max(high - low, 1e-12), bytes=True)[..., :3]
    content = io.BytesIO()
    imsave(content, np.ascontiguousarray(colored), format="png")
    return _data_uri("image/png", content.getvalue())


def _wave_path(waveform: NDArray[np.float32]) -> Sequence[tuple[float, float]]:
    """The outline of the waveform as points, x in 0 to 1 and y in -1 to 1: first the maxima, then back along the
    minima."""
    parts = np.array_split(waveform / max(float(np.abs(waveform).max()), 1e-9), min(_WAVE_COLUMNS, len(waveform)))
    x = (np.arange(len(parts)) + 0.5) / len(parts)
    upper = list(zip(x, (-part.max() for part in parts), strict=True))
    lower = list(zip(x, (-part.min() for part in parts), strict=True))
    return [*upper, *reversed(lower)]


def _flac(waveform: NDArray[np.float32]) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, np.clip(waveform, -1, 1), RATE, format="FLAC", subtype="PCM_16")
    return content.getvalue()


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
