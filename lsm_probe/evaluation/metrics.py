"""Metrics of responses: counts for each sample, and a score that is a function of their sums.

All scores are in per cent, as in the paper's tables: WER (may exceed 100), BLEU, accuracy, F1, rates. A score needs
only sums, so the scores without each utterance, which give its interval, are cheap. The order of the samples has no
influence. A share of nothing is NaN; its details then give the reason.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import jiwer
import numpy as np
import sacrebleu
from numpy.typing import NDArray

from lsm_probe.errors import InputError
from lsm_probe.evaluation.normalisers import ENGLISH, normalise_pair
from lsm_probe.evaluation.words import words
from lsm_probe.intervals import (
    interval,
    leave_one_out,
    number_clusters,
    share_difference_interval,
    share_interval,
)
from lsm_probe.languages import CHINESE_SCRIPTS, find_language, require_language

Floats = NDArray[np.float64]
_EDITS = ("substitute", "delete", "insert")
_ALIKE = 1e-9
"""Scores, in per cent, that differ by less than this differ only by rounding."""


@dataclass(frozen=True)
class Score:
    """A score, or a difference of two, in per cent, with its 95 % interval over utterances.

    Attributes:
        ci_low, ci_high: ends of the interval; NaN if there is none, as with fewer than three utterances.
        n: number of samples that count.
        details: counts and conventions behind the score, ready for JSON; `undefined` is the reason for a missing value.
    """

    name: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def convention(self) -> str:
        """The counted unit and its normaliser, or BLEU's tokenizer; empty for metrics without such a choice."""
        units = [unit for unit in ("words", "characters") if unit in self.details]
        if normalisers := self.details.get("normalisers"):
            return f"{' and '.join(units)}, {' and '.join(normalisers)}"
        return f"tokenizer {self.details['tokenizer']}" if "tokenizer" in self.details else ""

    @property
    def shown(self) -> str:
        """The value in the form that tables show."""
        return "undefined" if math.isnan(self.value) else f"{self.value:.1f}"

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"{self.name} {self.shown}"
        ends = "" if math.isnan(self.ci_low) else f" [{self.ci_low:.1f}, {self.ci_high:.1f}]"
        return f"{self.name} {self.shown}{ends} %"

    def to_dict(self) -> dict[str, Any]:
        """The score for JSON: six decimals; NaN (undefined) becomes None."""
        found = asdict(self)
        return found | {key: _or_none(round(found[key], 6)) for key in ("value", "ci_low", "ci_high")}


@dataclass(frozen=True)
class Metric:
    """One metric of one checkpoint's responses.

    Attributes:
        counts: sufficient statistics, `[samples, k]`, float64.
        score: sums over samples, `[..., k]` -> per cent, `[...]`.
        n: number of samples that count; at most all.
        is_share: whether the score is a share of samples (or a mean over labels or tasks of such shares).
        highest: the largest possible score.
        details: see [`Score`].
        undefined_if: when the score is NaN, in words.
    """

    name: str
    counts: Floats
    score: Callable[[Floats], Floats]
    n: int
    details: dict[str, Any] = field(default_factory=dict)
    undefined_if: str = "no sample can be scored"
    is_share: bool = False
    highest: float = 100

    @property
    def value(self) -> float:
        """The score of all samples."""
        return float(self.score(self.counts.sum(0)))

    def leave_one_out(self, utterances: Sequence[str], counting: NDArray[np.bool_] | None = None) -> Floats:
        """The score without each utterance in turn, `[utterances]`; utterances without a counting sample are omitted.

        Args:
            utterances: the utterance of each sample (`Sample.utterance`).
            counting: which samples count, `[samples]`; by default those with a non-zero count.

        Raises:
            InputError: the number of utterances is not the number of samples.
        """
        same_length(utterances=utterances, samples=self.counts)
        counting = self.counting if counting is None else counting
        if not counting.any():
            return np.zeros(0)
        clusters = number_clusters([each for each, counts in zip(utterances, counting, strict=True) if counts])
        return self.score(leave_one_out(self.counts[counting], clusters))

    @property
    def counting(self) -> NDArray[np.bool_]:
        """Which samples have a non-zero count, `[samples]`; the others do not change the score."""
        return np.asarray(self.counts.any(1))

    def estimate(self, utterances: Sequence[str]) -> Score:
        """The score with its interval; see [`leave_one_out`]."""
        return estimated(self, self.value, self.leave_one_out(utterances), self.n, self.details)


