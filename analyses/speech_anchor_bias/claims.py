"""`claims.csv`: what the two papers claim, and what these arms say of it.

Each claim is a number that the paper has on one side of a bound, mostly 0. A claim **holds** where the 95 % interval
(over paired utterances) lies on that side in every seed, **fails** where it lies on the other side in every seed, and
is else **undecided**.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import pandas as pd
from measured import (
    CASCADE,
    FOLLOWED,
    LLM,
    MOOD,
    NOT_GERMAN,
    UNSEEN,
    alignment_change,
    at_length,
    following,
    importance_depth,
    measured,
    only,
    right,
    seeds,
)

from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.reports.conventions import READ, Comparison, sides
from lsm_probe.runner.result import Curve, curve

GROUP = 5  # layers: a sixth of SmolLM2's 30
KEPT = 0.1  # nats per token that text may lose and still count as kept


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes:
        key: its name here.
        place: where the paper has it.
        says: the claim.
        paper: the paper's number.
        unit: of ours.
        side: on which side of the bound the paper has it.
        measure: ours, of a seed.
        bound: the bound.
    """

    key: str
    place: str
    says: str
    paper: str
    unit: str
    side: Literal["below", "above"]
    measure: Callable[[str], Curve]
    bound: float = 0


def eta(arm: str, reference: str | None = None, part: str = "attention") -> Callable[[str], Curve]:
    """Eta of the last sixth of the layers, minus another arm's, or minus that of the text LLM at the same length."""
    return lambda seed: _compared(seed, arm, reference, part).change()


def _compared(seed: str, arm: str, reference: str | None, part: str) -> Comparison:
    found = measured(seed, part)
    return Comparison(found[arm], at_length(seed, part) if reference is None else found[reference])


def between(arm: str, *where: Callable[[str], slice]) -> Callable[[str], Curve]:
    """Eta of the second layers minus that of the first."""

    def measure(seed: str) -> Curve:
        result: AttentionResult = measured(seed, "attention")[arm]
        first, second = (find(seed) for find in where)
        values, drawn = result.eta().mean, result.left_out_eta()
        return curve(values[second].mean() - values[first].mean(), drawn[:, second].mean(1) - drawn[:, first].mean(1))

    return measure


def falls_more(seed: str) -> Curve:
    """By how much eta rises from the first sixth of the layers to the last, the vanilla arm's minus the text LLM's."""
    of_arm, of_llm = measured(seed, "attention")["vanilla_asr"].paired_with(at_length(seed, "attention"))

    def rise(values: Any) -> Any:
        return values[..., last_sixth(seed)].mean(-1) - values[..., first_sixth(seed)].mean(-1)

    return curve(
        rise(of_arm.eta().mean) - rise(of_llm.eta().mean), rise(of_arm.left_out_eta()) - rise(of_llm.left_out_eta())
    )


def sixths(result: AttentionResult) -> list[slice]:
    return [slice(start, start + GROUP) for start in range(0, result.n_layers, GROUP)]


def first_sixth(seed: str) -> slice:
    return sixths(measured(seed, "attention")[LLM])[0]


def last_sixth(seed: str) -> slice:
    return sixths(measured(seed, "attention")[LLM])[-1]


def extreme(arm: str, choose: Callable[..., slice]) -> Callable[[str], slice]:
    """The sixth of the layers in which an arm's eta is smallest (`min`) or largest (`max`)."""

    def find(seed: str) -> slice:
        result: AttentionResult = measured(seed, "attention")[arm]
        return choose(sixths(result), key=lambda layers: result.eta().mean[layers].mean())

    return find


def largest(seed: str) -> Curve:
    """Eta of the vanilla arm in that sixth of the layers in which it is largest."""
    result, layers = measured(seed, "attention")["vanilla_asr"], extreme("vanilla_asr", max)(seed)
    return curve(result.eta().mean[layers].mean(), result.left_out_eta()[:, layers].mean(1))


def nearer_to_llm(seed: str) -> Curve:
    """Mean distance by layer from the text LLM's curve: the vanilla arm's minus the self-powered arm's."""
    found, text = measured(seed, "attention"), at_length(seed, "attention")

    def distance(read: Callable[[AttentionResult], Any]) -> Any:
        far, near = (np.abs(read(found[arm]) - read(text)).mean(-1) for arm in ("vanilla_asr", "self_powered"))
        return far - near

    return curve(distance(lambda result: result.eta().mean), distance(lambda result: result.left_out_eta()))


def mean_change(part: str, read: Callable[[Any], Any], first: str, second: str) -> Callable[[str], Curve]:
    """Of numbers by sample: `second` minus `first`."""

    def measure(seed: str) -> Curve:
        one, other = (measured(seed, part)[arm] for arm in (first, second))
        return other.mean(read(other) - read(one))

    return measure


