"""The sentence says what was planted, with its numbers, and never more than the intervals do."""

from dataclasses import replace

import numpy as np
import pytest

from lsm_probe.probes.attention.reference import length_controls
from lsm_probe.probes.knockout.result import KnockoutConventions, KnockoutResult
from lsm_probe.probes.sensitivity.result import SensitivityConventions, SensitivityResult
from lsm_probe.reports.curves import chart
from lsm_probe.reports.finding import find, last_group_eta, shown, text_at_length
from lsm_probe.reports.paper_figures import gain_frame


@pytest.fixture
def knocked(planted):
    """`knocked(name, fall)`: a knockout result with this fall without the instruction in all layers."""

    def make(name, fall):
        like = planted(name, 0.5)
        n = len(like.samples)
        falls = np.stack([np.full(n, fall) + np.linspace(-0.01, 0.01, n), np.ones(n)], 1)
        return KnockoutResult(
            log_prob=np.zeros(n), fall=np.repeat(falls[:, :, None], 3, 2), fall_all_layers=falls,
            fall_heads=np.zeros((n, 2, 0, 0)), head_layers=[], conventions=KnockoutConventions(), self_check={},
            **{key: getattr(like, key) for key in ("clusters", "samples", "checkpoint", "data")},
        )  # fmt: skip

    return make


@pytest.fixture
def sensed(planted):
    """`sensed(name, worth)`: a sensitivity result whose source is worth so many nats to each token."""

    def make(name, worth, given=False):
        like = planted(name, 0.5)
        n = len(like.samples)
        # Against five sources: the own one is likelier than the mean of all five by `worth`.
        other = np.log((5 * np.exp(-worth) - 1) / 4)
        source = np.where(np.arange(5) == 0, 0.0, other)[None, :, None] + np.zeros((n, 5, 3))
        source = source + np.linspace(-0.01, 0.01, n)[:, None, None] * (np.arange(5) == 0)[None, :, None]
        return SensitivityResult(
            instruction_log_probs=np.zeros((n, 5, 3)), source_log_probs=source, self_check={},
            conventions=SensitivityConventions(),
            checkpoint=replace(like.checkpoint, responses="given" if given else None),
            **{key: getattr(like, key) for key in ("clusters", "samples", "data")},
        )  # fmt: skip

    return make


def test_the_planted_lowest_is_named_with_its_numbers(planted):
    vanilla, powered = planted("vanilla", 0.2), planted("powered", 0.6)
    found = find([powered, vanilla])
    assert found.sentence.startswith("Of 2 speech checkpoints vanilla looks least at the instruction: η = 0.20 [")
    assert shown(last_group_eta(vanilla)) in found.sentence
    assert "in layers 10–11" in found.sentence
    assert "0.40 [" in found.sentence
    assert "below powered, the next lowest" in found.sentence
    assert "this holds under all 16 conventions (12 samples)." in found.sentence


def test_a_text_llm_is_held_against_at_the_same_length_and_never_bare(planted):
    speech = planted("speech", 0.4, tokens=30, noise=0.002)
    text = planted("llm", 0.9, source="text", tokens=10, noise=0.002)
    control = planted("llm at length of speech", 0.5, source="text", control=True, tokens=30, noise=0.002)
    found = find([text, speech, control])
    assert "speech looks less at the instruction than the text LLM llm at the same source length" in found.sentence
    assert "0.10 [" in found.sentence  # not the 0.50 to the bare text LLM
    assert found.comparisons[0].reference is control
    alone = find([text, speech])
    assert "text LLM" not in alone.sentence
    assert "0.5" in alone.sentence
    assert "no length-matched control" in alone.caveats[0]


def test_a_control_serves_every_checkpoint_with_its_source_lengths(planted):
    text = planted("llm", 0.9, source="text", tokens=10)
    first, second = planted("first", 0.6, tokens=30), planted("second", 0.4, tokens=30)
    longer = planted("longer", 0.7, tokens=40)
    controls = list(length_controls([text, first, second, longer], []))
    assert [control.name for control in controls] == ["llm at length of first", "llm at length of longer"]
    measured = [
        planted(control.name, 0.5, source="text", control=True, tokens=tokens)
        for control, tokens in zip(controls, (30, 40), strict=True)
    ]
    results = [text, first, second, longer, *measured]
    found = find(results)
    assert found.comparisons[1].reference is measured[0]
    assert not any("not compared" in caveat for caveat in found.caveats)
    held = {line.name: line.against for line in chart(results)["lines"]}
    assert held == {
        **{"llm": None, "first": measured[0].name, "second": measured[0].name, "longer": measured[1].name},
        **dict.fromkeys([control.name for control in measured]),
    }
    # Without the checkpoint that gave it its name, too.
    assert text_at_length([text, second, *measured], text, second) is measured[0]
    gains = list(dict.fromkeys(gain_frame([text, first, *measured, second])["checkpoint"]))[-3:]
    assert gains == ["second − llm", "second − first", "second − llm at length of first"]


def test_of_several_controls_a_checkpoints_own_is_taken_first_and_none_of_other_lengths(planted):
    text = planted("llm", 0.9, source="text", tokens=10)
    first, second = planted("first", 0.6, tokens=30), planted("second", 0.4, tokens=30)
    own, other = (
        planted(f"llm at length of {name}", 0.5, source="text", control=True, tokens=30) for name in ("second", "first")
    )
    for controls in ([own, other], [other, own]):
        assert text_at_length([text, first, second, *controls], text, second) is own
        assert text_at_length([text, first, second, *controls], text, first) is other
    few = own.subset(own.ids[:4])
    assert text_at_length([text, few, other], text, second) is other
    assert text_at_length([text, other], text, planted("shorter", 0.4, tokens=29)) is None


