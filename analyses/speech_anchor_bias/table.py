"""Write `arms.csv`: the results of every probe, one row per arm and seed, and one for the text LLM."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from measured import (
    ARMS,
    CASCADE,
    FAR,
    FOLLOWED,
    LLM,
    MOOD,
    TRUE,
    UNSEEN,
    alignment,
    at_length,
    following,
    importance_depth,
    measured,
    only,
    right,
    seeds,
)

from lsm_probe.evaluation.evaluation_result import EvaluationResult
from lsm_probe.models.segments import Segment
from lsm_probe.probes.attention.reference import last_group_eta
from lsm_probe.reports.conventions import Comparison
from lsm_probe.runner.result import Curve


def columns(name: str, found: Curve) -> dict[str, float]:
    return {name: float(found.mean), f"{name}_low": float(found.ci_low), f"{name}_high": float(found.ci_high)}


def arms() -> pd.DataFrame:
    return pd.DataFrame(_rows())


def _rows() -> Iterator[dict[str, Any]]:
    for seed in seeds():
        for arm in (LLM, CASCADE, *ARMS):
            row: dict[str, Any] = {"arm": arm, "seed": int(seed)}
            if arm != CASCADE:
                row |= _attention(seed, arm) | _sensitivity(seed, arm) | _knockout(seed, arm)
                row |= _other_voices(seed, arm)
                row |= _alignment(seed, arm) | _importance(seed, arm) | _text(seed, arm)
            yield row | _evaluation(seed, arm) | _spoken_otherwise(seed, arm)


def _attention(seed: str, arm: str) -> dict[str, float]:
    """Eta of the last group of layers: alone, compared with the length-matched text LLM, and by kind of instruction.

    Also the share of responses that repeat the transcript, for instructions unlike those of training.
    """
    result = measured(seed, "attention")[arm]
    found = columns("eta", last_group_eta(result))
    found |= columns("eta_sum", last_group_eta(result.with_conventions(segment="sum")))
    for kind in ("trained", "held-out"):
        own = result.subset([sample for sample in result.ids if sample.endswith(f"/{kind}")])
        found |= columns(f"eta_{kind}", last_group_eta(own))
    far = [sample for sample in result.samples if sample["task"] in FAR]
    found["repeats"] = sum(sample["response"].strip() == sample["text"] for sample in far) / len(far)
    found |= columns("eta_same_words", last_group_eta(measured(seed, "same-words")[arm]))
    if arm != LLM:
        compared = Comparison(result, at_length(seed, "attention"))
        same_words = Comparison(measured(seed, "same-words")[arm], at_length(seed, "same-words"))
        own_length = Comparison(result, measured(seed, "attention")[LLM])
        found |= columns("against_llm_own_length", own_length.change())
        found |= columns("against_llm_own_length_sum", own_length.change(segment="sum"))
        found |= columns("against_llm", compared.change())
        found |= columns("against_llm_sum", compared.change(segment="sum"))
        found |= columns("against_llm_same_words", same_words.change())
    return found


def _sensitivity(seed: str, arm: str) -> dict[str, float]:
    """D_i and D_s in nats per token, for SmolLM2's responses and the arm's own; log-probability of the former."""
    found = {}
    for part, name in (("sensitivity", ""), ("own-words", "own_")):
        result = measured(seed, part)[arm]
        found |= columns(f"{name}D_i", result.instruction()) | columns(f"{name}D_s", result.source())
        if part == "sensitivity":
            found |= columns("agreement", result.mean(np.nanmean(result.instruction_log_probs[:, 0], 1)))
    return found


def _knockout(seed: str, arm: str) -> dict[str, float]:
    """Drop in nats per token when a segment is masked in all layers."""
    result = measured(seed, "knockout")[arm]
    found = columns("without_instruction", result.fall_in_all_layers(Segment.INSTRUCTION))
    return found | columns("without_source", result.fall_in_all_layers(Segment.SOURCE))


def _other_voices(seed: str, arm: str) -> dict[str, float]:
    """For voices that no arm was trained on: eta compared with the length-matched text LLM, D_i and D_s."""
    result, own = measured(seed, "voices")[arm], measured(seed, "voices-own-words")[arm]
    found = columns("voices_D_i", own.instruction()) | columns("voices_D_s", own.source())
    if arm != LLM:
        found |= columns("voices_against_llm", Comparison(result, at_length(seed, "voices")).change())
    return found


def _alignment(seed: str, arm: str) -> dict[str, float]:
    """Alignment in the last state; none for the text LLM, which has no speech."""
    names = ("paired_cosine", "cosine_gap", "standardised_cosine", "standardised_retrieval", "standardised_cka")
    return {} if arm == LLM else {name: alignment(seed, arm, name) for name in names}


def _importance(seed: str, arm: str) -> dict[str, float]:
    """Depth of the textual importance, and its shift from the text LLM."""
    results = measured(seed, "importance")
    found = {"importance_depth": float(importance_depth(results[arm])[0])}
    if arm == LLM:
        return found
    shift = results[LLM].differences(results[arm])["shift"]
    return found | {name: shift[name]["mean"] for name in ("jensen_shannon", "rank_correlation")}


def _text(seed: str, arm: str) -> dict[str, float]:
    """Loss on SmolLM2's answers to transcripts, nats per token, with training and held-out instructions."""
    return columns("text", measured(seed, "text")[arm].nats.curve) | columns(
        "other_text", measured(seed, "other-text")[arm].nats.curve
    )


def _evaluation(seed: str, arm: str) -> dict[str, float]:
    """Shares of responses, and word error rate of transcription, per cent."""
    result = measured(seed, "evaluation")[arm]
    found = _share("following", result, following, FOLLOWED) | _share("following_unseen", result, following, UNSEEN)
    found |= _share("right", result, right, MOOD) | _share("right_true", result, right, TRUE)
    return found | {"wer": _wer(result)}


def _spoken_otherwise(seed: str, arm: str) -> dict[str, float]:
    """The same for voices that no arm was trained on; none for the text LLM."""
    if arm == LLM:
        return {}
    result = measured(seed, "voices-evaluation")[arm]
    found = _share("voices_following", result, following, FOLLOWED) | _share("voices_right", result, right, MOOD)
    return found | {"voices_wer": _wer(result)}


def _share(name: str, result: EvaluationResult, values: Callable[..., Any], tasks: tuple[str, ...]) -> dict[str, float]:
    return columns(name, only(result, tasks).share(values(result, tasks)))


def _wer(result: EvaluationResult) -> float:
    return float(result.scores()["commands-transcription"]["word_error_rate"].value)