def difference(first: Metric, second: Metric, utterances: Sequence[str]) -> Score:
    """`second` minus `first`, of two checkpoints on the same samples in the same order, with its paired interval.

    Percentage points. The same utterance is left out of both, so that the difficulty of a sample cancels out.

    Raises:
        InputError: the metrics or their numbers of samples differ.
    """
    if first.name != second.name:
        raise InputError(f"{first.name} and {second.name} are different metrics: they cannot be compared")
    same_length(first=first.counts, second=second.counts)
    counting = first.counting | second.counting
    left_out = second.leave_one_out(utterances, counting) - first.leave_one_out(utterances, counting)
    value = (second.value - first.value) / 100
    if first.is_share or _is_constant(left_out):
        hits = (second.counts - first.counts)[counting, 0]
        of_samples = (np.square(hits).mean(), len(hits)) if first.counts.shape[1] == 2 and first.is_share else ()
        ends = share_difference_interval(value, left_out / 100, *of_samples)
    else:
        ends = interval(value, left_out / 100)
    low, high = (100 * float(end) for end in ends)
    details: dict[str, Any] = {"first": _or_none(first.value), "second": _or_none(second.value)}
    details |= {"undefined": first.undefined_if} if math.isnan(value) else {}
    return Score(first.name, 100 * value, low, high, min(first.n, second.n), details)


def word_error_rate(
    references: Sequence[str],
    responses: Sequence[str],
    languages: Sequence[str | None] | None = None,
    *,
    macro: bool = False,
    ids: Sequence[str] | None = None,
) -> Metric:
    """Word error rate after Whisper's normalisers (Radford et al. 2022, appendix C), by the language of each sample.

    Over the corpus: sum of errors / sum of words of the references. For a reference without words (also "um" or
    "[noise]", which the English normaliser drops), all words of the response are insertions, as in jiwer; details give
    the number of such references. In languages without spaces between words (Chinese, Japanese, Thai, ...), characters
    (grapheme clusters) are counted instead of words, as Whisper's authors do. Details hold normalisers and units.

    The English normaliser turns "Smith's" into "Smith is", and "one two three" into one word (123). The basic one, for
    all other languages, keeps all marks except the vowel points of Arabic and Hebrew. Both drop text in brackets.

    Args:
        languages: of each reference, in any spelling that [`lsm_probe.languages.find_language`] knows. For None, texts
            with mostly Latin letters are treated as English, and others go through the basic normaliser.
        macro: the mean of the samples' own rates instead; references without words are left out.
        ids: names of the samples in warnings; by default their numbers, from 0.

    Raises:
        InputError: there are no samples, the numbers of references, responses and languages differ, or a language is
            unknown.

    Warns:
        UserWarning: references in a non-Latin script have no language, or English; references with letters that English
            does not have have no language; or the English normaliser failed and the basic one was used.
    """
    same_length(references=references, responses=responses)
    languages = [None] * len(references) if languages is None else languages
    ids = [f"number {i} (from 0)" for i in range(len(references))] if ids is None else ids
    same_length(references=references, languages=languages, ids=ids)
    known = [find_language(one, f"sample {name}: language ") for one, name in zip(languages, ids, strict=True)]
    pairs = [normalise_pair(*pair) for pair in zip(references, responses, known, strict=True)]
    _warn(
        "have references that are not in Latin script, while their `language` is English or not given: they went "
        "through Whisper's basic normaliser; set `language` in the task, or in the manifest if the task has none",
        [name for name, pair in zip(ids, pairs, strict=True) if pair.unexpected_script],
    )
    _warn(
        "hold what Whisper's English normaliser cannot read, such as a number of thousands of digits: they went "
        "through its basic normaliser",
        [name for name, pair in zip(ids, pairs, strict=True) if pair.failed],
    )
    assumed = [one is None and pair.normaliser.name == ENGLISH for one, pair in zip(known, pairs, strict=True)]
    accented = [any(c.isalpha() and not c.isascii() for c in reference) for reference in references]
    _warn(
        "name no `language` and have references with letters that English lacks, such as ä and ñ: they were scored as "
        "English, which does not tell ä from a; set `language` in the task, or in the manifest if the task has none",
        [name for name, *both in zip(ids, assumed, accented, strict=True) if all(both)],
    )
    units = [pair.normaliser.unit for pair in pairs]
    found = _word_errors([pair.reference for pair in pairs], [pair.response for pair in pairs], macro, units)
    found.details["normalisers"] = dict(Counter(pair.normaliser.name for pair in pairs))
    found.details["assumed_english"] = sum(assumed)
    return found


