"""Write `claims.csv`: the claims of the two papers and the results of these arms.

Each claim is a number that lies on one side of a bound (mostly 0) in the paper. A claim **holds** if the 95 % interval
(over paired utterances) lies on that side in every seed. It **fails** if the interval lies on the other side in every
seed. Otherwise it is **undecided**. Claims measured on more utterances of seed 0 only are marked **(seed 0)**.
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
    MORE,
    NOT_GERMAN,
    UNSEEN,
    alignment_change,
    at_length,
    following,
    has_more,
    importance_depth,
    measured,
    only,
    right,
    seeds,
    transcription,
)
from numpy.typing import NDArray

from lsm_probe.evaluation.metrics import difference
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.reports.conventions import READ, Comparison, sides
from lsm_probe.runner.result import Curve, curve

GROUP = 5  # layers, one sixth of SmolLM2's 30
SIXTHS = tuple(slice(start, start + GROUP) for start in range(0, 30, GROUP))
FIRST, FOURTH, FIFTH, LAST = SIXTHS[0], SIXTHS[3], SIXTHS[4], SIXTHS[5]
KEPT = 0.1  # nats per token: a drift up to this value counts as preserved
LENGTH = "LLM at the speech's length"
"""The text LLM with its transcript repeated until there are as many tokens as in the speech."""
OWN_LENGTH = "LLM at its own length"


@dataclass(frozen=True)
class Found:
    """A number of one seed.

    Attributes:
        curve: the number with its interval.
        left_out: the number without each utterance in turn; None if only the interval is stored.
        utterances: number of sentences of the measurement.
    """

    curve: Curve
    left_out: NDArray[Any] | None
    utterances: int

    @classmethod
    def of(cls, value: Any, left_out: NDArray[Any]) -> Found:
        return cls(curve(np.asarray(value), left_out), left_out, len(left_out))


Measure = Callable[[str], Found]


@dataclass(frozen=True)
class Claim:
    """A claim of a paper.

    Attributes:
        key: name in this study.
        place: section, figure or table of the paper; empty for our own questions.
        says: the claim.
        paper: the paper's number.
        against: what the number is compared with.
        unit: unit of our number.
        side: side of the bound on which the paper's number lies.
        measure: function from a seed to our number.
        bound: the bound.
        seeds: `MORE` for measurements on more utterances of seed 0; by default all seeds.
    """

    key: str
    place: str
    says: str
    paper: str
    against: str
    unit: str
    side: Literal["below", "above"]
    measure: Measure
    bound: float = 0
    seeds: tuple[str, ...] = ()


# --- η: `read` reduces η by layer to one number, `[..., layers]` -> `[...]`

Read = Callable[[Any], Any]


def mean_of(layers: slice) -> Read:
    return lambda eta: eta[..., layers].mean(-1)


def change(first: slice, second: slice) -> Read:
    """Mean η of the second layers minus that of the first."""
    return lambda eta: eta[..., second].mean(-1) - eta[..., first].mean(-1)


last = mean_of(LAST)


def eta(
    arm: str, against: str | None = LENGTH, read: Read = last, part: str = "attention", segment: str = "mean"
) -> Measure:
    """A number from η: an arm's minus that of another arm or of the text LLM; `None` for the arm's alone."""

    def measure(seed: str) -> Found:
        own = of_arm(seed, part, arm).with_conventions(segment=segment)
        if against is None:
            return Found.of(read(own.eta().mean), read(own.left_out_eta()))
        own, other = own.paired_with(of_arm(seed, part, against).with_conventions(segment=segment))
        return Found.of(
            read(own.eta().mean) - read(other.eta().mean), read(own.left_out_eta()) - read(other.left_out_eta())
        )

    return measure


def of_arm(seed: str, part: str, arm: str) -> AttentionResult:
    if arm == LENGTH:
        return at_length(seed, part)
    result: AttentionResult = measured(seed, part)[LLM if arm == OWN_LENGTH else arm]
    return result


def halves(result: AttentionResult) -> tuple[AttentionResult, AttentionResult]:
    """Split the utterances in two: layers are chosen on the first half, numbers measured on the second."""
    ids = np.array(result.ids)
    return tuple(result.subset(list(ids[result.clusters % 2 == half])) for half in (0, 1))  # type: ignore[return-value]


def chosen(arm: str, choose: Callable[..., slice], read: Callable[[slice], Read]) -> Measure:
    """Mean η of the sixth of the layers where η is lowest (`min`) or highest (`max`) on other utterances."""

    def measure(seed: str) -> Found:
        first, second = halves(of_arm(seed, "attention", arm))
        mean = first.eta().mean
        number = read(choose(SIXTHS, key=lambda layers: mean[layers].mean()))
        return Found.of(number(second.eta().mean), number(second.left_out_eta()))

    return measure


def nearer(arm: str) -> Measure:
    """Mean distance over layers to the length-matched LLM's curve: an arm's minus the self-powered arm's."""

    def measure(seed: str) -> Found:
        far, near, text = (of_arm(seed, "attention", name) for name in (arm, "self_powered", LENGTH))

        def by(read: Callable[[AttentionResult], Any]) -> Any:
            return np.abs(read(far) - read(text)).mean(-1) - np.abs(read(near) - read(text)).mean(-1)

        return Found.of(by(lambda result: result.eta().mean), by(lambda result: result.left_out_eta()))

    return measure


