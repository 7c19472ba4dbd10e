"""Metrics: compared with values computed by hand and with libraries; intervals over utterances."""

import json
import math

import jiwer
import numpy as np
import pytest
import sacrebleu
from scipy.stats import binomtest, t
from sklearn.metrics import accuracy_score, f1_score

from lsm_probe.errors import InputError
from lsm_probe.evaluation.metrics import (
    accuracy,
    agreement,
    answer_contained,
    bleu,
    difference,
    f1,
    following_rate,
    word_error_rate,
)

ENGLISH = ["the cat sat on the mat today", "she sells sea shells by the shore", "it rains a lot", "he went home early"]
TRANSCRIPTS = ["the cat sat on a mat", "she sells sea shells by the shore now", "it rains", "go"]
CHINESE = ["他今天去了学校。", "我们明天要下雨了。", "她在家里看书。"]
CHINESE_RESPONSES = ["他今天去学校。", "明天会下雨。", "Hello 她看书"]
LABELS = ["neutral", "joy", "anger", "fear"]
TRUE_LABELS = ["neutral", "neutral", "joy", "anger", "joy", "neutral"]
PARSED_LABELS = ["neutral", "joy", "joy", None, "anger", "neutral"]
UTTERANCES = [f"u{i}" for i in range(6)]


def metrics():
    """One of each metric, for four samples."""
    return [
        word_error_rate(ENGLISH, TRANSCRIPTS),
        word_error_rate(ENGLISH, TRANSCRIPTS, macro=True),
        bleu(ENGLISH, TRANSCRIPTS, "en"),
        accuracy(TRUE_LABELS[:4], PARSED_LABELS[:4]),
        f1(TRUE_LABELS[:4], PARSED_LABELS[:4], LABELS),
        f1(TRUE_LABELS[:4], PARSED_LABELS[:4], LABELS, average="micro"),
        answer_contained([["cat"], ["sea shell"], ["rains"], ["no", "go"]], TRANSCRIPTS),
        following_rate([True, None, False, True]),
        agreement(ENGLISH, ["The cat sat on the mat today!", *TRANSCRIPTS[1:]]),
    ]


def test_word_error_rate_by_hand():
    # "the cat sat" / "the dog sat down": one substitution, one insertion; "go away" / "go": one deletion
    rate = word_error_rate(["The cat sat.", "go away"], ["the dog sat down", "Go!"])
    assert rate.value == pytest.approx(100 * 3 / 5)
    assert rate.details == {
        "substitutions": 1,
        "deletions": 1,
        "insertions": 1,
        "words": 5,
        "empty_references": 0,
        "insertions_in_empty_references": 0,
        "normalisers": {"whisper-english": 2},
        "assumed_english": 2,
    }
    assert word_error_rate(["The cat sat.", "go away"], ["the dog sat down", "Go!"], macro=True).value == pytest.approx(
        100 * (2 / 3 + 1 / 2) / 2
    )


def test_word_error_rate_normalises_as_whisper_does():
    assert word_error_rate(["Mr. Smith's colour: twenty-one, um"], ["mister smith is color 21"]).value == 0


def test_word_error_rate_equals_jiwers():
    assert word_error_rate(ENGLISH, TRANSCRIPTS).value == pytest.approx(100 * jiwer.wer(ENGLISH, TRANSCRIPTS))
    assert word_error_rate([*ENGLISH, ""], [*TRANSCRIPTS, "so so"]).value == pytest.approx(
        100 * jiwer.wer([*ENGLISH, ""], [*TRANSCRIPTS, "so so"])
    )


def test_empty_references_are_counted_and_not_scored():
    rate = word_error_rate(["she sells sea shells", "um", ""], ["she sells sea shells", "", "thank you"])
    assert rate.value == pytest.approx(50)
    assert rate.details["empty_references"] == 2
    assert rate.details["insertions_in_empty_references"] == 2
    macro = word_error_rate(["she sells sea shells", "um", ""], ["she sells sea shells", "", "thank you"], macro=True)
    assert (macro.value, macro.n) == (0, 1)