def bleu(references: Sequence[str], responses: Sequence[str], language: str) -> Metric:
    """BLEU of the corpus (Papineni et al. 2002), exactly `sacrebleu.corpus_bleu`; one reference a sample.

    The paper does not name its tokenizer. Here it is "zh" for Chinese and Cantonese, "char" (each character is a token)
    for other languages without spaces between words, such as Japanese and Thai, and "13a" for all others. Details give
    tokenizer and signature. Published scores for Japanese and Korean mostly use "ja-mecab" and "ko-mecab", whose
    dictionaries are not installed here, so the scores are not comparable.

    Args:
        language: of the references, in any spelling that [`lsm_probe.languages.find_language`] knows.

    Raises:
        InputError: there are no samples, the numbers of responses and references differ, or the language is unknown.
    """
    same_length(references=references, responses=responses)
    found_language = require_language(language)
    tokenizer = "zh" if found_language.script in CHINESE_SCRIPTS else "13a" if found_language.is_spaced else "char"
    scorer = sacrebleu.BLEU(tokenize=tokenizer)
    found = [scorer.corpus_score([r], [[reference]]) for reference, r in zip(references, responses, strict=True)]
    counts = np.array([[s.sys_len, s.ref_len, *s.counts, *s.totals] for s in found], dtype=np.float64)
    smoothing = scorer.smooth_method

    def score(sums: Floats) -> Floats:
        rows = sums.reshape(-1, sums.shape[-1]).astype(int).tolist()
        scores = [
            sacrebleu.BLEU.compute_bleu(row[2:6], row[6:], row[0], row[1], smooth_method=smoothing).score
            for row in rows
        ]
        return np.array(scores).reshape(sums.shape[:-1])

    whole = counts.sum(0)
    details = {
        "tokenizer": tokenizer,
        "signature": str(scorer.get_signature()),
        "response_tokens": int(whole[0]),
        "reference_tokens": int(whole[1]),
        "empty_references": int((counts[:, 1] == 0).sum()),
    }
    return Metric("bleu", counts, score, len(counts), details)


def accuracy(references: Sequence[Any], values: Sequence[Any]) -> Metric:
    """Share of values equal to their references, both as `answers` reads them; None (nothing read) is wrong.

    A model that only transcribes gives the right label if the speech contains it. To count such responses as wrong,
    give None for those that do not follow (the paper's 0.0 for Vanilla IT suggests that it does so).

    Raises:
        InputError: no samples, not one value for each reference, or a reference that is None.
    """
    same_length(references=references, values=values)
    if None in references:
        raise InputError(f"the reference of sample {list(references).index(None)} (from 0) cannot be read; correct it")
    right = [reference == value for reference, value in zip(references, values, strict=True)]
    return _share("accuracy", right, unread=sum(value is None for value in values))


