"""The paired check: would a fall of eta show on other utterances too, in any of all layers at once?

Eta of each utterance is taken from both results. A layer has regressed if its mean fall is above the tolerance by more
than chance: were it the tolerance and no more, what the utterances fall beyond it could as well have the other sign.
The p-value is the share of random signs in which the *largest* Student's t among all layers reaches the layer's own
([`corrected_p`]; Nichols & Holmes 2002), so that thirty layers together raise a false alarm in
about 5 % of draws of utterances at most, however they hang together.

Why against the tolerance and not against 0: a gate asks whether eta fell by more than it may; with enough utterances
any fall differs from 0. Why t and not the fall itself: layers scatter by factors of fifty, and the loudest would set
the bar for all. Why signs and not a bootstrap: a single odd utterance, or layers that differ by rounding alone, make
the t of resamples as large as you like, and blind the check to every other layer; the t of signs cannot exceed the
root of the number of utterances. Their price is that differences far from symmetric raise more false alarms on few
utterances. `analyses/regression` counts them.
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
"""Utterances: on fewer, differences that are not symmetric raise false alarms in more than one check of twenty."""


def paired_moves(
    baseline: tuple[Path, Baseline], current: tuple[Path, Baseline], tolerance: float, *, two_sided: bool
) -> dict[str, Any]:
    """What [`CurveCheck`] says of two results (folder and `result.json` each) on the samples that both measured.

    Returns:
        `before`, `now` and `p` (each `[layers]`), `n_utterances`, `would_find` and `notes`.

    Raises:
        InputError: a folder lacks its arrays, they are not those of its `result.json`, too few utterances are shared,
            or responses that were given differ.
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

    Under `ratio_of_means` a sample has no eta of its own: this is then the mean and its influence on it (the first
    order of the jackknife), whose scatter is that of the curve.
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
    """P-values of "the mean fall is the tolerance at most", corrected for the number of layers; `[layers]`, float64.

    Args:
        falls: of eta in each sample, `[samples, layers]`.
        clusters: number of the utterance of each sample, `[samples]`.
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
    """The result with its arrays, held against the curve beside them.

    Raises:
        InputError: `folder` is none, lacks its arrays, or they do not give the curve of its `result.json`.
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