def test_without_any_reference_word_the_rate_is_undefined():
    rate = word_error_rate(["", "um"], ["", "yes"])
    assert math.isnan(rate.value)
    score = rate.estimate(["a", "b"])
    assert score.to_dict()["value"] is None
    assert score.details["undefined"] == "all references are empty after normalisation"
    assert score.shown == "undefined"


def test_utterances_without_a_value_do_not_narrow_the_interval():
    known = following_rate([True] * 5 + [False]).estimate(list("abcdef"))
    more = following_rate([True] * 5 + [False] + [None] * 4).estimate(list("abcdefghij"))
    assert (more.value, more.ci_low, more.ci_high) == (known.value, known.ci_low, known.ci_high)
    alone = following_rate([True, None, None, None]).estimate(list("abcd"))
    assert alone.value == 100
    assert (alone.to_dict()["ci_low"], alone.to_dict()["ci_high"]) == (None, None)


def test_empty_responses_count_as_deletions():
    assert word_error_rate(ENGLISH, [""] * 4).value == 100
    assert bleu(ENGLISH, [""] * 4, "en").value == 0


@pytest.mark.parametrize(
    ("references", "responses", "language", "tokenizer"),
    [
        (ENGLISH, TRANSCRIPTS, "en", "13a"),
        (ENGLISH, TRANSCRIPTS, "German", "13a"),
        (CHINESE, CHINESE_RESPONSES, "zh", "zh"),
        (CHINESE, CHINESE_RESPONSES, "zh-CN", "zh"),
        (CHINESE, CHINESE_RESPONSES, "Chinese", "zh"),
        ([*ENGLISH, "a b", ""], [*TRANSCRIPTS, "", "a b"], "fr", "13a"),
        (["x"], ["y"], "es", "13a"),
    ],
)
def test_bleu_equals_sacrebleu_exactly(references, responses, language, tokenizer):
    scorer = sacrebleu.BLEU(tokenize=tokenizer)
    expected = scorer.corpus_score(responses, [references])
    found = bleu(references, responses, language)
    assert found.value == expected.score
    assert found.value == sacrebleu.corpus_bleu(responses, [references], tokenize=tokenizer).score
    assert found.details["signature"] == str(scorer.get_signature())
    assert f"tok:{tokenizer}|" in found.details["signature"]


def test_bleu_by_hand():
    # 5 of 6 words, 4 of 5 bigrams, 3 of 4 trigrams, 2 of 3 fourgrams; 6 words for 7: brevity penalty exp(1 - 7/6)
    expected = 100 * math.exp(1 - 7 / 6) * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25
    assert bleu(["a b c d e g h"], ["a b c d e f"], "en").value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("spellings", "text", "tokenizer"),
    [
        ("zh zh_CN zh-TW ZH cmn Mandarin chinese zho_Hant yue Cantonese 中文", "他今天去了学校。", "zh"),
        ("ja ja_jp Japanese jpn 日本語", "今日は雨が降ります。", "char"),
        ("th Thai tha th-TH", "ผมชอบกินข้าว", "char"),
        ("lo Khmer my", "ខ្ញុំចូលចិត្តបាយ", "char"),
        ("hi ko ar DE_de deutsch zh-Latn", "मैं किताब पढ़ता हूँ", "13a"),
    ],
)
def test_bleu_accepts_a_language_in_any_spelling(spellings, text, tokenizer):
    for spelling in spellings.split():
        found = bleu([text], [text], spelling)
        assert (found.value, found.details["tokenizer"]) == (pytest.approx(100), tokenizer), spelling
        assert f"tok:{tokenizer}|" in found.details["signature"]