# --- other measurements: the second arm's number minus the first's


def mean_change(part: str, read: Callable[[Any], Any], first: str, second: str) -> Measure:
    """Mean paired difference of numbers by sample."""

    def measure(seed: str) -> Found:
        one, other = (measured(seed, part)[arm] for arm in (first, second))
        values = read(other) - read(one)
        return Found.of(values.mean(), other.leave_one_out(values))

    return measure


def d_i(result: Any) -> Any:
    return result.by_sample()[0]


def d_s(result: Any) -> Any:
    return result.by_sample()[1]


DEPENDENCE = {"D_i": d_i, "D_s": d_s}


def aligned(number: str, first: str) -> Measure:
    """A number of alignment in the last state: the self-powered arm's minus that of another arm."""
    return lambda seed: Found(alignment_change(seed, number, first, "self_powered"), None, 24)


def share_change(
    read: Callable[..., Any], tasks: tuple[str, ...], first: str, second: str, part: str = "evaluation"
) -> Measure:
    """Difference of shares of responses, in percentage points."""

    def measure(seed: str) -> Found:
        one, other = (measured(seed, part)[arm] for arm in (first, second))
        values = read(other, tasks) - read(one, tasks)
        result = only(other, tasks)
        ends = vars(result.share_difference(values)).values()
        left_out = 100 * result.leave_one_out(values)
        return Found(Curve(*(100 * end for end in ends)), left_out, len(left_out))

    return measure


def wer_change(first: str, second: str) -> Measure:
    """Difference of word error rates, in percentage points."""

    def measure(seed: str) -> Found:
        (result, one), (_, other) = (transcription(measured(seed, "evaluation")[arm]) for arm in (first, second))
        sentences = [str(cluster) for cluster in result.clusters]
        found = difference(one, other, sentences)
        every = np.ones(len(sentences), dtype=bool)
        left_out = other.leave_one_out(sentences, every) - one.leave_one_out(sentences, every)
        return Found(Curve(*map(np.array, (found.value, found.ci_low, found.ci_high))), left_out, len(left_out))

    return measure


def drift(arm: str) -> Measure:
    """Increase of the loss on SmolLM2's own answers over the text LLM, nats per token (all input as text)."""

    def measure(seed: str) -> Found:
        before, after = (measured(seed, "other-text")[name].nats for name in (LLM, arm))
        return Found.of(after.value - before.value, after.left_out - before.left_out)

    return measure


def speed(seed: str) -> Found:
    """Time of the cascade divided by the arm's time."""
    results = measured(seed, "evaluation")
    one, other = results[CASCADE], results["self_powered"]
    left_out = one.leave_one_out(one.seconds) / other.leave_one_out(other.seconds)
    return Found(one.speed_ratio(other), left_out, len(left_out))


