"""The conventions of eta: the choices that turn norms into an instruction proportion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsm_probe.runner.conventions import Choices


@dataclass(frozen=True)
class Conventions(Choices):
    """How norms become an eta. Defaults are listed first. All but `response` can be changed without another run.

    Attributes:
        heads: `sum_then_norm` takes the norm of the sum over heads (Kobayashi 2020, equation 3);
            `mean_of_norms` takes the mean over heads of each head's norm.
        segment: `mean` over a segment's tokens (arXiv 2410.03798, equation 2), or their `sum`.
        aggregate: `mean_of_ratios` averages the samples' etas; `ratio_of_means` averages the scores first.
        span: what counts as instruction: `instruction` alone, or `instruction+template`, which adds the template tokens
            (without the system text and position 0).
        response: the response that the generating rows predict: the model's own `generated` one or the `reference`.
    """

    heads: Literal["sum_then_norm", "mean_of_norms"] = "sum_then_norm"
    segment: Literal["mean", "sum"] = "mean"
    aggregate: Literal["mean_of_ratios", "ratio_of_means"] = "mean_of_ratios"
    span: Literal["instruction", "instruction+template"] = "instruction"
    response: Literal["generated", "reference"] = "generated"
