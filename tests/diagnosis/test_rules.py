"""Verdicts on hand-made measurements: both sides of each threshold, what may contradict, and what may be missing."""

import doctest
from dataclasses import replace

import numpy as np
import pytest

from lsm_probe.data.identity import DataIdentity
from lsm_probe.diagnosis import rules
from lsm_probe.diagnosis.evidence import FEWEST_UTTERANCES, Distance
from lsm_probe.diagnosis.measured import MeasuredCheckpoint
from lsm_probe.diagnosis.rules import LIMITS, judge
from lsm_probe.diagnosis.verdict import Verdict
from lsm_probe.evaluation.evaluation_result import EvaluationConventions, EvaluationResult
from lsm_probe.evaluation.task import Task
from lsm_probe.probes.knockout.result import KnockoutConventions, KnockoutResult
from lsm_probe.probes.sensitivity.result import SensitivityConventions, SensitivityResult
from lsm_probe.runner.identity import CheckpointIdentity

FOLLOWS, IGNORES = "follows the instruction", "ignores the instruction (speech anchor bias)"
NO_SPEECH, BETWEEN, CANNOT_TELL = "does not use the speech", "in between", "cannot tell"

N, POOL = 12, 5
CEILING = np.log(POOL)
BASE = {"d_i": 0.4, "d_s": 0.3}
WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "ledge"]
TEXTS = [f"please bring the {word} to room {word}s" for word in WORDS]
GERMAN = "das ist nicht der Weg und die Zeit"
SENTIMENT = Task(
    name="sentiment", title="Sentiment", answer="label", labels=("positive", "negative"), metrics=("accuracy",)
)
TASKS = {"sentiment": SENTIMENT}
TRANSCRIPTION = Task(name="transcription", title="Transcription", metrics=("word_error_rate",))


def log_probs(values):
    """Log-probabilities of a pool, `[samples, POOL, 1]`, from which these values of D follow."""
    others = np.log((POOL * np.exp(-np.asarray(values)) - 1) / (POOL - 1))
    return np.where(np.arange(POOL) == 0, 0.0, others[:, None])[:, :, None]


def varied(mean, n, noise):
    """`n` numbers around a mean, which they have exactly."""
    steps = np.linspace(-1, 1, n) if n > 1 else np.zeros(1)
    return mean + noise * steps


def measurement(values, name="lsm", clusters=None, **rows):
    """What all results share: identity, and rows with the given keys."""
    n = len(values)
    common = {"id": [f"s{i}" for i in range(n)], "task": ["title"] * n, "response_ids": [[7, 2]] * n, **rows}
    return {
        "samples": [{key: column[i] for key, column in common.items() if column[i] is not None} for i in range(n)],
        "clusters": np.arange(n) if clusters is None else np.array(clusters),
        "checkpoint": CheckpointIdentity(name=name, source="speech", template="chat", dtype="float32"),
        "data": DataIdentity("data", "abc", n),
    }


def sensed(d_i, d_s, name="lsm", n=N, noise=0.001, texts=TEXTS, responses=None, **rows):
    """Sensitivity with these mean D_i and D_s in nats per token, or with those of each sample."""
    d_i, d_s = (varied(each, n, noise) if np.ndim(each) == 0 else np.array(each) for each in (d_i, d_s))
    n = len(d_i)
    responses = [GERMAN] * n if responses is None else responses
    return SensitivityResult(
        instruction_log_probs=log_probs(d_i), source_log_probs=log_probs(d_s), self_check={},
        conventions=SensitivityConventions(),
        **measurement(d_i, name, response=responses, text=list(texts[:n]) if texts else [None] * n, **rows),
    )  # fmt: skip


def base(n=N, **fields):
    return sensed(BASE["d_i"], BASE["d_s"], "llm", n=n, **fields)