def depth_change(seed: str) -> Found:
    (before, drawn_before), (after, drawn_after) = (
        importance_depth(measured(seed, "importance")[arm]) for arm in (LLM, "vanilla_asr")
    )
    return Found.of(after - before, drawn_after - drawn_before)


FORM, MOODS, NATS = "responses in the asked-for form, % points", "right moods, % points", "nats per token"
VANILLA, POWERED, ONE, TRUE_ANSWERS, UNTRAINED = (
    *("vanilla_asr", "self_powered", "self_powered_one", "true_answers", "untrained"),
)
CLAIMS = (
    # Figure 3
    Claim("llm_falls", "Figure 3", "text LLM: η falls from layers 0–4 to its lowest sixth of the layers", "falls",
          OWN_LENGTH, "η", "below", chosen(OWN_LENGTH, min, lambda lowest: change(FIRST, lowest))),
    Claim("llm_falls_length", "Figure 3", "the same of its transcript stretched to the speech's length", "falls",
          LENGTH, "η", "below", chosen(LENGTH, min, lambda lowest: change(FIRST, lowest))),
    Claim("llm_rises", "Figure 3", "text LLM: η rises at the end, from layers 20–24 to 25–29", "rises",
          OWN_LENGTH, "η", "above", eta(OWN_LENGTH, None, change(FIFTH, LAST))),
    Claim("llm_rises_length", "Figure 3", "the same of its transcript stretched to the speech's length", "rises",
          LENGTH, "η", "above", eta(LENGTH, None, change(FIFTH, LAST))),
    Claim("vanilla_falls_on", "Figure 3", "vanilla: η keeps falling at the end, from layers 20–24 to 25–29", "falls",
          "itself", "η", "below", eta(VANILLA, None, change(FIFTH, LAST))),
    Claim("vanilla_falls_on_sum", "Figure 3", "the same with `segment=sum`", "falls",
          "itself", "η", "below", eta(VANILLA, None, change(FIFTH, LAST), segment="sum")),
    Claim("bias", "Figure 3", "vanilla: η of layers 25–29 is lower than the text LLM's", "lower",
          OWN_LENGTH, "η", "below", eta(VANILLA, OWN_LENGTH)),
    Claim("bias_length", "Figure 3", "the same", "lower", LENGTH, "η", "below", eta(VANILLA)),
    Claim("bias_more", "Figure 3", "the same on 48 other utterances", "lower",
          OWN_LENGTH, "η", "below", eta(VANILLA, OWN_LENGTH), seeds=(MORE,)),
    Claim("bias_length_more", "Figure 3", "the same on 48 other utterances", "lower",
          LENGTH, "η", "below", eta(VANILLA), seeds=(MORE,)),
    Claim("bias_same_words", "Figure 3", "the same with SmolLM2's words as response of both", "lower",
          OWN_LENGTH, "η", "below", eta(VANILLA, OWN_LENGTH, part="same-words")),
    Claim("bias_length_same_words", "Figure 3", "the same with SmolLM2's words as response of both", "lower",
          LENGTH, "η", "below", eta(VANILLA, part="same-words")),
    Claim("bias_voices", "Figure 3", "the same by voices that no arm has heard", "lower",
          OWN_LENGTH, "η", "below", eta(VANILLA, OWN_LENGTH, part="voices")),
    Claim("bias_length_voices", "Figure 3", "the same by voices that no arm has heard", "lower",
          LENGTH, "η", "below", eta(VANILLA, part="voices")),
    Claim("bias_falls", "Figure 3", "vanilla: η falls more from layers 0–4 to 25–29 than the text LLM's", "falls",
          OWN_LENGTH, "η", "below", eta(VANILLA, OWN_LENGTH, change(FIRST, LAST))),
    Claim("bias_falls_length", "Figure 3", "the same", "falls",
          LENGTH, "η", "below", eta(VANILLA, LENGTH, change(FIRST, LAST))),
    Claim("bias_everywhere", "Figure 3", "vanilla: η is below 0.5 in all layers", "below .5", "0.5",
          "η of its highest sixth", "below", chosen(VANILLA, max, mean_of),
          0.5),
    # Section 3.4
    Claim("collapse", "Section 3.4", "self-powered's own responses depend on the instruction more than vanilla's",
          "vanilla: none", VANILLA, f"D_i, {NATS}", "above", mean_change("own-words", d_i, VANILLA, POWERED)),
    Claim("collapse_more", "Section 3.4", "the same on 48 other utterances", "vanilla: none", VANILLA,
          f"D_i, {NATS}", "above", mean_change("own-words", d_i, VANILLA, POWERED), seeds=(MORE,)),
    # Compared with an arm that ignores the speech
    Claim("heard_D_s", "", "self-powered's own responses depend on the speech more than the untrained arm's", "",
          UNTRAINED, f"D_s, {NATS}", "above", mean_change("own-words", d_s, UNTRAINED, POWERED)),
    Claim("heard_D_s_more", "", "the same on 48 other utterances", "",
          UNTRAINED, f"D_s, {NATS}", "above", mean_change("own-words", d_s, UNTRAINED, POWERED), seeds=(MORE,)),
    Claim("heard_wer", "", "self-powered transcribes better than the untrained arm", "",
          UNTRAINED, "word error rate, % points", "below", wer_change(UNTRAINED, POWERED)),
    Claim("heard_wer_more", "", "the same on 48 other utterances", "",
          UNTRAINED, "word error rate, % points", "below", wer_change(UNTRAINED, POWERED), seeds=(MORE,)),
    Claim("heard_eta", "", "self-powered: η of layers 25–29 is higher than the untrained arm's", "",
          UNTRAINED, "η", "above", eta(POWERED, UNTRAINED)),
    Claim("heard_eta_more", "", "the same on 48 other utterances", "",
          UNTRAINED, "η", "above", eta(POWERED, UNTRAINED), seeds=(MORE,)),
    Claim("heard_D_i", "", "self-powered's own responses depend on the instruction more than the untrained arm's", "",
          UNTRAINED, f"D_i, {NATS}", "above", mean_change("own-words", d_i, UNTRAINED, POWERED)),
    Claim("heard_D_i_more", "", "the same on 48 other utterances", "",
          UNTRAINED, f"D_i, {NATS}", "above", mean_change("own-words", d_i, UNTRAINED, POWERED), seeds=(MORE,)),
    Claim("heard_nearer", "", "self-powered's η is nearer to the text LLM's curve than the untrained arm's", "",
          UNTRAINED, "mean distance by layer", "above", nearer(UNTRAINED)),
    Claim("heard_form", "", "self-powered answers in the asked-for form more often than the untrained arm", "",
          UNTRAINED, FORM, "above", share_change(following, FOLLOWED, UNTRAINED, POWERED)),
    Claim("heard_right", "", "self-powered names the right mood more often than the untrained arm", "",
          UNTRAINED, MOODS, "above", share_change(right, MOOD, UNTRAINED, POWERED)),
    # Figure 5
    Claim("repair", "Figure 5", "self-powered: η of layers 25–29 is higher than vanilla's", "+.2 to +.4",
          VANILLA, "η", "above", eta(POWERED, VANILLA)),
    Claim("repair_more", "Figure 5", "the same on 48 other utterances", "+.2 to +.4",
          VANILLA, "η", "above", eta(POWERED, VANILLA), seeds=(MORE,)),
    Claim("repair_same_words", "Figure 5", "the same with SmolLM2's words as response of both", "+.2 to +.4",
          VANILLA, "η", "above", eta(POWERED, VANILLA, part="same-words")),
    Claim("repair_voices", "Figure 5", "the same by voices that no arm has heard", "+.2 to +.4",
          VANILLA, "η", "above", eta(POWERED, VANILLA, part="voices")),
    Claim("repair_terminal", "Figure 5", "especially in the terminal layers: more in 25–29 than in 15–19", "most",
          VANILLA, "η", "above", eta(POWERED, VANILLA, change(FOURTH, LAST))),
    Claim("repair_terminal_same_words", "Figure 5", "the same with SmolLM2's words as response of both", "most",
          VANILLA, "η", "above", eta(POWERED, VANILLA, change(FOURTH, LAST), "same-words")),
    Claim("nearer", "Figure 5", "self-powered's η is nearer to the text LLM's curve than vanilla's", "nearer",
          VANILLA, "mean distance by layer", "above", nearer(VANILLA)),
    # Figure 6
    Claim("aligned", "Figure 6", "self-powered brings speech nearer to its transcript in the last layer", "nearer",
          VANILLA, "cosine", "above", aligned("paired_cosine", VANILLA)),
    Claim("aligned_untrained", "Figure 6", "the same", "", UNTRAINED, "cosine", "above",
          aligned("paired_cosine", UNTRAINED)),
    Claim("aligned_own", "Figure 6", "nearer than to other transcripts", "", VANILLA, "cosine gap", "above",
          aligned("cosine_gap", VANILLA)),
    # Table 2
    Claim("follows", "Table 2", "self-powered answers in the asked-for form more often than vanilla", "0 to 51 (MELD)",
          VANILLA, FORM, "above", share_change(following, FOLLOWED, VANILLA, POWERED)),
    Claim("follows_unseen", "Table 2", "the same of French and Spanish, in no training (language only)", "",
          VANILLA, FORM, "above", share_change(following, UNSEEN, VANILLA, POWERED)),
    Claim("follows_voices", "Table 2", "the same by voices that no arm has heard", "",
          VANILLA, FORM, "above", share_change(following, FOLLOWED, VANILLA, POWERED, "voices-evaluation")),
    Claim("right", "Table 2", "self-powered names the right mood more often than vanilla", "0 to 47 (FSC)",
          VANILLA, MOODS, "above", share_change(right, MOOD, VANILLA, POWERED)),
    Claim("wer", "Table 2", "self-powered transcribes better than vanilla", "7.8 to 3.8", VANILLA,
          "word error rate, % points", "below", wer_change(VANILLA, POWERED)),
    # Table 4
    Claim("true_answers_eta", "Table 4", "true answers to six tasks lift η of layers 25–29 above vanilla's", "",
          VANILLA, "η", "above", eta(TRUE_ANSWERS, VANILLA)),
    Claim("many_kinds", "Table 4", "self-powered answers in French and Spanish more often than true answers do",
          "0 to 17.5 (ST)", TRUE_ANSWERS, FORM, "above", share_change(following, UNSEEN, TRUE_ANSWERS, POWERED)),
    Claim("one_kind", "Table 4", "many kinds of instruction serve mood, French and Spanish better than German alone",
          "15 to 31 (Light)", ONE, FORM, "above", share_change(following, NOT_GERMAN, ONE, POWERED)),
    Claim("one_kind_unseen", "Table 4", "French and Spanish alone, which neither was trained on", "",
          ONE, FORM, "above", share_change(following, UNSEEN, ONE, POWERED)),
    Claim("one_kind_eta", "Table 4", "many kinds of instruction lift η of layers 25–29 more than German alone", "",
          ONE, "η", "above", eta(POWERED, ONE)),
    # Table 7
    Claim("faster", "Table 7", "self-powered is faster than the cascade", "3.0 to 3.8 times", "cascade", "times",
          "above", speed, 1),
    Claim("beats_cascade", "Table 7", "and names the right mood as often or more often", "33.2 to 49.0 (SLU)",
          "cascade", MOODS, "above", share_change(right, MOOD, CASCADE, POWERED)),
    # Drift, which the papers do not measure
    Claim("drift_powered", "", f"self-powered drifts by less than {KEPT} from SmolLM2's answers (Table 6 has MMLU)",
          "", LLM, NATS, "below", drift(POWERED), KEPT),
    Claim("drift_vanilla", "", "vanilla drifts away from SmolLM2's answers (2509.23755 has Web Questions)", "",
          LLM, NATS, "above", drift(VANILLA)),
    Claim("importance_moves", "2509.23755", "the importance for text moves to earlier layers", "deep to shallow (1B)",
          LLM, "layers", "below", depth_change),
)  # fmt: skip