def f1(
    references: Sequence[str], values: Sequence[str | None], labels: Sequence[str], *, average: str = "macro"
) -> Metric:
    """F1 over labels, one label per sample; details give the F1 of each label.

    A value of None (nothing read) is a miss for its reference and not a false positive of another label. "micro", which
    the paper reports for MELD, equals accuracy if every response has a label. "macro" is the mean over the labels that
    occur in references or values (scikit-learn's `zero_division=nan`).

    Args:
        average: "macro" or "micro".

    Raises:
        InputError: there are no samples, the numbers of values and references differ, `average` is unknown, or a
            reference or value is not a label.
    """
    same_length(references=references, values=values)
    if average not in ("macro", "micro"):
        raise InputError(f"average {average!r} is unknown; choose 'macro' or 'micro'")
    if foreign := {*references, *values} - {*labels, None} | ({None} & {*references}):
        raise InputError(f"{sorted(map(str, foreign))} are none of the labels {list(labels)}; correct the data")
    expected = np.array([[reference == label for label in labels] for reference in references])
    predicted = np.array([[value == label for label in labels] for value in values])
    # true positives, and positives of either side: F1 = 2 tp / (2 tp + fp + fn)
    counts = np.stack([2 * (expected & predicted), expected.astype(int) + predicted], axis=1).astype(np.float64)
    by_label = _ratio(*counts.sum(0))
    details = {
        "average": average,
        "unread": sum(value is None for value in values),
        "labels": {
            label: {"f1": _or_none(float(by_label[i])), "references": int(expected[:, i].sum())}
            for i, label in enumerate(labels)
        },
    }

    def score(sums: Floats) -> Floats:
        both = sums.reshape(*sums.shape[:-1], 2, len(labels))
        if average == "micro":
            return _ratio(both[..., 0, :].sum(-1), both[..., 1, :].sum(-1))
        held = both[..., 1, :] > 0
        return np.where(held, _ratio(both[..., 0, :], both[..., 1, :]), 0).sum(-1) / held.sum(-1)

    return Metric(f"f1_{average}", counts.reshape(len(counts), -1), score, len(counts), details, is_share=True)


def answer_contained(references: Sequence[Sequence[str]], responses: Sequence[str]) -> Metric:
    """Share of responses that contain any of their reference answers as a sequence of whole words (as LLaMA-Omni2).

    Compared without case, punctuation and articles (a, an, the), as in SQuAD. In scripts without spaces each character
    is a word. An answer without words never counts as contained.

    Args:
        references: the right answers of each sample.

    Raises:
        InputError: there are no samples, the numbers differ, or a sample's answers are a string or empty.
    """
    same_length(references=references, responses=responses)
    for i, answers in enumerate(references):
        if isinstance(answers, str) or not answers:
            raise InputError(f"the answers of sample {i} (from 0) are {answers!r}; give a list of one or more")
    held = [
        any(answer and answer in response for answer in map(_content, answers))
        for answers, response in zip(references, map(_content, responses), strict=True)
    ]
    return _share("answer_contained", held)


def following_rate(follows: Sequence[bool | None]) -> Metric:
    """Share of responses in the requested format (`Answer.follows`), among those where that can be determined.

    Raises:
        InputError: no samples.
    """
    same_length(follows=follows)
    counts = np.array([[bool(follow), follow is not None] for follow in follows], dtype=np.float64)
    known = int(counts[:, 1].sum())
    details = {"unknown": len(follows) - known}
    undefined_if = "no response can be checked for the requested form"
    return Metric("following_rate", counts, _share_of_sums, known, details, undefined_if, is_share=True)


def agreement(others: Sequence[str], responses: Sequence[str]) -> Metric:
    """Share of responses equal to another model's, without case and punctuation; two empty responses agree.

    Details give the word error rate against the other model's responses, over the same words. Whisper's normaliser is
    not used, because it drops brackets with their content, and so all lists of keywords.

    Raises:
        InputError: there are no samples, or the numbers of responses differ.
    """
    same_length(others=others, responses=responses)
    theirs, ours = ([" ".join(words(text)).casefold() for text in texts] for texts in (others, responses))
    rate = _word_errors(theirs, ours, macro=False).value
    same = [one == other for one, other in zip(theirs, ours, strict=True)]
    blank = sum(not one and not other for one, other in zip(theirs, ours, strict=True))
    return _share("agreement", same, both_empty=blank, word_error_rate=_or_none(rate))