def transcribed(said, name="lsm", texts=TEXTS):
    n, texts = len(said), list(texts)
    return EvaluationResult(
        seconds=np.ones(n), conventions=EvaluationConventions(48, (TRANSCRIPTION,)),
        **measurement(said, name, response=said, reference=texts[:n], text=texts[:n], task=["transcription"] * n),
    )  # fmt: skip


def measured(d_i=1.0, d_s=1.0, *, source="speech", **parts):
    """A checkpoint whose D_i and D_s are these shares of the base LLM's."""
    own = parts.pop("own", None) or sensed(d_i * BASE["d_i"], d_s * BASE["d_s"])
    return MeasuredCheckpoint(name="lsm", source=source, own=own, **{"base_own": base(len(own.samples)), **parts})


def found(verdict, key):
    return next(each for each in verdict.evidence if each.key == key)


def test_the_example_runs():
    assert doctest.testmod(rules).failed == 0


# Thresholds


@pytest.mark.parametrize(
    ("d_i", "d_s", "verdict"),
    [
        (1.0, 1.0, FOLLOWS),
        (0.77, 1.0, FOLLOWS),
        (0.73, 1.0, BETWEEN),
        (0.27, 1.0, BETWEEN),
        (0.23, 1.0, IGNORES),
        (0.0, 3.0, IGNORES),
        (1.0, 0.32, FOLLOWS),
        (1.0, 0.28, NO_SPEECH),
        (0.0, 0.0, NO_SPEECH),
    ],
)
def test_shares_of_the_base_llms_sensitivity_decide(d_i, d_s, verdict):
    assert judge(measured(d_i, d_s)).verdict == verdict


@pytest.mark.parametrize(
    ("d_i", "d_s", "verdict"),
    [
        (0.155, 0.1, FOLLOWS),
        (0.145, 0.1, BETWEEN),
        (0.055, 0.1, BETWEEN),
        (0.045, 0.1, IGNORES),
        (0.155, 0.055, FOLLOWS),
        (0.155, 0.045, NO_SPEECH),
    ],
)
def test_shares_of_the_ceiling_decide_without_a_base_llm(d_i, d_s, verdict):
    judged = judge(measured(own=sensed(d_i * CEILING, d_s * CEILING), base_own=None))
    assert judged.verdict == verdict
    assert "the ceiling of 1.61" in judged.reason
    assert any("no base LLM" in each for each in judged.warnings)


def test_a_base_llm_that_does_not_depend_on_the_instruction_is_no_reference():
    useless = sensed(varied(0.0, N, 0.2), BASE["d_s"], "llm")
    judged = judge(measured(base_own=useless))
    assert found(judged, "instruction_sensitivity").compared_with == "the ceiling of 1.61"
    assert found(judged, "source_sensitivity").compared_with == "the base LLM's 0.30"
    assert any("base LLM's own D_i" in each for each in judged.warnings)


def test_the_base_llm_is_compared_on_the_same_samples():
    # The samples that the checkpoint lacks have a D_i of 1.6: over all, it would have a third of the base LLM's.
    values = [0.4] * 8 + [1.6] * 4
    judged = judge(measured(own=sensed(0.4, 0.3, n=8), base_own=sensed(values, varied(0.3, N, 0.001), "llm")))
    assert judged.verdict == FOLLOWS
    assert found(judged, "instruction_sensitivity").compared_with == "the base LLM's 0.40"


def test_a_base_llm_that_was_asked_other_things_is_no_reference():
    other = replace(base(), conventions=SensitivityConventions(instructions="others"))
    judged = judge(measured(base_own=other))
    assert "the ceiling" in judged.reason
    assert any("other samples or instructions" in each for each in judged.warnings)


# Several measurements


def test_most_responses_repeating_the_speech_rules_out_that_it_follows():
    for repeats, verdict in ((11, BETWEEN), (7, BETWEEN), (4, CANNOT_TELL), (2, FOLLOWS)):
        own = sensed(0.4, 0.3, responses=TEXTS[:repeats] + [GERMAN] * (N - repeats))
        judged = judge(measured(own=own))
        assert judged.verdict == verdict
        assert found(judged, "repeat_share").value == pytest.approx(repeats / N)


