"""The paired check: would a fall of eta also be found on other utterances, tested in all layers together?

Both results give eta of each utterance. The null hypothesis is that a layer's mean fall equals the tolerance: then the
excess of each utterance's fall over the tolerance could as well have the opposite sign. The p-value is the share of
random signs for which the *largest* Student's t of all layers reaches the layer's own ([`corrected_p`]; Nichols &
Holmes 2002). So all layers together give a false alarm in at most about 5 % of draws of utterances, whatever their
correlation.

The test is against the tolerance, not against 0, because with enough utterances any fall differs from 0. It uses t and
not the fall itself, because the spread differs between layers by factors of fifty, and the noisiest would set the
threshold for all. It uses signs and not a bootstrap: with a single outlying utterance, or layers that differ only by
rounding, the t of resamples becomes arbitrarily large and hides every other layer. The t of signs cannot exceed the
root of the number of utterances. A disadvantage of signs: strongly asymmetric differences give more false alarms with
few utterances. `analyses/regression` counts them.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsm_probe.errors import InputError
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.regression.baseline import Baseline
from lsm_probe.runner.multiple_testing import SIGNIFICANT, corrected_p
from lsm_probe.runner.result import Floats

FEWEST = 20
"""Fewest utterances. With fewer, asymmetric differences cause false alarms in more than 5 % of checks."""


def paired_moves(
    baseline: tuple[Path, Baseline], current: tuple[Path, Baseline], tolerance: float, *, two_sided: bool
) -> dict[str, Any]:
    """Compares two results (folder and `result.json` each) on their common samples; see [`CurveCheck`].

    Returns:
        `before`, `now` and `p` (each `[layers]`), `n_utterances`, `would_find` and `notes`.

    Raises:
        InputError: a folder lacks its arrays, they do not belong to its `result.json`, the results share too few
            utterances, or given responses differ.
    """
    first, second = load_arrays(*baseline), load_arrays(*current)
    ids = [sample for sample in first.ids if sample in set(second.ids)]
    notes = [] if ids == first.ids == second.ids else [f"compared on the {len(ids)} samples that both measured"]
    if not ids:
        raise InputError("--paired: the two results have no measured sample in common")
    first, second = first.subset(ids), second.subset(ids)
    n_utterances = int(first.clusters.max()) + 1
    if n_utterances < FEWEST:
        raise InputError(
            f"--paired needs {FEWEST} utterances, the two results share {n_utterances}: measure more utterances, "
            "or leave --paired out"
        )
    if second.checkpoint.responses == "given" and first.responses() != second.responses():
        raise InputError("the given responses differ: probe both with the same --responses")
    before, now = eta_by_sample(first), eta_by_sample(second)
    falls = before - now
    test = partial(p_values, clusters=first.clusters, tolerance=tolerance, seed=first.seed, two_sided=two_sided)
    planted = test(falls - falls.mean(0) + 2 * tolerance)
    return {
        "before": before.mean(0).tolist(),
        "now": now.mean(0).tolist(),
        "p": test(falls).tolist(),
        "n_utterances": n_utterances,
        "would_find": int((planted <= SIGNIFICANT).sum()),
        "notes": notes,
    }


def eta_by_sample(result: AttentionResult) -> Floats:
    """Eta of each sample under the result's conventions, `[samples, layers]`; the mean is the curve.

    Under `ratio_of_means` a single sample has no eta. The value is then the mean plus the sample's influence on it (the
    first order of the jackknife), which has the same spread as the curve.
    """
    instruction, source = result.scores()
    both = instruction + source
    if result.conventions.aggregate == "mean_of_ratios":
        return instruction / both
    eta = instruction.mean(0) / both.mean(0)
    return eta + (instruction - eta * both) / both.mean(0)


def p_values(
    falls: Floats, *, clusters: NDArray[np.int64], tolerance: float, seed: int, two_sided: bool = False
) -> Floats:
    """P-values for "the mean fall is at most the tolerance", corrected for the number of layers; `[layers]`, float64.

    Args:
        falls: of eta in each sample, `[samples, layers]`.
        clusters: index of the utterance of each sample, `[samples]`.
        tolerance: in units of eta.
        seed: of the random signs.
        two_sided: test "neither fall nor rise is above the tolerance" instead, corrected for both.
    """
    beyond = falls - tolerance
    if not two_sided:
        return corrected_p(beyond, clusters, seed=seed, side="greater")
    both = np.stack([beyond, -falls - tolerance], axis=1)
    return corrected_p(both, clusters, seed=seed, side="greater").min(0)


def load_arrays(folder: Path, baseline: Baseline) -> AttentionResult:
    """The result with its arrays, checked against the curve stored beside them.

    Raises:
        InputError: `folder` has no result, lacks its arrays, or they do not give the curve of its `result.json`.
    """
    if not folder.is_dir():
        raise InputError(f"--paired needs a folder with arrays.npz, which {folder} is not")
    result = AttentionResult.load(folder)
    try:
        same = np.allclose(result.eta().mean, baseline.eta.mean, rtol=0, atol=2e-6)
    except (ValueError, IndexError) as error:
        raise InputError(f"{folder}/arrays.npz is damaged ({' '.join(str(error).split())}): probe again") from None
    if not same or len(result.ids) != baseline.n_samples:
        raise InputError(
            f"{folder}/arrays.npz does not belong to the result.json beside it: run the probe again, or use "
            "--update with --paired"
        )
    return result