def test_bleu_of_japanese_counts_characters():
    # 今日は雨です / 今日は雪です: 5 of 6 characters, 3 of 5 pairs, 1 of 4 triples, 0 of 3 (smoothed to 1/2)
    expected = 100 * (5 / 6 * 3 / 5 * 1 / 4 * (1 / 2) / 3) ** 0.25
    assert bleu(["今日は雨です"], ["今日は雪です"], "ja").value == pytest.approx(expected)


@pytest.mark.parametrize("language", ["xx", "jp", "und", "gb", "pirate"])
def test_bleu_refuses_an_unknown_language(language):
    with pytest.raises(InputError, match=f"'{language}' .*write"):
        bleu(["a"], ["a"], language)


def test_accuracy_counts_unparsed_responses_as_wrong():
    found = accuracy(TRUE_LABELS, PARSED_LABELS)
    assert (found.value, found.n, found.details) == (50, 6, {"unread": 1})
    assert accuracy([True, False, frozenset("ab")], [True, None, frozenset("ba")]).value == pytest.approx(200 / 3)
    with pytest.raises(InputError, match=r"sample 1 \(from 0\)"):
        accuracy(["joy", None], ["joy", None])


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_f1_equals_scikit_learn(average):
    said = [value or "unread" for value in PARSED_LABELS]
    expected = f1_score(TRUE_LABELS, said, labels=LABELS, average=average, zero_division=np.nan)
    assert f1(TRUE_LABELS, PARSED_LABELS, LABELS, average=average).value == pytest.approx(100 * expected)


def test_f1_by_label_by_hand():
    # neutral: 2 right of 3 meant and 2 said; joy: 1 right of 2 and 2; anger: 0 right of 1 and 1; fear: never
    labels = f1(TRUE_LABELS, PARSED_LABELS, LABELS).details["labels"]
    assert labels["neutral"] == {"f1": pytest.approx(80), "references": 3}
    assert labels["joy"] == {"f1": pytest.approx(50), "references": 2}
    assert labels["anger"] == {"f1": 0, "references": 1}
    assert labels["fear"] == {"f1": None, "references": 0}
    assert f1(TRUE_LABELS, PARSED_LABELS, LABELS).value == pytest.approx((80 + 50 + 0) / 3)


def test_micro_f1_equals_accuracy_if_all_responses_are_parsed():
    values = [value or "fear" for value in PARSED_LABELS]
    assert f1(TRUE_LABELS, values, LABELS, average="micro").value == pytest.approx(
        100 * accuracy_score(TRUE_LABELS, values)
    )


def test_f1_refuses_an_unknown_label():
    for references, values in ((["happy"], ["joy"]), (["joy"], ["happy"]), ([None], ["joy"])):
        with pytest.raises(InputError, match="none of the labels"):
            f1(references, values, LABELS)
    with pytest.raises(InputError, match="'weighted' is unknown"):
        f1(["joy"], ["joy"], LABELS, average="weighted")


@pytest.mark.parametrize(
    ("answers", "response", "held"),
    [
        (["Paris"], "It is PARIS, of course.", True),
        (["art"], "It is Martin.", False),
        (["New York"], "new-york", True),
        (["New York"], "New to York", False),
        (["The Beatles"], "beatles", True),
        (["rome", "1969"], "In (1969).", True),
        (["café"], "cafe\u0301", True),
        (["!", "the"], "the !", False),
        (["巴黎"], "答案是巴黎。", True),
        (["巴黎"], "巴士去黎明", False),
        (["दिल"], "दिल्ली", False),
        (["दिल्ली"], "यह दिल्ली है।", True),
        (["Paris"], "", False),
    ],
)
def test_answer_contained_matches_whole_words(answers, response, held):
    assert answer_contained([answers], [response]).value == 100 * held


def test_answer_contained_needs_non_empty_lists():
    for answers in ("Paris", []):
        with pytest.raises(InputError, match="sample 0"):
            answer_contained([answers], ["Paris"])


