"""Write `coverage.csv`: coverage of 95 % intervals by method, kind of data and number of utterances.

Run it with `python analyses/intervals/coverage.py` (about four minutes on one core).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent / "speech_anchor_bias"))
import measured  # noqa: E402

from lsm_probe import intervals  # noqa: E402

Floats = NDArray[np.float64]
Interval = tuple[Floats, Floats]

UTTERANCES = (3, 4, 6, 8, 12, 16, 24, 48)
LEVEL = 0.95
TAIL = (1 - LEVEL) / 2
REPETITIONS = 1_000
DRAWS = 999
SIZES = (1, 1, 2, 4)
"""Numbers of samples per utterance, drawn with equal probability in experiments with unequal numbers."""


@dataclass(frozen=True)
class Shape:
    """A statistic of sums over samples, and a population to draw the samples from.

    Attributes:
        draw: `(random, shape) -> counts`: `[..., utterances, samples] -> [..., utterances, samples, k]`.
        score: sums over samples, `[..., k]`, to the statistic, `[...]`; by default the first sum over the second.
        kind: `mean`, `share` (of samples), `rate` (of errors, at least 0) or `difference` of two shares.
    """

    name: str
    draw: Callable[[np.random.Generator, tuple[int, ...]], Floats]
    score: Callable[[Floats], Floats] = lambda sums: _ratio(sums[..., 0], sums[..., 1])
    kind: str = "mean"


def _values(draw: Callable[[Floats], Floats]) -> Callable[..., Floats]:
    """Samples from a quantile function; samples of one utterance have a correlation of 0.5."""

    def drawn(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        values = draw(stats.norm.cdf(_correlated(random, shape)))
        return np.stack([values, np.ones(shape), values**2], -1)

    return drawn


def _correlated(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Normal samples; samples of one utterance have a correlation of 0.5."""
    return np.sqrt(0.5) * (random.normal(size=(*shape[:-1], 1)) + random.normal(size=shape))


