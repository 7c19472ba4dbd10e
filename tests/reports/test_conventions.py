"""Eta is compared at the same source length and never otherwise, under every convention."""

from dataclasses import replace

import numpy as np
import pytest

from lsm_probe.probes.attention.reference import last_group_eta, length_controls, text_at_length
from lsm_probe.reports.conventions import READ, all_conventions, comparisons, eta_warnings, sides
from lsm_probe.reports.curves import chart
from lsm_probe.reports.paper_figures import gain_frame
from lsm_probe.reports.tables import conventions_table
from lsm_probe.runner.tables import shown

OWN = {"heads": "sum_then_norm", "segment": "mean", "aggregate": "mean_of_ratios", "span": "instruction"}


def test_speech_is_compared_with_the_text_llm_at_the_same_length_and_never_without_it(planted):
    speech = planted("speech", 0.4, tokens=30, noise=0.002)
    text = planted("llm", 0.9, source="text", tokens=10, noise=0.002)
    control = planted("llm at length of speech", 0.5, source="text", control=True, tokens=30, noise=0.002)
    (pair,) = comparisons([text, speech, control])
    assert pair.reference is control
    assert float(pair.change().mean) == pytest.approx(-0.1, abs=5e-3)  # not the -0.5 to the text LLM as it is
    assert sides(pair.change()) == "below"
    assert eta_warnings([text, speech, control]) == []
    assert [pair.reference for pair in comparisons([text, speech])] == [None, None]
    assert "no length-matched control" in eta_warnings([text, speech])[0]


def test_eta_in_different_dtypes_is_shown_with_a_warning(planted):
    first, second = (planted(name, 0.4) for name in ("first", "second"))
    assert eta_warnings([first, second]) == []
    half = replace(second, checkpoint=replace(second.checkpoint, dtype="bfloat16"))
    (warning,) = eta_warnings([first, half])
    assert warning.startswith("Dtypes differ (first: float32, second: bfloat16), and the error of half precision may")


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
    assert [pair.reference for pair in comparisons(results)] == [measured[0], measured[0], measured[1]]
    references = {line.name: line.against for line in chart(results)["lines"]}
    assert references == {
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


def test_without_a_text_llm_the_first_speech_checkpoint_is_the_reference(planted):
    first, second = planted("first", 0.6), planted("second", 0.2)
    (pair,) = comparisons([first, second])
    assert (pair.title, pair.reference) == ("second minus first", first)


@pytest.mark.parametrize(("eta", "side"), [(0.3, "below"), (0.7, "above")])
def test_one_checkpoint_alone_is_compared_with_balance(planted, eta, side):
    alone = planted("alone", eta)
    (pair,) = comparisons([alone])
    assert sides(pair.change()) == side
    np.testing.assert_allclose(pair.change().mean, last_group_eta(alone).mean - 0.5)
    assert "of a single checkpoint" in eta_warnings([alone])[0]


def test_a_difference_that_is_not_significant_is_open(planted):
    (pair,) = comparisons([planted("one", 0.4, noise=0.1), planted("two", 0.4, noise=0.1)])
    assert sides(pair.change()) == "open"


def test_the_table_shows_the_conventions_under_which_a_difference_is_reversed(planted):
    low, high = planted("low", 0.3, template=5.0), planted("high", 0.6, template=0.01)
    table = conventions_table([high, low])
    assert len(table.rows) == 16
    marks = {row[READ.index("span")]: row[-1][-1] for row in table.rows}
    assert marks == {"instruction": "▼", "instruction+template": "▲"}
    (pair,) = comparisons([high, low])
    assert table.rows[0][-1] == f"{shown(pair.change(**OWN))} ▼"


def test_the_conventions_of_the_results_come_first(planted):
    results = [planted(name, eta, template=1.0) for name, eta in (("a", 0.3), ("b", 0.6))]
    assert all_conventions(results)[0] == OWN
    own = [result.with_conventions(span="instruction+template", segment="sum") for result in results]
    assert all_conventions(own)[0] == OWN | {"segment": "sum", "span": "instruction+template"}


def test_only_shared_samples_are_compared(planted):
    one, other = planted("one", 0.4, noise=0), planted("other", 0.44, noise=0)
    mixed = other.subset([f"s{i}" for i in (7, 3, 11, 0, 5, 9, 1)])
    (pair,) = comparisons([one, mixed])
    assert float(pair.change().mean) == pytest.approx(0.04, abs=1e-6)
    apart = one.subset(["s0", "s1", "s2"]), other.subset(["s3", "s4", "s5"])
    assert [pair.reference for pair in comparisons(apart)] == [None, None]
