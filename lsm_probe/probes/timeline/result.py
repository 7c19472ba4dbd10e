"""The timeline of one utterance as a result: numbers by layer, response token and time, and statistics of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.stats import spearmanr

from lsm_probe.data.identity import DataIdentity
from lsm_probe.errors import InputError, one_line
from lsm_probe.models.speech_times import FRAME_SECONDS, RATE, Times
from lsm_probe.probes.timeline.words import Word, loudness
from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.runner.precision import describe
from lsm_probe.runner.result import Floats, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The response's attention to the speech of one utterance, by layer of the LLM and by time.

    Norms are those of the attention probe in head form `sum_then_norm`, in the unit of the model's residual stream.

    Attributes:
        sample: its id, task, instruction, transcript (`text`, None if unknown), response and response token ids.
        tokens: the response's tokens as text, one for each generating row.
        checkpoint, data: identity and hashes.
        conventions: of eta.
        versions: of the packages that the numbers depend on.
        eta: instruction proportion, `[layers]`.
        norms: a(m, j) of generating row m and speech token j, `[layers, rows, speech tokens]`; its mean over rows is
            A_j.
        token_times: begin and end of the speech that each speech token covers, seconds, `[speech tokens, 2]`.
        times_from: how these times were found: `connector`, or `even` if the model's token times are unknown, so that
            tokens are spread evenly over the utterance.
        shares: what part of each speech token comes from each frame, `[speech tokens, frames]`, rows summing to 1: for
            a `window_qformer` the shares of its own norm-based cross-attention, otherwise the overlap in time.
        frame_times: begin and end of each frame of 20 ms, seconds, `[frames, 2]`.
        words: the transcript's words with their times; None if times could not be found.
        words_missing: why words have no times.
        self_check: of the LLM's attention, and of the encoder's and connector's if these were measured.
        waveform: mono at 16 kHz, `[samples]`; not stored in `timeline.json`.
    """

    SCHEMA: ClassVar[str] = "lsm-probe/timeline/1"

    sample: dict[str, Any]
    tokens: list[str]
    checkpoint: CheckpointIdentity
    data: DataIdentity
    conventions: dict[str, str]
    versions: dict[str, str]
    eta: Floats
    norms: Floats
    token_times: Times
    times_from: Literal["connector", "even"]
    shares: csr_array
    frame_times: Times
    words: list[Word] | None
    words_missing: str | None
    self_check: dict[str, Any]
    waveform: NDArray[np.float32] = field(repr=False)

    def __repr__(self) -> str:
        layer = self.choose_layer()
        return one_line(
            f"Timeline({self.checkpoint.name}, sample {self.sample['id']} of {self.seconds:.2f} s, {len(self.tokens)} "
            f"response tokens): attention advances most in layer {layer}, by rank correlation "
            f"{self.advance(self.standing_out())[layer]:.2f} (chance up to {self.chance():.2f})"
        )

    def _repr_html_(self) -> str:
        """The timeline in a notebook: its `repr`, a small table and a small picture."""
        html: str = resolve_name("lsm_probe.probes.timeline.timeline_html:timeline_html")(self)
        return html

    def precision_note(self) -> str | None:
        """One line on the numerical precision: half precision or quantised weights; None for neither."""
        verify = "lsm-probe attention --verify-precision"
        return describe(self.checkpoint.dtype, self.checkpoint.quantised, None, {}, verify)

    @property
    def seconds(self) -> float:
        return len(self.waveform) / RATE

    @property
    def n_layers(self) -> int:
        return len(self.norms)

    def by_frame(self, norms: Floats) -> Floats:
        """Distribute amounts `[..., speech tokens]` over frames, `[..., frames]`; the sums stay the same."""
        flat: Floats = norms.reshape(-1, norms.shape[-1]) @ self.shares
        return flat.reshape(*norms.shape[:-1], -1)

    def at_frame(self, values: Floats) -> Floats:
        """Ratios `[..., speech tokens]` by frame, `[..., frames]`: means over the frame's tokens, weighted by
        shares."""
        total = self.shares.sum(0)
        return self.by_frame(values) / np.maximum(total, np.finfo(total.dtype).tiny)

    def over_time(self) -> Floats:
        """A_j by layer and frame, `[layers, frames]`."""
        return self.by_frame(self.norms.mean(1))

    def standing_out(self) -> Floats:
        """a(m, j) divided by A_j, its mean over rows: `[layers, rows, speech tokens]`.

        Every row attends strongly to certain speech tokens, whatever token it predicts; the division removes this
        effect.
        """
        mean = self.norms.mean(1, keepdims=True)
        return self.norms / np.maximum(mean, np.finfo(mean.dtype).tiny)

    def peak_times(self, norms: Floats) -> NDArray[np.float64]:
        """The middle of the speech token where each row of `norms [layers, rows, speech tokens]` is largest, seconds,
        `[layers, rows]`."""
        middles: NDArray[np.float64] = self.token_times.mean(1)
        return middles[norms.argmax(-1)]

    def advance(self, norms: Floats) -> NDArray[np.float64]:
        """Spearman's rank correlation of the row number with the time of the row's peak, `[layers]`.

        It is 1 if attention follows the speech in order, NaN if all peaks are at one time.

        It does not prove that attention follows words. Positions alone can make later rows attend to later speech, so
        an untrained connector also has a high value in some layers. Compare with an untrained connector.

        Args:
            norms: `self.norms`, or [`standing_out`].
        """
        peaks = self.peak_times(norms)
        rows = np.arange(peaks.shape[1])
        moving = [len(np.unique(peak)) > 1 for peak in peaks]
        return np.array([spearmanr(rows, p).statistic if m else np.nan for p, m in zip(peaks, moving, strict=True)])

    def chance(self) -> float:
        """The absolute value that [`advance`] exceeds in 1 of 20 layers if rows and times are independent; at most
        1."""
        return min(1.0, float(1.96 / np.sqrt(max(len(self.tokens) - 1, 1))))

    def choose_layer(self, layer: int | None = None) -> int:
        """The given layer, or by default the layer with the largest [`advance`] of [`standing_out`].

        If the response is short, the largest of many layers is high by chance alone: see [`chance`].

        Raises:
            InputError: there is no such layer.
        """
        if layer is None:
            return int(np.argmax(np.nan_to_num(self.advance(self.standing_out()), nan=-1)))
        return check_layer(layer, self.n_layers)

    def in_words(self) -> NDArray[np.bool_] | None:
        """Whether the middle of each frame lies in a word, `[frames]`."""
        if self.words is None:
            return None
        middles = self.frame_times.mean(1)
        return np.any([(word.begin <= middles) & (middles < word.end) for word in self.words], axis=0)

    def words_to_silence(self) -> NDArray[np.float64] | None:
        """Mean A_j per frame inside words divided by that outside words, `[layers]`; None if word times are unknown, or
        if there are no frames inside or outside words."""
        inside = self.in_words()
        if inside is None or inside.all() or not inside.any():
            return None
        over_time = self.over_time().astype(np.float64)
        ratio: NDArray[np.float64] = over_time[:, inside].mean(1) / over_time[:, ~inside].mean(1)
        return ratio

    def to_frame(self) -> pd.DataFrame:
        """A row for each layer: eta, the advance of attention (plain and standing out), words against silence."""
        ratio = self.words_to_silence()
        return pd.DataFrame(
            {
                "checkpoint": self.checkpoint.name,
                "sample": self.sample["id"],
                "layer": np.arange(self.n_layers),
                "eta": self.eta,
                "advance": self.advance(self.norms),
                "advance_standing_out": self.advance(self.standing_out()),
                "words_to_silence": np.nan if ratio is None else ratio,
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """The content of `timeline.json`: all numbers behind the pictures, except the spectrogram and the waveform;
        norms to five significant digits."""
        ratio = self.words_to_silence()
        return {
            "schema": self.SCHEMA,
            "checkpoint": self.checkpoint.to_dict(),
            "data": self.data.to_dict(),
            "conventions": self.conventions,
            "versions": self.versions,
            "sample": self.sample,
            "seconds": round(self.seconds, 4),
            "self_check": self.self_check,
            "layers": list(range(self.n_layers)),
            "eta": _significant(self.eta),
            "advance": _significant(self.advance(self.norms)),
            "advance_standing_out": _significant(self.advance(self.standing_out())),
            "advance_chance": round(self.chance(), 4),
            "words_to_silence": None if ratio is None else _significant(ratio),
            "words": None if self.words is None else [dataclasses.asdict(word) for word in self.words],
            "words_missing": self.words_missing,
            "speech_token_times": self.token_times.round(4).tolist(),
            "speech_token_times_from": self.times_from,
            "frame_seconds": FRAME_SECONDS,
            "loudness_db": loudness(self.waveform).round(1).tolist(),
            "norms_by_frame": _significant(self.over_time()),
            "response_tokens": self.tokens,
            "norms_by_response_token": _significant(self.norms),
        }

    def save(self, folder: str | Path) -> Path:
        """Writes `timeline.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "timeline.json", self.to_dict())
        return folder

    def plot(self, layer: int | None = None) -> Figure:
        """Draw the timeline; see [`timeline_figure`]."""
        figure: Figure = resolve_name("lsm_probe.probes.timeline.plot:timeline_figure")(self, layer)
        return figure


def check_layer(layer: int, layers: int) -> int:
    """Return the layer if the LLM has it.

    Raises:
        InputError: there is no such layer.
    """
    if not 0 <= layer < layers:
        raise InputError(f"layer {layer} is not one of {layers}: give 0 to {layers - 1}")
    return layer


def _significant(values: Floats) -> Any:
    """Lists of numbers with five significant digits; NaN (undefined) becomes None."""
    if np.ndim(values):
        return [_significant(value) for value in values]
    return None if np.isnan(values) else float(f"{values:.5g}")