def _labels(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """Counts of `lsm_probe.evaluation.metrics.f1` for three labels of which 70 % are right, and chance."""
    meant, guessed = (random.choice(3, p=[0.5, 0.3, 0.2], size=shape) for _ in range(2))
    said = np.where(_correlated(random, shape) < stats.norm.ppf(0.7), meant, guessed)
    meant_one, said_one = (np.eye(3)[labels] for labels in (meant, said))
    return np.concatenate([2 * meant_one * said_one, meant_one + said_one], -1)


def _f1(sums: Floats) -> Floats:
    """Macro F1 over the labels that occur."""
    hits, whole = sums[..., :3], sums[..., 3:]
    return _ratio(np.nan_to_num(_ratio(hits, whole)).sum(-1), (whole > 0).sum(-1))


def _resampled(parts: Floats, wholes: Floats) -> Callable[..., Floats]:
    """Samples from real ones, `[utterances, samples]`; the samples of one utterance stay together."""

    def drawn(random: np.random.Generator, shape: tuple[int, ...]) -> Floats:
        utterance = random.integers(len(parts), size=(*shape[:-1], 1))
        sample = random.permuted(np.broadcast_to(np.arange(shape[-1]) % parts.shape[1], shape), axis=-1)
        return np.stack([parts[utterance, sample], wholes[utterance, sample]], -1)

    return drawn


def _sensitivities(arm: str) -> tuple[Floats, Floats]:
    """D_i and D_s of an arm's own responses in both seeds, `[utterances, samples]`, nats per token."""
    found = [measured.measured(seed, "own-words")[arm] for seed in measured.seeds()]
    order = [np.argsort(result.clusters, kind="stable") for result in found]
    both = [[values[rows].reshape(-1, 2) for values in r.by_sample()] for r, rows in zip(found, order, strict=True)]
    return np.concatenate([i for i, _ in both]), np.concatenate([s for _, s in both])


def _word_errors() -> tuple[Floats, Floats]:
    """Wrong words and all words of each utterance, of the self-powered arm in both seeds, `[utterances, 1]`."""
    found = [measured.measured(seed, "evaluation")["self_powered"].metrics() for seed in measured.seeds()]
    counts = np.concatenate([metrics["commands-transcription"]["word_error_rate"].counts for metrics in found])
    return counts[:, :1], counts[:, 1:]


def shapes() -> list[Shape]:
    repaired, vanilla = _sensitivities("self_powered"), _sensitivities("vanilla_asr")
    ones = np.ones_like(repaired[0])
    share = [
        Shape(f"share {p:g}", _values(lambda u, p=p: (u < p).astype(float)), kind="share") for p in (0.5, 0.9, 0.03)
    ]
    change = _values(lambda u: (u < 0.3).astype(float) - (u > 0.95))
    return [
        Shape("normal (eta)", _values(lambda u: 0.4 + 0.1 * stats.norm.ppf(u))),
        Shape("skewed with a ceiling", _values(lambda u: np.minimum(0.3 * np.exp(0.9 * stats.norm.ppf(u)), 2.3))),
        Shape("D_i, self-powered", _resampled(repaired[0], ones)),
        Shape("D_s, self-powered", _resampled(repaired[1], ones)),
        Shape("D_i, vanilla", _resampled(vanilla[0], ones)),
        Shape("info-eta, self-powered", _resampled(repaired[0], repaired[0] + repaired[1])),
        *share,
        Shape("difference of shares 0.25", change, kind="difference"),
        Shape("word error rate", _resampled(*_word_errors()), kind="rate"),
        Shape("macro F1", _labels, _f1, kind="share"),
    ]


@dataclass(frozen=True)
class Draw:
    """Repetitions of an experiment.

    Attributes:
        sums: over the samples of each utterance, `[repetitions, utterances, k]`.
        n_samples: of each repetition, `[repetitions]`.
        shape: what was drawn.
    """

    sums: Floats
    n_samples: NDArray[np.int64]
    shape: Shape

    @property
    def n(self) -> int:
        return self.sums.shape[1]

    def estimates(self, weights: Floats) -> Floats:
        """`[draws, utterances]` -> `[repetitions, draws]`."""
        return self.shape.score(np.moveaxis(np.tensordot(self.sums, weights, (1, 1)), 1, -1))

    def estimate(self) -> Floats:
        """`[repetitions, 1]`."""
        return self.estimates(np.ones((1, self.n)))

    def left_out(self) -> Floats:
        """Without each utterance, `[repetitions, utterances]`."""
        return self.estimates(1 - np.eye(self.n))

    def influences(self) -> Floats:
        """Pseudo-values of the jackknife minus the estimate, `[repetitions, utterances]`."""
        return np.nan_to_num((self.n - 1) * (self.estimate() - self.left_out()))

    def standard_errors(self, weights: Floats) -> Floats:
        """Linearised standard error of a ratio of sums in each resample: `[repetitions, draws]`."""
        parts, wholes, ratio = self.sums[..., 0], self.sums[..., 1], self.estimates(weights)
        squares = parts**2 @ weights.T - 2 * ratio * ((parts * wholes) @ weights.T) + ratio**2 * (wholes**2 @ weights.T)
        return _ratio(np.sqrt(squares.clip(0) * self.n / (self.n - 1)), wholes @ weights.T)


def _ratio(parts: Floats, wholes: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(wholes != 0, parts / wholes, np.nan)


def _weights(n: int) -> Floats:
    return np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(np.float64)


def _quantiles(drawn: Floats, tails: Floats | float) -> Interval:
    """Quantiles of each row of `[repetitions, draws]`, by row."""
    ordered = np.sort(drawn, axis=1)
    known = (~np.isnan(ordered)).sum(1, keepdims=True)
    low, high = (np.broadcast_to(end, (len(drawn), 1)) for end in ((tails, 1 - tails) if np.isscalar(tails) else tails))

    def at(share: Floats) -> Floats:
        return np.take_along_axis(ordered, np.round((known - 1) * share).astype(int), 1)

    return at(low), at(high)


def percentile(draw: Draw) -> Interval:
    return _quantiles(draw.estimates(_weights(draw.n)), TAIL)


def expanded_percentile(draw: Draw) -> Interval:
    """Hesterberg 2015, section 3.2: quantiles so far out that the interval of normal data is that of Student's t."""
    tail = stats.norm.cdf(np.sqrt(draw.n / (draw.n - 1)) * stats.t.ppf(TAIL, draw.n - 1))
    return _quantiles(draw.estimates(_weights(draw.n)), float(tail))


def bca(draw: Draw) -> Interval:
    """Efron 1987."""
    drawn, point, influences = draw.estimates(_weights(draw.n)), draw.estimate(), draw.influences()
    below = ((drawn < point).sum(1) + 0.5 * (drawn == point).sum(1)) / DRAWS
    bias = stats.norm.ppf(below.clip(1 / DRAWS, 1 - 1 / DRAWS))[:, None]
    centred = influences - influences.mean(1, keepdims=True)
    skew = _ratio((centred**3).sum(1), 6 * (centred**2).sum(1) ** 1.5)
    skew = np.nan_to_num(skew)[:, None]
    moved = [bias + (bias + z) / (1 - skew * (bias + z)) for z in stats.norm.ppf([TAIL, 1 - TAIL])]
    return _quantiles(drawn, np.stack([stats.norm.cdf(z) for z in moved]))


def bootstrap_t(draw: Draw) -> Interval:
    """Studentised by the linearised standard error of each resample (Davison and Hinkley 1997, section 5.2.1)."""
    ones, weights = np.ones((1, draw.n)), _weights(draw.n)
    return _studentised(
        draw.estimate(), draw.standard_errors(ones), draw.estimates(weights), draw.standard_errors(weights)
    )


def bootstrap_t_of_pseudo_values(draw: Draw) -> Interval:
    """The same for the mean of the pseudo-values, whatever the statistic is."""
    values, weights = draw.influences(), _weights(draw.n)
    means = values @ weights.T / draw.n
    errors = np.sqrt((values**2 @ weights.T / draw.n - means**2).clip(0) / (draw.n - 1))
    return _studentised(draw.estimate(), _standard_error(values), means + draw.estimate(), errors)


def _studentised(point: Floats, error: Floats, drawn: Floats, errors: Floats) -> Interval:
    moved = drawn - point
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.where(errors > 1e-12 * np.abs(point), moved / errors, np.sign(np.round(moved, 12)) * np.inf)
    low, high = _quantiles(np.nan_to_num(ratios, nan=0.0), TAIL)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(point - high * error, nan=-np.inf), np.nan_to_num(point - low * error, nan=np.inf)


def student_t(draw: Draw) -> Interval:
    """Student's t interval of the pseudo-values (Arvesen 1969)."""
    reach = stats.t.ppf(1 - TAIL, draw.n - 1) * _standard_error(draw.influences())
    return draw.estimate() - reach, draw.estimate() + reach


def sign_flips(draw: Draw) -> Interval:
    """All values that a sign-flip test does not reject: quantiles of the means of random subsets (Hartigan 1969)."""
    values = draw.estimate() + draw.influences()
    if draw.n < 10:
        chosen = (np.arange(1, 2**draw.n)[:, None] >> np.arange(draw.n)) & 1
    else:
        chosen = np.random.default_rng(0).integers(2, size=(DRAWS, draw.n))
    chosen = chosen[chosen.any(1)].astype(np.float64)
    place = int(np.floor(TAIL * (len(chosen) + 1)))  # the ends are the place-th smallest and largest subset means
    if place < 1:
        return np.full((len(values), 1), -np.inf), np.full((len(values), 1), np.inf)
    means = np.sort(values @ chosen.T / chosen.sum(1), axis=1)
    return means[:, place - 1 : place], means[:, -place : len(means.T) - place + 1]


def own(draw: Draw) -> Interval:
    """The interval of lsm-probe."""
    point, left_out = draw.estimate()[:, 0], draw.left_out().T
    low, high = intervals.interval(point, left_out)
    if draw.shape.kind == "difference":
        low, high = intervals.share_difference_interval(
            point, left_out, draw.sums[..., 2].sum(1) / draw.n_samples, draw.n_samples
        )
    if draw.shape.kind in ("share", "rate"):
        ends = intervals.share_interval(point, left_out, draw.n_samples)
        if draw.shape.kind == "share":
            low, high = ends
        else:  # with no errors, use the interval of the share of utterances with errors
            alike = np.isin(point, [0, 1]) & (np.ptp(left_out, 0) < 1e-11)
            low, high = np.where(alike, ends[0], low.clip(0)), np.where(alike, ends[1], high)
    return low[:, None], high[:, None]


def _standard_error(values: Floats) -> Floats:
    """Standard error of the mean over utterances of `[repetitions, utterances]`."""
    return values.std(1, ddof=1, keepdims=True) / np.sqrt(values.shape[1])


METHODS: dict[str, Callable[[Draw], Interval]] = {
    "percentile": percentile,
    "expanded percentile": expanded_percentile,
    "BCa": bca,
    "bootstrap-t": bootstrap_t,
    "bootstrap-t of pseudo-values": bootstrap_t_of_pseudo_values,
    "Student t": student_t,
    "sign flips": sign_flips,
    "lsm-probe": own,
}


def draw(shape: Shape, n: int, equal: bool, random: np.random.Generator) -> Draw:
    sizes = np.ones((REPETITIONS, n), int) if equal else random.choice(SIZES, size=(REPETITIONS, n))
    kept = np.arange(max(SIZES)) < sizes[..., None]
    counts = shape.draw(random, kept.shape)
    return Draw((counts * kept[..., None]).sum(-2), sizes.sum(1), shape)


def truth(shape: Shape, random: np.random.Generator) -> float:
    return float(shape.score(shape.draw(random, (400_000, 2)).sum((0, 1))))


def coverage() -> pd.DataFrame:
    random = np.random.default_rng(1)
    rows = []
    for shape in shapes():
        true = truth(shape, random)
        for equal in (True, False):
            for n in UTTERANCES:
                drawn = draw(shape, n, equal, random)
                for name, method in METHODS.items():
                    if name == "bootstrap-t" and shape.score is _f1:
                        continue  # the standard error has no closed form
                    low, high = method(drawn)
                    about = {
                        "shape": shape.name,
                        "samples": "1" if equal else "1 to 4",
                        "utterances": n,
                        "method": name,
                    }
                    misses = {"below": (high < true - 1e-9).mean(), "above": (low > true + 1e-9).mean()}
                    covered = 1 - sum(misses.values())
                    rows.append(about | {"coverage": covered, **misses, "median_width": np.median(high - low)})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    found = coverage()
    found.to_csv(FOLDER / "coverage.csv", index=False, float_format="%.4g")
    print(found.pivot_table("coverage", ["shape", "samples", "method"], "utterances", sort=False).round(3).to_string())