def test_repetitions_that_may_be_too_many_are_named_as_what_is_missing():
    judged = judge(measured(own=sensed(0.4, 0.3, responses=TEXTS[:4] + [GERMAN] * (N - 4))))
    assert "more than a quarter of the responses only repeat the speech" in judged.missing[0]


def test_a_checkpoint_that_mishears_repeats_what_it_hears():
    texts = [f"{word}one {word}two {word}three {word}four {word}five" for word in WORDS]
    heard = [f"{word}one {word}two some other words" for word in WORDS]  # 60 % of the words are wrong
    own = sensed(0.02, 0.3, texts=texts, responses=heard)
    assert found(judge(measured(own=own)), "repeat_share").value == 0  # compared with the transcripts alone
    repeats = found(judge(measured(own=own, transcription=transcribed(heard, texts=texts))), "repeat_share")
    assert repeats.value == 1
    assert "the checkpoint's own transcription" in repeats.text


def test_a_constant_response_is_no_transcription_to_repeat():
    constant = ["I am sorry, I cannot help with that."] * N
    judged = judge(measured(own=sensed(0.4, 0.3, responses=constant), transcription=transcribed(constant)))
    assert found(judged, "repeat_share").value == 0


def two_tasks(repeats):
    """Six titles, of which this many repeat the speech, and six sentiments, with twice as high a D_i."""
    responses = TEXTS[:repeats] + [GERMAN] * (6 - repeats) + ["positive"] * 6
    return sensed([0.3] * 6 + [0.6] * 6, varied(0.3, N, 0.001), responses=responses, task=TITLE_SENTIMENT)


TITLE_SENTIMENT = ["title"] * 6 + ["sentiment"] * 6


def test_each_task_has_its_numbers():
    reference = sensed([0.5] * 6 + [0.1] * 6, varied(0.3, N, 0.001), "llm", task=TITLE_SENTIMENT)
    title, sentiment = judge(measured(own=two_tasks(4), base_own=reference)).by_task
    assert (title.task, title.n_utterances, title.repeats, title.responses) == ("title", 6, 4, 6)
    assert (sentiment.task, sentiment.repeats, sentiment.responses) == ("sentiment", 0, 6)
    assert (title.d_i, title.base_d_i) == pytest.approx((0.3, 0.5))
    assert (sentiment.d_i, sentiment.base_d_i) == pytest.approx((0.6, 0.1))
    assert title.shown == "0.30 [0.30, 0.30]"


@pytest.mark.parametrize(("repeats", "named"), [(4, True), (3, False)])
def test_a_task_whose_responses_mostly_repeat_is_named(repeats, named):
    judged = judge(measured(own=two_tasks(repeats)))
    warning = "Most responses to some instructions only repeat the speech: title (4 of 6)."
    assert (warning in judged.warnings) == named


def test_a_checkpoint_that_ignores_all_instructions_gets_no_warning_about_single_tasks():
    own = sensed(0.02, 0.3, responses=TEXTS, task=TITLE_SENTIMENT)
    judged = judge(measured(own=own))
    assert judged.verdict == IGNORES
    assert not any("only repeat" in each for each in judged.warnings)


def test_one_task_has_no_numbers_of_its_own():
    assert judge(measured()).by_task == []


def test_a_verdict_with_tasks_survives_storing():
    judged = judge(measured(own=two_tasks(4)))
    assert Verdict.from_dict(judged.to_dict()).by_task[0].repeats == 4
    old = {key: value for key, value in judged.to_dict().items() if key != "by_task"}
    assert Verdict.from_dict(old).by_task == []


def test_repeating_decides_where_the_interval_of_d_i_is_open():
    d_i = varied(0.05, N, 0.2)  # the threshold is 0.1
    assert judge(measured(own=sensed(d_i, 0.3))).verdict == CANNOT_TELL
    judged = judge(measured(own=sensed(d_i, 0.3, responses=TEXTS)))
    assert judged.verdict == IGNORES
    assert found(judged, "repeat_share").side == "for"
    assert "100 % of the responses repeat the speech" in judged.reason