def aligned(number: str) -> Callable[[str], Curve]:
    """A number of alignment in the last state: the self-powered arm's minus the vanilla arm's."""
    return lambda seed: alignment_change(seed, number, "vanilla_asr", "self_powered")


def share_change(
    read: Callable[..., Any], tasks: tuple[str, ...], first: str, second: str, part: str = "evaluation"
) -> Callable[[str], Curve]:
    """Of shares of responses, in percentage points: `second` minus `first`."""

    def measure(seed: str) -> Curve:
        one, other = (measured(seed, part)[arm] for arm in (first, second))
        found = only(other, tasks).share_difference(read(other, tasks) - read(one, tasks))
        return Curve(*(100 * end for end in vars(found).values()))

    return measure


def wer_change(seed: str) -> Curve:
    results = measured(seed, "evaluation")
    found = results["vanilla_asr"].differences(results["self_powered"])["differences"]
    number = found["commands-transcription"]["word_error_rate"]
    return Curve(*(np.array(number[name]) for name in ("value", "ci_low", "ci_high")))


def text_change(part: str, arm: str) -> Callable[[str], Curve]:
    """Nats per token above the text LLM's."""

    def measure(seed: str) -> Curve:
        before, after = (measured(seed, part)[name].nats for name in (LLM, arm))
        return curve(np.array(after.value - before.value), after.left_out - before.left_out)

    return measure


def speed(seed: str) -> Curve:
    """How many times as fast as the cascade."""
    results = measured(seed, "evaluation")
    ratio: Curve = results[CASCADE].speed_ratio(results["self_powered"])
    return ratio


def depth_change(seed: str) -> Curve:
    results = measured(seed, "importance")
    (before, drawn_before), (after, drawn_after) = (importance_depth(results[arm]) for arm in (LLM, "vanilla_asr"))
    return curve(after - before, drawn_after - drawn_before)