def _warn(kind: str, names: Sequence[str]) -> None:
    if names:
        warnings.warn(f"{len(names)} samples (first: {names[0]}) {kind}", stacklevel=3)


def _word_errors(
    references: Sequence[str], responses: Sequence[str], macro: bool, units: Sequence[str] | None = None
) -> Metric:
    """Of normalised texts, whose units, by default words, are separated by spaces."""
    same_length(references=references, responses=responses)
    found = jiwer.process_words(list(references), list(responses))
    edits = np.array([[_length(chunks, kind) for kind in _EDITS] for chunks in found.alignments], dtype=np.float64)
    length = np.array([len(reference) for reference in found.references], dtype=np.float64)
    of_unit = np.array(["word"] * len(length) if units is None else units)
    totals = edits.sum(0).astype(int).tolist()
    details = {
        **dict(zip(("substitutions", "deletions", "insertions"), totals, strict=True)),
        **{f"{unit}s": int(length[of_unit == unit].sum()) for unit in sorted(set(of_unit.tolist()))},
        "empty_references": int((length == 0).sum()),
        "insertions_in_empty_references": int(edits[length == 0].sum()),
    }
    if macro:
        counts = np.stack([_ratio(edits.sum(1), length) / 100, length > 0], axis=1)
        counts[length == 0] = 0
    else:
        counts = np.stack([edits.sum(1), length], axis=1)
    name, n = ("word_error_rate_macro", int((length > 0).sum())) if macro else ("word_error_rate", len(length))
    undefined_if = "all references are empty after normalisation"
    return Metric(name, counts, _share_of_sums, n, details, undefined_if, highest=math.inf)


def _length(chunks: Sequence[jiwer.AlignmentChunk], kind: str) -> int:
    """Number of words that an alignment substitutes, deletes or inserts."""
    spans = [(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx) for c in chunks if c.type == kind]
    return sum(max(span) for span in spans)


def _share(name: str, hits: Sequence[bool], **details: Any) -> Metric:
    counts = np.stack([np.array(hits, dtype=np.float64), np.ones(len(hits))], axis=1)
    return Metric(name, counts, _share_of_sums, len(hits), details, is_share=True)


def _share_of_sums(sums: Floats) -> Floats:
    return _ratio(sums[..., 0], sums[..., 1])


def _ratio(part: Floats, whole: Floats) -> Floats:
    """The ratio in per cent; NaN if the whole is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, 100 * part / whole, np.nan)


def estimated(metric: Metric, value: float, left_out: Floats, n: int, details: dict[str, Any]) -> Score:
    """A value of a metric, with the interval from the values without each utterance."""
    if math.isnan(value):
        return Score(metric.name, value, math.nan, math.nan, n, {**details, "undefined": metric.undefined_if})
    # With no error in 8 utterances, the true word error rate may still be above 0.
    at_end = min(abs(value), abs(100 - value)) < _ALIKE and _is_constant(left_out)
    if metric.is_share or at_end:
        share = np.clip(value / 100, 0, 1)
        low, high = (100 * end for end in share_interval(share, left_out / 100, max(n, len(left_out))))
    else:
        low, high = (end.clip(0, metric.highest) for end in interval(value, left_out))
    return Score(metric.name, value, float(low), float(high), n, details)


def _is_constant(left_out: Floats) -> bool:
    """Whether leaving out any utterance gives the same value."""
    return bool(left_out.size and np.ptp(left_out) < _ALIKE)


def _or_none(value: float) -> float | None:
    """The value for JSON, which has no NaN."""
    return None if math.isnan(value) else value


def _content(text: str) -> str:
    """The words of a text, separated by spaces."""
    return "".join(f" {word} " for word in map(str.casefold, words(text)) if word not in ("a", "an", "the"))


def same_length(**lists: Any) -> None:
    lengths = {name: len(items) for name, items in lists.items()}
    if len(set(lengths.values())) > 1:
        counts = " and ".join(f"{length} {name}" for name, length in lengths.items())
        raise InputError(f"{counts} do not match; give one response for each reference")
    if 0 in lengths.values():
        raise InputError("there are no samples to score; give one or more")