def test_repetitions_that_were_asked_for_do_not_count():
    asked = ["repetition"] * 4 + ["title"] * 8
    same = TEXTS[4:8]  # the base LLM's answer to these repeats the transcript too
    own = sensed(0.4, 0.3, responses=TEXTS[:8] + [GERMAN] * 4, task=asked)
    like = base(responses=[GERMAN] * 4 + same + [GERMAN] * 4, task=asked)
    share = found(judge(measured(own=own, base_own=like)), "repeat_share")
    assert (share.value, share.n_utterances) == (0, 4)


def test_a_repetition_in_the_asked_for_form_does_not_count():
    capitals = Task(name="capitals", title="Capitals", answer="capitals", metrics=("word_error_rate",))
    own = sensed(0.4, 0.3, responses=[text.upper() for text in TEXTS], task=["capitals"] * N)
    judged = judge(measured(own=own, tasks={"capitals": capitals}))
    assert found(judged, "repeat_share").value == 0


@pytest.mark.parametrize(("in_form", "verdict"), [(N, BETWEEN), (0, IGNORES)])
def test_the_asked_for_form_rules_out_that_it_ignores_the_instruction(in_form, verdict):
    own, like = with_form(in_form, 0.0), with_form(N, BASE["d_i"], "llm")
    judged = judge(measured(own=own, base_own=like, tasks=TASKS))
    assert judged.verdict == verdict
    assert found(judged, "form_share").compared_with == "the base LLM's 1.00"


def test_a_missed_form_rules_out_that_it_follows():
    judged = judge(measured(own=with_form(0, 0.4), base_own=with_form(N, 0.4, "llm"), tasks=TASKS))
    assert judged.verdict == BETWEEN
    assert found(judged, "form_share").side == "open"
    assert found(judged, "instruction_sensitivity").side == "against"


def test_the_form_confirms_where_the_interval_of_d_i_is_open():
    d_i = varied(0.35, N, 0.3)  # the threshold is 0.3
    like = with_form(N, 0.4, "llm")
    # Without transcripts: the share of repetitions would confirm it too.
    own = with_form(N, d_i, texts=None)
    assert judge(measured(own=own, base_own=like)).verdict == CANNOT_TELL
    assert judge(measured(own=own, base_own=like, tasks=TASKS)).verdict == FOLLOWS
    assert judge(measured(own=with_form(N, d_i), base_own=like)).verdict == FOLLOWS


def test_a_form_that_the_base_llm_also_misses_is_no_evidence():
    judged = judge(measured(own=with_form(0, 0.4), base_own=with_form(1, 0.4, "llm"), tasks=TASKS))
    assert judged.verdict == FOLLOWS
    assert found(judged, "form_share").side == "open"


def with_form(in_form, d_i, name="lsm", **fields):
    said = ["Positive."] * in_form + ["well, it depends"] * (N - in_form)
    return sensed(d_i, 0.3, name, responses=said, task=["sentiment"] * N, **fields)


def test_the_word_error_rate_decides_where_the_interval_of_d_s_is_open():
    wide = varied(0.12, N, 0.2)  # the threshold is 0.09
    undecided = judge(measured(own=sensed(0.4, wide)))
    assert undecided.verdict == CANNOT_TELL
    assert undecided.missing[0].endswith("would show whether the responses depend on the speech (D_s).")
    assert "word error rate" in undecided.missing[1]
    judged = judge(measured(own=sensed(0.4, wide), transcription=transcribed(TEXTS)))
    assert judged.verdict == FOLLOWS
    assert "the word error rate is 0 %, compared with" in judged.reason
    low = varied(0.06, N, 0.2)
    assert judge(measured(own=sensed(0.4, low))).verdict == CANNOT_TELL
    assert judge(measured(own=sensed(0.4, low), transcription=transcribed(["a long story"] * N))).verdict == NO_SPEECH