def verdict(claim: Claim, found: list[Curve]) -> str:
    own = {sides(Curve(*(end - claim.bound for end in vars(change).values()))) for change in found}
    only_seed = " (seed 0)" if claim.seeds else ""
    if own == {claim.side}:
        return "holds" + only_seed
    return ("fails" if len(own) == 1 and "open" not in own else "undecided") + only_seed


def claims() -> pd.DataFrame:
    """One row per claim and seed."""
    return pd.DataFrame(_rows())


def _rows() -> Iterator[dict[str, Any]]:
    for claim in CLAIMS:
        if claim.seeds and not has_more():
            continue
        chosen_seeds = claim.seeds or tuple(seeds())
        found = [claim.measure(seed) for seed in chosen_seeds]
        for seed, number in zip(chosen_seeds, found, strict=True):
            names = ("key", "place", "says", "paper", "against", "unit", "side", "bound")
            without = (np.nan, np.nan) if number.left_out is None else (number.left_out.min(), number.left_out.max())
            yield {
                **{name: getattr(claim, name) for name in names},
                "seed": 0 if seed == MORE else int(seed),
                **{name: float(end) for name, end in vars(number.curve).items()},
                "utterances": number.utterances,
                **dict(zip(("without_one_low", "without_one_high"), map(float, without), strict=True)),
                "verdict": verdict(claim, [each.curve for each in found]),
            }


