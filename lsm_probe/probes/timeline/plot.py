"""Timeline figure: waveform, words and spectrogram above the attention of each layer and each response token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsm_probe.models.speech_times import RATE
from lsm_probe.probes.timeline.result import Timeline
from lsm_probe.runner.labels import plain
from lsm_probe.runner.picture_files import save_figure
from lsm_probe.runner.style import new_figure, with_own_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

PICTURES = ("timeline.png", "timeline.svg")
"""The files that [`save_timeline`] writes."""
COLORS = "magma"
PLACED = {
    "connector": "speech tokens lie where the connector reads them",
    "even": "speech tokens are spread evenly over the utterance, because their exact times are unknown",
}
_LABELLED = 48
"""Maximum number of response tokens with labels for all."""
_HEATMAP: dict[str, Any] = {"cmap": COLORS, "shading": "flat", "rasterized": True}


def log_mel(timeline: Timeline) -> NDArray[np.float32]:
    """Whisper's log-mel spectrogram of the whole utterance, `[80 mel bins, mel frames]`, 10 ms a frame."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor()
    samples = len(timeline.waveform)
    # Its windows extend half their length beyond both ends, filled by mirroring, so the input must be longer than that.
    wave = np.pad(timeline.waveform, (0, max(extractor.n_fft - samples, 0)))
    whole: dict[str, Any] = {"truncation": False, "padding": "longest", "return_tensors": "np"}
    mel: NDArray[np.float32] = extractor(wave, sampling_rate=RATE, **whole).input_features[0]
    return mel[:, : -(-samples // extractor.hop_length)]


def layer_picture(timeline: Timeline) -> NDArray[np.floating[Any]]:
    """A_j by layer and frame divided by the layer's mean, `[layers, frames]`: 1 means even attention.

    Norms grow through the layers, so raw norms would show only the last layer.
    """
    over_time = timeline.over_time()
    return over_time / over_time.mean(1, keepdims=True)


def tone(values: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Maps numbers from 0 up to 0 to 1 for a colour map: square roots up to the 99.5th percentile, so that a few very
    large values do not hide the others."""
    most = np.percentile(values, 99.5)
    return np.sqrt(np.clip(values / max(most, np.finfo(np.float32).tiny), 0, 1))


def row_picture(timeline: Timeline, layer: int, *, standing_out: bool = False) -> NDArray[np.floating[Any]]:
    """Attention of each response token to each frame in one layer, `[rows, frames]`: a(m, j), or a(m, j) / A_j."""
    if standing_out:
        return timeline.at_frame(timeline.standing_out()[layer])
    return timeline.by_frame(timeline.norms[layer])


def spaced(positions: Sequence[float], gap: float) -> list[float]:
    """Positions for labels: their own positions, moved right where labels would overlap."""
    places: list[float] = []
    for position in positions:
        places.append(max(position, places[-1] + gap) if places else position)
    return places


def readable(token: str) -> str:
    """A response token as a label, with visible line breaks."""
    return repr(token)[1:-1].strip() or "␣"


def _scale(values: NDArray[np.floating[Any]]) -> PowerNorm:
    """The colours of [`tone`] as a scale for a colour bar."""
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, max(float(np.percentile(values, 99.5)), float(np.finfo(np.float32).tiny)), clip=True)


def _add_bar(ax: Axes, label: str) -> None:
    """A colour bar to the right that does not shrink the axes, so that all time axes stay aligned."""
    place = ax.inset_axes((1.012, 0, 0.012, 1))
    assert ax.figure is not None
    bar = ax.figure.colorbar(ax.collections[0], cax=place, extend="max")
    bar.set_label(label, fontsize=6)
    bar.ax.tick_params(labelsize=6, length=2, pad=1)
    bar.ax.locator_params(nbins=4)


def plot_layers(timeline: Timeline, ax: Axes) -> None:
    """Draws A_j by layer and time."""
    edges = np.append(timeline.frame_times[:, 0], timeline.seconds)
    layers = np.arange(timeline.n_layers + 1) - 0.5
    picture = layer_picture(timeline)
    ax.pcolormesh(edges, layers, picture, norm=_scale(picture), **_HEATMAP)
    ax.set(ylabel="LLM layer")


def plot_rows(timeline: Timeline, layer: int, ax: Axes, *, standing_out: bool = False) -> None:
    """Draws the attention of each response token (top to bottom) to each moment in one layer."""
    picture = row_picture(timeline, layer, standing_out=standing_out)
    edges = np.append(timeline.frame_times[:, 0], timeline.seconds)
    ax.pcolormesh(edges, np.arange(len(picture) + 1) - 0.5, picture, norm=_scale(picture), **_HEATMAP)
    step = -(-len(picture) // _LABELLED)
    labels = [plain(readable(token)) for token in timeline.tokens]
    ax.set_yticks(range(0, len(picture), step), labels[::step], fontsize=6)
    ax.invert_yaxis()


@with_own_settings
def timeline_figure(timeline: Timeline, layer: int | None = None) -> Figure:
    """The whole figure over one time axis.

    Args:
        timeline: what to draw.
        layer: the layer whose attention is drawn for each response token; see [`Timeline.choose_layer`].

    Raises:
        InputError: there is no such layer.
    """
    import seaborn as sns

    layer = timeline.choose_layer(layer)
    rows = min(max(0.14 * len(timeline.tokens), 1.2), 5.5)
    heights = [0.9, 0.9, 2.6, rows, rows]
    with sns.axes_style("ticks"), sns.plotting_context("paper"):
        figure = new_figure(_inches(timeline), sum(heights) + 2)
        grid = figure.add_gridspec(5, 2, width_ratios=(7, 1), height_ratios=heights, wspace=0.14)
        axes = [figure.add_subplot(grid[0, 0])]
        axes += [figure.add_subplot(grid[i, 0], sharex=axes[0]) for i in range(1, 5)]
        _draw_waveform(timeline, axes[0])
        _draw_spectrogram(timeline, axes[1])
        plot_layers(timeline, axes[2])
        plot_rows(timeline, layer, axes[3])
        plot_rows(timeline, layer, axes[4], standing_out=True)
        _draw_titles(timeline, layer, axes)
        for ax, label in zip(axes[2:], ("1 = even", "norm", "1 = the response's mean"), strict=True):
            _add_bar(ax, label)
        _draw_curves(timeline, layer, figure.add_subplot(grid[2, 1], sharey=axes[2]))
        for ax in axes[:-1]:
            ax.tick_params(labelbottom=False)
        for ax, word in product(axes, timeline.words or []):
            ax.axvline(word.begin, color="0.6", linewidth=0.4, alpha=0.8)
        axes[-1].set(xlim=(0, timeline.seconds), xlabel=f"time (s); {PLACED[timeline.times_from]}")
        figure.suptitle(_title(timeline), fontsize=8, x=0.01, ha="left")
    return figure


def save_timeline(timeline: Timeline, out: Path, layer: int | None = None) -> None:
    """Writes `PICTURES`."""
    save_figure(timeline_figure(timeline, layer), out / "timeline")


def _inches(timeline: Timeline) -> float:
    """Width of the figure."""
    return max(9.0, min(0.9 * timeline.seconds, 30))


def _draw_titles(timeline: Timeline, layer: int, axes: Sequence[Axes]) -> None:
    follows = timeline.advance(timeline.standing_out())[layer]
    titles = (
        "norm-based attention of the response, relative to the layer's mean",
        f"by response token, layer {layer}",
        f"the same, relative to its mean over the response (peaks follow the speech in order: ρ = {follows:.2f})",
    )
    for ax, title in zip(axes[2:], titles, strict=True):
        ax.set_title(title, loc="left", fontsize=8)


def _draw_waveform(timeline: Timeline, ax: Axes) -> None:
    step = max(len(timeline.waveform) // 8000, 1)
    shape = timeline.waveform[: len(timeline.waveform) // step * step].reshape(-1, step)
    seconds = np.arange(len(shape)) * step / RATE
    ax.fill_between(seconds, shape.min(1), shape.max(1), color="0.35", linewidth=0.3)
    words = timeline.words or []
    text_style: dict[str, Any] = {"fontsize": 7, "rotation": 40, "ha": "left", "va": "bottom"}
    # Slanted lines of text are 10 points apart if they begin 10 / sin 40 apart; the axis takes 0.75 of the width.
    points = 0.75 * 72 * _inches(timeline)
    places = spaced([word.begin for word in words], 16 * timeline.seconds / points)
    for word, place in zip(words, places, strict=True):
        ax.annotate(plain(word.text), (place, 1.02), xycoords=("data", "axes fraction"), **text_style)
    ax.set(ylabel="wave", yticks=[])


def _draw_spectrogram(timeline: Timeline, ax: Axes) -> None:
    mel = log_mel(timeline)
    edges = np.minimum(np.arange(mel.shape[1] + 1) * 0.01, timeline.seconds)
    ax.pcolormesh(edges, np.arange(len(mel) + 1), mel, **_HEATMAP)
    ax.set(ylabel="log-mel", yticks=[])


def _draw_curves(timeline: Timeline, layer: int, ax: Axes) -> None:
    """Eta by layer, and the advance of attention through the speech, beside the layers."""
    layers = np.arange(timeline.n_layers)
    ax.plot(timeline.eta, layers, color="0.2", label="η")
    ax.plot(timeline.advance(timeline.standing_out()), layers, color="C1", linewidth=1, label="follows ρ")
    ax.axvline(0.5, color="0.6", linewidth=0.8, zorder=0)
    ax.axhline(layer, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
    ax.set(xlim=(-1.02, 1.02))
    ax.tick_params(labelleft=False)
    ax.legend(frameon=False, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))


def _title(timeline: Timeline) -> str:
    lines = {
        "": f"{timeline.checkpoint.name}, sample {timeline.sample['id']}",
        "instruction: ": timeline.sample["instruction"],
        "response: ": " ".join(timeline.sample["response"].split()),
    }
    cut = {name: text if len(text) <= 120 else f"{text[:119]}…" for name, text in lines.items()}
    return plain("\n".join(f"{name}{text}" for name, text in cut.items()))