def test_following_rate_leaves_out_unknown_values():
    found = following_rate([True, None, False, True])
    assert (found.value, found.n, found.details) == (pytest.approx(200 / 3), 3, {"unknown": 1})
    assert math.isnan(following_rate([None, None]).value)


def test_agreement_ignores_case_and_punctuation_but_not_brackets():
    found = agreement(["Yes, it is.", "['kitchen']", "", "one two"], ["yes it is", "['bedroom']", " ", "one"])
    assert found.value == 50
    assert found.details == {"both_empty": 1, "word_error_rate": pytest.approx(100 * 2 / 6)}
    assert agreement([""], [""]).details["word_error_rate"] is None


def test_agreement_distinguishes_vowel_signs_and_compares_chinese_by_character():
    assert agreement(["किताब"], ["कितब"]).value == 0
    assert agreement(["他去学校。"], ["她去学校"]).details["word_error_rate"] == pytest.approx(25)


@pytest.mark.parametrize("i", range(len(metrics())))
def test_scores_of_counts_do_not_depend_on_their_order(i):
    metric = metrics()[i]
    assert metric.score(metric.counts[::-1].sum(0)) == pytest.approx(metric.value)


def test_metrics_do_not_depend_on_the_order_of_input():
    assert word_error_rate(ENGLISH[::-1], TRANSCRIPTS[::-1]).value == word_error_rate(ENGLISH, TRANSCRIPTS).value
    assert bleu(CHINESE[::-1], CHINESE_RESPONSES[::-1], "zh").value == bleu(CHINESE, CHINESE_RESPONSES, "zh").value
    assert f1(TRUE_LABELS[::-1], PARSED_LABELS[::-1], LABELS).value == f1(TRUE_LABELS, PARSED_LABELS, LABELS).value


@pytest.mark.parametrize("i", range(len(metrics())))
def test_a_leave_one_out_resample_equals_the_score_without_the_utterance(i):
    metric, utterances = metrics()[i], np.array(["a", "b", "a", "c"])
    found = metric.leave_one_out(utterances)
    assert metric.counts.dtype == np.float64
    kept = [metric.counts[utterances != name] for name in "abc" if metric.counts[utterances == name].any()]
    np.testing.assert_allclose(found, [metric.score(counts.sum(0)) for counts in kept], rtol=1e-12)


def test_a_leave_one_out_bleu_equals_sacrebleu_of_the_other_sentences():
    found = bleu(CHINESE, CHINESE_RESPONSES, "zh").leave_one_out(list("abc"))
    for i, score in enumerate(found):
        references, responses = (
            [text for j, text in enumerate(texts) if j != i] for texts in (CHINESE, CHINESE_RESPONSES)
        )
        assert score == sacrebleu.corpus_bleu(responses, [references], tokenize="zh").score


def test_the_interval_of_a_word_error_rate_is_that_of_the_ratio_over_utterances(slow_interval):
    metric = word_error_rate(["a b c d", "e f", "g h i", "j", "k l m n"] * 2, ["a c d", "e f", "g x y", "j", "k l"] * 2)
    clusters = [0, 1, 2, 3, 4, 5, 0, 1, 2, 2]
    edits, length = metric.counts.T
    low, high = slow_interval(lambda kept: 100 * edits[kept].sum() / length[kept].sum(), clusters)
    score = metric.estimate([f"u{cluster}" for cluster in clusters])
    assert (score.ci_low, score.ci_high) == (pytest.approx(max(low, 0)), pytest.approx(high))


@pytest.mark.parametrize(("hits", "n"), [(0, 8), (8, 8), (3, 8), (1, 24), (5, 5)])
def test_a_share_with_one_sample_per_utterance_has_the_exact_binomial_interval(hits, n):
    score = accuracy(["a"] * n, ["a"] * hits + ["b"] * (n - hits)).estimate([f"u{i}" for i in range(n)])
    expected = binomtest(hits, n).proportion_ci(0.95, "exact")
    assert (score.ci_low, score.ci_high) == pytest.approx((100 * expected.low, 100 * expected.high))