CLAIMS = (
    Claim("llm_falls", "Figure 3", "text LLM: η falls from the first sixth of the layers to its lowest", "falls", "η",
          "below", between(LLM, first_sixth, extreme(LLM, min))),
    Claim("llm_rises", "Figure 3", "text LLM: η rises again from there to the last sixth", "rises", "η", "above",
          between(LLM, extreme(LLM, min), last_sixth)),
    Claim("bias", "Figure 3", "trained on transcription alone, it looks less at the instruction than the text LLM",
          "below", "η", "below", eta("vanilla_asr")),
    Claim("bias_same_words", "Figure 3", "the same with SmolLM2's words as response of both", "", "η", "below",
          eta("vanilla_asr", part="same-words")),
    Claim("bias_voices", "Figure 3", "the same by voices that no arm has heard", "", "η", "below",
          eta("vanilla_asr", part="voices")),
    Claim("bias_falls", "Figure 3", "and falls more from the first sixth to the last", "falls", "η", "below",
          falls_more),
    Claim("bias_everywhere", "Figure 3", "and more at the speech in all layers", "below .5",
          "η of its highest sixth", "below", largest, 0.5),
    Claim("collapse", "Section 3.4", "its response no longer depends on the instruction (against self-powered)",
          "of speech alone", "D_i, nats per token", "above",
          mean_change("own-words", lambda r: r.by_sample()[0], "vanilla_asr", "self_powered")),
    Claim("repair", "Figure 5", "self-powered training lifts η of the last layers above vanilla's", "+.2 to +.4", "η",
          "above", eta("self_powered", "vanilla_asr")),
    Claim("repair_same_words", "Figure 5", "the same with SmolLM2's words as response of both", "", "η", "above",
          eta("self_powered", "vanilla_asr", "same-words")),
    Claim("repair_voices", "Figure 5", "the same by voices that no arm has heard", "", "η", "above",
          eta("self_powered", "vanilla_asr", "voices")),
    Claim("nearer", "Figure 5", "and brings the curve nearer to the text LLM's", "nearer", "mean distance by layer",
          "above", nearer_to_llm),
    Claim("aligned", "Figure 6", "and brings speech nearer to its transcript in the last layer than vanilla's",
          "nearer", "cosine", "above", aligned("paired_cosine")),
    Claim("aligned_own", "Figure 6", "nearer than to other transcripts", "", "cosine gap", "above",
          aligned("cosine_gap")),
    Claim("follows", "Table 2", "self-powered follows instructions that vanilla does not", "0 to 51 (MELD)",
          "responses in the asked-for form, % points", "above",
          share_change(following, FOLLOWED, "vanilla_asr", "self_powered")),
    Claim("follows_unseen", "Table 2", "also those that it was not trained on", "",
          "French, Spanish; % points", "above",
          share_change(following, UNSEEN, "vanilla_asr", "self_powered")),
    Claim("follows_voices", "Table 2", "the same by voices that no arm has heard", "",
          "responses in the asked-for form, % points", "above",
          share_change(following, FOLLOWED, "vanilla_asr", "self_powered", "voices-evaluation")),
    Claim("right", "Table 2", "and gets them right", "0 to 47 (FSC)", "right moods, % points", "above",
          share_change(right, MOOD, "vanilla_asr", "self_powered")),
    Claim("right_heard", "Table 2", "more often than one that hears nothing", "", "right moods, % points", "above",
          share_change(right, MOOD, "untrained", "self_powered")),
    Claim("wer", "Table 2", "and transcribes better", "7.8 to 3.8", "word error rate, % points", "below", wer_change),
    Claim("many_kinds", "Table 4", "true answers to several tasks do not serve others: self-powered follows more",
          "0 to 17.5 (ST)", "French, Spanish; % points", "above",
          share_change(following, UNSEEN, "true_answers", "self_powered")),
    Claim("one_kind", "Table 4", "one self-powered instruction is not enough: many follow more (mood, French, Spanish)",
          "15 to 31 (Light)",
          "% points", "above",
          share_change(following, NOT_GERMAN, "self_powered_one", "self_powered")),
    Claim("one_kind_unseen", "Table 4", "also French and Spanish alone, which neither was trained on", "",
          "% points", "above",
          share_change(following, UNSEEN, "self_powered_one", "self_powered")),
    Claim("one_kind_eta", "Table 4", "and look more at the instruction", "", "η", "above",
          eta("self_powered", "self_powered_one")),
    Claim("text_kept", "Table 6", f"text ability stays (here: loses less than {KEPT} nats a token)", "49.8 to 49.4",
          "nats per token", "below", text_change("other-text", "self_powered"), KEPT),
    Claim("faster", "Table 7", "faster than the cascade", "3.0 to 3.8 times", "times", "above", speed, 1),
    Claim("beats_cascade", "Table 7", "as good as the cascade or better where it classifies", "33.2 to 49.0 (SLU)",
          "right moods, % points", "above", share_change(right, MOOD, CASCADE, "self_powered")),
    Claim("text_lost", "2509.23755", "speech training costs text ability", "58.7 to 55.7 (Web Q)", "nats per token",
          "above", text_change("other-text", "vanilla_asr")),
    Claim("importance_moves", "2509.23755", "the importance for text moves to earlier layers", "deep to shallow (1B)",
          "layers", "below", depth_change),
)  # fmt: skip


def verdict(claim: Claim, found: list[Curve]) -> str:
    own = {sides(Curve(*(end - claim.bound for end in vars(change).values()))) for change in found}
    if own == {claim.side}:
        return "holds"
    return "fails" if len(own) == 1 and "open" not in own else "undecided"


def claims() -> pd.DataFrame:
    """A row for each claim and seed."""
    return pd.DataFrame(_rows())


def _rows() -> Iterator[dict[str, Any]]:
    for claim in CLAIMS:
        found = [claim.measure(seed) for seed in seeds()]
        for seed, change in zip(seeds(), found, strict=True):
            about = {name: getattr(claim, name) for name in ("key", "place", "says", "paper", "unit", "side", "bound")}
            yield about | {"seed": int(seed), **vars(_floats(change)), "verdict": verdict(claim, found)}


def _floats(found: Curve) -> Curve:
    return Curve(float(found.mean), float(found.ci_low), float(found.ci_high))


def conventions() -> pd.DataFrame:
    """A row for each way to read eta: bias and repair in every seed."""
    hints = get_type_hints(Conventions)
    rows = []
    for part in ("attention", "same-words"):
        for chosen in product(*(get_args(hints[name]) for name in READ)):
            choice = dict(zip(READ, chosen, strict=True))
            row: dict[str, Any] = {"response": "generated" if part == "attention" else "reference", **choice}
            for name, arm, reference in (("bias", "vanilla_asr", None), ("repair", "self_powered", "vanilla_asr")):
                found = [_compared(seed, arm, reference, part).change(**choice) for seed in seeds()]
                claim = next(claim for claim in CLAIMS if claim.key == name)
                row |= {f"{name}_{seed}": float(change.mean) for seed, change in zip(seeds(), found, strict=True)}
                row |= {f"{name}_verdict": verdict(claim, found)}
            rows.append(row)
    return pd.DataFrame(rows)