def test_a_difference_that_is_not_there_is_not_claimed(planted):
    like = [planted("one", 0.4, noise=0.1), planted("two", 0.4, noise=0.1)]
    found = find(like)
    assert "cannot be told" in found.sentence
    assert "looks least at the instruction cannot" in found.sentence
    assert "not shown to differ" in found.sentence
    assert "below" not in found.sentence


@pytest.mark.parametrize(
    ("eta", "said"),
    [
        (0.3, "looks less at the instruction than at its source"),
        (0.7, "looks more at the instruction than at its source"),
        (0.5, "is not shown to look less at the instruction than at its source, nor more"),
    ],
)
def test_one_checkpoint_is_held_against_balance(planted, eta, said):
    result = planted("alone", eta, noise=0.2)
    # Its mean as planted, to the last digit: noise that averages to nothing.
    even = np.linspace(-0.15, 0.15, 12)[:, None]
    norms = result.norms.copy()
    norms[..., 2], norms[..., 3] = eta + even, 1 - eta - even
    result = replace(result, norms=norms, head_norms=norms[:, :, None])
    assert find([result]).sentence.startswith(f"alone {said}: η = ")


def test_conventions_under_which_it_is_reversed_are_counted(planted):
    low, high = planted("low", 0.3, template=5.0), planted("high", 0.6, template=0.01)
    found = find([low, high])
    assert "this holds under 8 of 16 conventions and is reversed under 8" in found.sentence
    spans = {reading.conventions["span"]: reading.verdict for reading in found.checks}
    assert spans == {"instruction": "holds", "instruction+template": "reversed"}
    assert found.checks[0].conventions == {
        "heads": "sum_then_norm", "segment": "mean", "aggregate": "mean_of_ratios", "span": "instruction"
    }  # fmt: skip


def test_the_finding_reads_the_results_own_conventions(planted):
    results = [planted(name, eta, template=1.0) for name, eta in (("a", 0.3), ("b", 0.6))]
    own = [result.with_conventions(span="instruction+template", segment="sum") for result in results]
    found = find(own)
    assert found.checks[0].conventions["span"] == "instruction+template"
    assert shown(last_group_eta(own[0])) in found.sentence


@pytest.mark.parametrize(("falls", "verdict"), [((0.1, 0.9), "same"), ((0.9, 0.1), "opposite"), ((0.5, 0.5), "open")])
def test_other_probes_are_heard(planted, knocked, falls, verdict):
    attention = [planted("low", 0.2), planted("high", 0.6)]
    evidence = find(attention, knockout=[knocked("low", falls[0]), knocked("high", falls[1])]).evidence
    assert [(item.source, item.verdict) for item in evidence] == [("knockout", verdict)]
    assert find(attention, knockout=[knocked("low", 0.1)]).evidence == []


@pytest.mark.parametrize(("falls", "verdict"), [((0.1, 0.9), "alone"), ((0.5, 0.5), "open")])
def test_where_nothing_is_claimed_nothing_can_say_the_same(planted, knocked, falls, verdict):
    attention = [planted("one", 0.4, noise=0.1), planted("two", 0.4, noise=0.1)]
    knockout = [knocked("one", falls[0]), knocked("two", falls[1])]
    assert find(attention, knockout=knockout).evidence[0].verdict == verdict


@pytest.mark.parametrize(("worth", "hardly"), [(0.05, True), (0.8, False)])
def test_of_a_model_that_does_not_use_the_speech_it_is_said(planted, sensed, worth, hardly):
    attention = [planted("low", 0.2), planted("high", 0.6)]
    found = find(attention, [sensed("low", worth), sensed("high", 0.8)])
    assert (found.speech_use is not None) == hardly
    if hardly:
        assert "low hardly uses the speech" in found.speech_use
        assert f"{worth:.2f} [" in found.speech_use
        assert "of at most 1.61 nats per token" in found.speech_use
    assert not any("was not measured" in caveat for caveat in found.caveats)


def test_on_the_words_of_another_listening_is_not_measured(planted, sensed):
    attention = [planted("low", 0.2), planted("high", 0.6)]
    given = [sensed(name, 0.05, given=True) for name in ("low", "high")]
    found = find(attention, given)
    assert found.speech_use is None
    assert any("whether low uses the speech at all was not measured" in caveat for caveat in found.caveats)
    assert find(attention, given, own_words=[sensed("low", 0.05)]).speech_use is not None


def test_only_shared_samples_are_compared_and_pairing_is_used(planted):
    rng = np.random.default_rng(0)
    shift = rng.normal(0, 0.15, (12, 1))  # shared by both: pairing takes it out
    results = []
    for name, eta in (("low", 0.4), ("high", 0.44)):
        result = planted(name, eta, noise=0)
        norms = result.norms.copy()
        norms[..., 2], norms[..., 3] = eta + shift, 1 - eta - shift
        results.append(replace(result, norms=norms, head_norms=norms[:, :, None]))
    assert "low looks least" in find(results).sentence
    mixed = results[1].subset([f"s{i}" for i in (7, 3, 11, 0, 5, 9, 1)])
    assert find([results[0], mixed]).comparisons[0].change().mean == pytest.approx(-0.04, abs=1e-6)


def test_without_attention_there_is_no_finding(knocked):
    assert find([], knockout=[knocked("a", 1.0)]) is None