def test_a_checkpoint_that_transcribes_but_answers_without_the_speech_is_in_between():
    judged = judge(measured(1.0, 0.0, transcription=transcribed(TEXTS)))
    assert judged.verdict == BETWEEN
    assert "understands the speech" in judged.reason
    assert found(judged, "source_sensitivity").side == "against"


def test_chance_is_the_error_rate_against_transcripts_of_other_utterances():
    said = [f"{text} and more" for text in TEXTS]
    judged = judge(measured(transcription=transcribed(said)))
    error = found(judged, "transcription_error")
    assert error.value == pytest.approx(100 * 2 / 7)  # two words too many for seven
    assert error.compared_with == "57 % by chance"  # and two other ones
    assert error.n_utterances == N


def test_knockout_supports_but_does_not_decide():
    falls = np.tile([0.5, 0.5], (N, 1))
    knockout = KnockoutResult(
        log_prob=np.zeros(N), fall=np.repeat(falls[:, :, None], 3, 2), fall_all_layers=falls,
        fall_heads=np.zeros((N, 2, 0, 0)), head_layers=[], conventions=KnockoutConventions(), self_check={},
        **measurement(falls),
    )  # fmt: skip
    judged = judge(measured(0.0, 1.0, knockout=knockout))
    assert judged.verdict == IGNORES
    assert found(judged, "fall_without_source").side == "for"
    assert found(judged, "fall_without_instruction").value == pytest.approx(0.5)


def test_the_base_llms_words_support_but_do_not_decide():
    judged = judge(measured(base_words=sensed(0.2, varied(-0.2, N, 0.05))))
    assert judged.verdict == FOLLOWS
    assert found(judged, "instruction_sensitivity_base_words").side == "for"
    assert judged.against == [found(judged, "source_sensitivity_base_words")]


# What is missing, and what cannot be judged


@pytest.mark.parametrize("n", [1, 2, FEWEST_UTTERANCES - 1])
def test_few_utterances_give_no_verdict(n):
    judged = judge(measured(own=sensed(0.4, 0.3, n=n)))
    assert judged.verdict == CANNOT_TELL
    assert f"{n} utterance" in judged.reason
    more = FEWEST_UTTERANCES - n
    assert judged.missing == [f"At least {more} more utterance{'' if more == 1 else 's'}."]
    assert judge(measured(own=sensed(0.4, 0.3, n=FEWEST_UTTERANCES))).verdict == FOLLOWS