def conventions() -> pd.DataFrame:
    """One row per convention of eta: bias (against the text LLM at both lengths) and repair in every seed."""
    hints = get_type_hints(Conventions)
    compared = {"bias": (VANILLA, OWN_LENGTH), "bias_length": (VANILLA, LENGTH), "repair": (POWERED, VANILLA)}
    rows = []
    for part in ("attention", "same-words"):
        for chosen_values in product(*(get_args(hints[name]) for name in READ)):
            choice = dict(zip(READ, chosen_values, strict=True))
            row: dict[str, Any] = {"response": "generated" if part == "attention" else "reference", **choice}
            for name, (arm, other) in compared.items():
                found = [Comparison(of_arm(s, part, arm), of_arm(s, part, other)).change(**choice) for s in seeds()]
                claim = next(claim for claim in CLAIMS if claim.key == name)
                row |= {f"{name}_{seed}": float(each.mean) for seed, each in zip(seeds(), found, strict=True)}
                row |= {f"{name}_verdict": verdict(claim, found)}
            rows.append(row)
    return pd.DataFrame(rows)


def headline() -> pd.DataFrame:
    """One row per headline number of each arm that could be measured again, on the study's and on 48 other utterances.

    Each has its lowest and highest value when one utterance is left out."""
    rows = []
    for arm, (measured_on, seed) in product(
        (LLM, UNTRAINED, VANILLA, POWERED), (("study", "0"), ("more", MORE))[: 1 + has_more()]
    ):
        own = measured(seed, "own-words")[arm]
        numbers = {"eta": eta(OWN_LENGTH if arm == LLM else arm, None)(seed)}
        numbers |= {name: Found.of(read(own).mean(), own.leave_one_out(read(own))) for name, read in DEPENDENCE.items()}
        if arm != LLM:
            numbers["word error rate, %"] = wer(seed, arm)
        rows += [{"arm": arm, "number": name, "measured": measured_on, **_columns(n)} for name, n in numbers.items()]
    return pd.DataFrame(rows)


def wer(seed: str, arm: str) -> Found:
    result, metric = transcription(measured(seed, "evaluation")[arm])
    sentences = [str(cluster) for cluster in result.clusters]
    found = metric.estimate(sentences)
    left_out = metric.leave_one_out(sentences, np.ones(len(sentences), dtype=bool))
    return Found(Curve(*map(np.array, (found.value, found.ci_low, found.ci_high))), left_out, len(left_out))


def _columns(number: Found) -> dict[str, float]:
    assert number.left_out is not None
    ends = {name: float(end) for name, end in vars(number.curve).items()}
    low, high = float(number.left_out.min()), float(number.left_out.max())
    return {**ends, "utterances": number.utterances, "without_one_low": low, "without_one_high": high}
