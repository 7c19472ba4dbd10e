"""Whether a checkpoint understands the speech: its word error rate when asked to transcribe, against chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from lsm_probe.diagnosis.evidence import (
    BETWEEN,
    FOLLOWS,
    IGNORES,
    NO_SPEECH,
    NO_VERDICT,
    Finding,
    Values,
    distance,
    number,
)
from lsm_probe.diagnosis.responses import answer_of
from lsm_probe.diagnosis.word_errors import word_errors
from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.evaluation.scoring import Predictions

UNDERSTOOD = 0.5
"""The speech counts as understood if the word error rate is below this share of the chance level."""
PARTNERS = 5
"""Number of other utterances that a response is compared with, to find the word error rate at chance level."""


def transcription(result: EvaluationResult | None) -> Finding | None:
    """The word error rate for a transcription instruction, compared with that against transcripts of other
    utterances."""
    if result is None:
        return None
    tasks = [task for task in result.tasks if "word_error_rate" in task.metrics]
    rows = [row for task in tasks for row in result.samples if row["task"] == task.name and row.get("reference")]
    if not rows:
        return None
    result = result.subset([row["id"] for row in rows])
    said = [text for task in tasks for text in Predictions(task, [r for r in rows if r["task"] == task.name]).responses]
    references, languages = [row["reference"] for row in rows], [row.get("language") for row in rows]
    own = np.array([word_errors(*each) for each in zip(references, said, languages, strict=True)])
    by_chance = _errors_by_chance(references, said, languages, result.clusters)
    if by_chance is None or not own[:, 1].sum():
        return None
    words = own[:, 1].mean()
    rate = result.mean(100 * own[:, 0] / words).clipped(0, math.inf)
    chance = 100 * float(by_chance.mean() / words)
    understood = distance(result, own[:, 0] - UNDERSTOOD * by_chance)
    evidence = number(
        result, rate, "transcription_error", "word error rate", "%", f"{chance:.0f} % by chance",
        f"With a transcription instruction, the word error rate is {rate.mean:.0f} %. Scored against the transcripts "
        f"of other utterances (the level of chance), the same responses have {chance:.0f} %.",
    )  # fmt: skip
    supports = contradicts = NO_VERDICT
    if understood.below:
        supports, contradicts = frozenset({FOLLOWS, IGNORES, BETWEEN}), frozenset({NO_SPEECH})
    elif understood.above:
        supports = frozenset({NO_SPEECH})
    heard = distance(result, own[:, 0] - by_chance)
    return Finding(evidence, supports, contradicts, {"understood": understood, "heard": heard})


def own_transcriptions(result: EvaluationResult | None, found: Finding | None) -> dict[str, str]:
    """Transcript -> what the checkpoint wrote when asked to transcribe that speech.

    Empty unless the word error rate is clearly below chance: a constant response, for example, is no transcription.

    Args:
        result: the responses to a transcription instruction.
        found: what [`transcription`] says about them.
    """
    if result is None or found is None or not found["heard"].below:
        return {}
    return {row["reference"]: answer_of(row) for row in result.samples if row.get("reference")}


def _errors_by_chance(
    references: Sequence[str], said: Sequence[str], languages: Sequence[str | None], clusters: NDArray[np.int64]
) -> Values | None:
    """Mean number of word errors of each response against the transcripts of other utterances, `[samples]`.

    None if all transcripts are equal. The number of words is not needed: summed over all pairs, it equals that of the
    own transcripts.
    """
    n = len(references)
    pairs: list[tuple[int, int]] = []
    for i in range(n):
        around = ((i + step) % n for step in range(1, n))
        others = (j for j in around if clusters[i] != clusters[j] and references[i] != references[j])
        pairs += [(i, j) for j in islice(others, PARTNERS)]
    if len({i for i, _ in pairs}) < n:
        return None
    errors = [word_errors(references[j], said[i], languages[j])[0] for i, j in pairs]
    own = np.array([i for i, _ in pairs])
    by_chance: Values = np.bincount(own, errors) / np.bincount(own)
    return by_chance