def test_utterances_are_counted_instead_of_samples():
    own = replace(sensed(0.4, 0.3), clusters=np.arange(N) // 4)
    assert "3 utterances" in judge(measured(own=own)).reason


def test_one_utterance_has_no_interval():
    number = found(judge(measured(own=sensed(0.4, 0.3, n=1))), "instruction_sensitivity")
    assert (number.ci_low, number.ci_high, number.n_utterances) == (None, None, 1)


def test_without_measurements_there_is_no_verdict():
    judged = judge(MeasuredCheckpoint(name="lsm", source="speech"))
    assert judged.verdict == CANNOT_TELL
    assert "lsm-probe sensitivity" in judged.missing[0]


def test_empty_responses_give_no_verdict():
    judged = judge(measured(own=sensed(0.4, 0.3, responses=[""] * N)))
    assert judged.verdict == CANNOT_TELL
    assert judged.reason.startswith("12 of 12 responses are empty")
    alone = judge(MeasuredCheckpoint(name="lsm", source="speech", transcription=transcribed([""] * N)))
    assert alone.reason.startswith("All 12 responses are empty")


def test_some_empty_responses_are_a_warning():
    judged = judge(measured(own=sensed(0.4, 0.3, responses=["", ""] + [GERMAN] * 10)))
    assert judged.verdict == FOLLOWS
    assert "2 of 12 responses are empty." in judged.warnings
    left_out = replace(sensed(0.4, 0.3), excluded={"empty response": ["x", "y", "z"]})
    assert "3 of 15 responses are empty." in judge(measured(own=left_out)).warnings


def test_thinking_is_not_read_as_the_answer():
    own = sensed(0.4, 0.3, responses=TEXTS, answer=[GERMAN] * N, thinking_tokens=[5] * N)
    judged = judge(measured(own=own))
    assert judged.verdict == FOLLOWS
    assert found(judged, "repeat_share").value == 0
    unfinished = sensed(0.4, 0.3, responses=TEXTS)
    unfinished = replace(unfinished, samples=[{**row, "answer": None} for row in unfinished.samples])
    assert judge(measured(own=unfinished)).reason.startswith("12 of 12 responses are empty")


def test_without_transcripts_d_s_alone_decides():
    judged = judge(measured(1.0, 0.0, own=sensed(0.4, 0.0, texts=None)))
    assert judged.verdict == NO_SPEECH
    assert {each.key for each in judged.evidence} == {"instruction_sensitivity", "source_sensitivity"}
    assert any("The word error rate was not measured" in each for each in judged.warnings)


def test_recordings_that_make_no_difference_at_all_are_a_warning():
    judged = judge(measured(own=sensed(0.4, np.zeros(N))))
    assert judged.verdict == NO_SPEECH
    assert any("silent" in each for each in judged.warnings)


def test_the_reason_for_a_text_llm_names_the_transcript():
    def of_text(d_i, d_s):
        return judge(measured(own=sensed(d_i, d_s, "llm"), source="text"))

    follows = of_text(0.4, 0.3)
    assert follows.verdict == FOLLOWS
    assert "the ceiling" in follows.reason  # it is not its own reference
    assert "speech" not in follows.reason
    ignores = of_text(0.0, 0.3)
    assert ignores.verdict == IGNORES
    assert "no bias towards speech" in ignores.reason
    unused = of_text(0.4, 0.0)
    assert unused.verdict == CANNOT_TELL
    assert "hardly depend on them" in unused.reason


def test_an_open_verdict_names_what_is_possible_and_how_many_utterances_would_settle_it():
    judged = judge(measured(own=sensed(varied(0.28, N, 0.2), 0.3)))
    assert judged.verdict == CANNOT_TELL
    assert '"follows the instruction" and "in between"' in judged.reason
    assert judged.missing[0].startswith("About ")
    assert judged.missing[0].endswith("more utterances would show whether it follows the instruction (D_i).")
    alone = judge(measured(own=sensed(varied(0.2, N, 0.25), 0.3), base_own=None))
    assert any("--base" in each for each in alone.missing)


def test_the_number_of_utterances_grows_with_the_square_of_the_width():
    assert Distance(1.0, -1.0, 3.0, 10).more_utterances() == "30"  # half as wide with four times as many
    assert Distance(-1.0, -3.0, 1.0, 10).more_utterances() == "30"
    assert Distance(1.0, -0.01, 3.0, 10).more_utterances() == "1"
    assert Distance(0.01, -1.0, 1.0, 10).more_utterances() == "more than 500"
    assert Distance(0.0, -1.0, 1.0, 10).more_utterances() == "more than 500"


def test_one_utterance_that_alone_decides_the_verdict_is_a_warning():
    # Without the first utterance D_i is 0.28, and the threshold is 0.3.
    own = with_form(N, [0.8, *varied(0.28, N - 1, 0.01)])
    judged = judge(measured(own=own, base_own=with_form(N, 0.4, "llm"), tasks=TASKS))
    assert judged.verdict == FOLLOWS
    expected = "Without the utterance of sample s0, D_i would lie on the other side of its threshold, and the verdict "
    assert f"{expected}would not hold." in judged.warnings
    assert not judge(measured()).warnings


def test_a_verdict_can_be_stored():
    judged = judge(measured(transcription=transcribed(TEXTS)))
    assert Verdict.from_dict(judged.to_dict()).to_dict() == judged.to_dict()
    assert all(isinstance(each, str) for each in LIMITS)