def test_the_interval_widens_if_samples_of_an_utterance_agree():
    def width(right):
        score = accuracy(["a"] * 16, ["a" if hit else "b" for hit in right]).estimate([f"u{i // 2}" for i in range(16)])
        assert score.value == 50
        return score.ci_high - score.ci_low

    alike = width([True, True, False, False] * 4)  # as precise as eight samples
    eight = binomtest(4, 8).proportion_ci(0.95, "exact")
    assert alike == pytest.approx(100 * (eight.high - eight.low), rel=0.1)
    assert width([True, True, False, False, *[True, False] * 6]) < 0.85 * alike


@pytest.mark.parametrize("make", [word_error_rate, lambda texts, said: bleu(texts, said, "en")])
def test_a_perfect_score_on_few_utterances_has_a_wide_interval(make):
    texts = ["she sells sea shells", "the cat sat on the mat", "how are you all", "where is the old town"] * 2
    score = make(texts, texts).estimate([f"u{i}" for i in range(8)])
    worst = score.ci_high if score.value == 0 else 100 - score.ci_low
    assert worst == pytest.approx(36.94, abs=0.01)  # as of 0 of 8


def test_two_utterances_are_too_few_for_an_interval():
    first, second = accuracy(["a"] * 4, list("abaa")), accuracy(["a"] * 4, list("aaaa"))
    for score in (first.estimate(list("xxyy")), difference(first, second, list("xxyy"))):
        assert math.isnan(score.ci_low)
        assert math.isnan(score.ci_high)


@pytest.mark.parametrize("i", range(len(metrics())))
def test_a_score_can_be_written_as_json(i):
    metric = metrics()[i]
    score = metric.estimate(UTTERANCES[:4])
    assert score.ci_low <= score.value <= score.ci_high or math.isnan(score.ci_low)
    assert json.loads(json.dumps(score.to_dict(), allow_nan=False))["n"] == metric.n


def test_a_difference_is_paired():
    first, second = accuracy(["a"] * 6, list("ababab")), accuracy(["a"] * 6, list("aaabab"))
    found = difference(first, second, UTTERANCES)
    assert found.value == pytest.approx(100 / 6)
    assert found.details == {"first": 50, "second": pytest.approx(400 / 6)}
    # Bonett and Price (2012): one more utterance that is right in the second alone, and one in the first alone
    changes = np.array([0, 0, 0, 1, 0, 0, 1, -1])
    reach = t.ppf(0.975, 5) * changes.std() / math.sqrt(8)
    assert found.ci_low == pytest.approx(100 * (changes.mean() - reach))
    assert found.ci_high == pytest.approx(100 * (changes.mean() + reach))
    same = difference(first, first, UTTERANCES)
    assert same.value == 0
    assert -100 < same.ci_low < -20
    assert same.ci_high == -same.ci_low


def test_a_difference_needs_the_same_metric_and_samples():
    first = accuracy(["a"] * 3, list("aba"))
    with pytest.raises(InputError, match="different metrics"):
        difference(first, following_rate([True] * 3), UTTERANCES[:3])
    with pytest.raises(InputError, match="3 first and 2 second"):
        difference(first, accuracy(["a"] * 2, list("aa")), UTTERANCES[:3])
    with pytest.raises(InputError, match="6 utterances and 3 samples"):
        first.estimate(UTTERANCES)


@pytest.mark.parametrize(
    "metric",
    [
        word_error_rate,
        agreement,
        accuracy,
        answer_contained,
        lambda meant, said: bleu(meant, said, "en"),
        lambda meant, said: f1(meant, said, LABELS),
    ],
)
def test_lists_of_different_lengths_are_refused(metric):
    with pytest.raises(InputError, match=r"2 \w+ and 1 \w+ do not match"):
        metric(["joy", "joy"], ["joy"])
    with pytest.raises(InputError, match="no samples"):
        metric([], [])
