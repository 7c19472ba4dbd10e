"""Results, verdicts and diagnoses as a notebook shows them: small, escaped, without scripts, and always something."""

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

import lsm_probe
from lsm_probe.data.identity import DataIdentity
from lsm_probe.diagnosis.diagnosis import Diagnosis
from lsm_probe.diagnosis.verdict import Evidence, Verdict
from lsm_probe.reports.collection import measurements
from lsm_probe.runner.notebook_view import object_html
from lsm_probe.runner.tables import Table

EVIL = "<script>alert(1)</script> & $x_1$"


def shown(thing):
    """Its HTML, after the checks that hold for all."""
    html = thing._repr_html_()
    assert len(html) < 100_000
    assert "<table>" in html
    assert 'src="data:image/png;base64,' in html
    assert "<script" not in html
    assert "http" not in html
    line = repr(thing)
    assert "\n" not in line
    assert len(line) < 400
    return html


@pytest.mark.parametrize("name", ["attention", "sensitivity", "knockout", "alignment", "importance", "evaluate"])
def test_every_result_shows_a_line_a_table_and_a_picture(name, runs):
    result = measurements()[name].get("result").load(next((runs / name).glob("**/result.json")).parent)
    assert result.name in shown(result)
    line = repr(result)
    assert line.startswith(f"{type(result).__name__}({result.name}, 6 samples")
    assert re.search(r"\d \[-?[\d.]+, -?[\d.]+\]", line), "the headline has an interval"


def test_text_ability_and_a_timeline_show_themselves(tiny_llm, tiny_lsm, samples):
    result = lsm_probe.text_ability(tiny_llm, samples[:4])
    assert "perplexity" in repr(result)
    assert "nats per token" in shown(result)
    timeline = lsm_probe.timeline(tiny_lsm, samples[3].model_copy(update={"text": None}), max_new_tokens=4)
    assert "sample s3" in shown(timeline)


def test_names_are_escaped(planted):
    html = shown(planted(EVIL, 0.3))
    assert "&lt;script&gt;" in html


def test_figures_that_cannot_be_drawn_are_left_out(planted, monkeypatch):
    result = planted("lsm", 0.3)
    monkeypatch.setattr(type(result), "plot", lambda self, ax=None: 1 / 0)
    html = result._repr_html_()
    assert "<table>" in html
    assert "<img" not in html
    monkeypatch.setattr(type(result), "TABLE", "there.is:nothing")
    monkeypatch.setattr(type(result), "headline", lambda self: 1 / 0)
    assert result._repr_html_() == "<div><p><code>AttentionResult(lsm, 12 samples)</code></p></div>"


def test_long_tables_say_how_much_is_left_out():
    table = Table("", ["a"], [["x" * 999]] * 20)
    html = object_html("line", lambda: table, lambda: None, more="to_frame()")
    assert html.count("<tr>") == 13
    assert "8 more rows: to_frame()" in html
    assert len(html) < 13 * 400


def test_a_result_of_another_package_shows_itself(planted):
    @dataclass(frozen=True, kw_only=True)
    class ShiftResult(lsm_probe.MeasurementResult):
        """As in the notebook about a probe of one's own."""

        NAME = "shift"
        BY_SAMPLE = ("shift",)

        shift: np.ndarray

    other = planted("lsm", 0.3)
    result = ShiftResult(
        shift=np.arange(12.0),
        clusters=other.clusters,
        samples=other.samples,
        checkpoint=other.checkpoint,
        data=other.data,
    )
    assert repr(result).startswith("ShiftResult(lsm, 12 samples): shift 5.50 [")
    shown(result)


def a_verdict(name="lsm", **changes):
    evidence = [
        Evidence(
            key=key,
            label=label,
            value=value,
            ci_low=value - 0.1,
            ci_high=value + 0.1,
            unit="nats per token",
            n_utterances=9,
            compared_with="the base LLM's 0.9",
            side="for",
            text="It is low.",
        )
        for key, label, value in (("instruction_sensitivity", "D_i", 0.1), ("source_sensitivity", "D_s", 0.8))
    ]
    named = {"verdict": "ignores the instruction (speech anchor bias)", "reason": "D_i is low.", "evidence": evidence}
    return Verdict(checkpoint=name, **named | changes)


@pytest.fixture
def diagnosis():
    bare = a_verdict("bare", verdict="cannot tell", reason="Nothing was measured.", evidence=())
    named = [a_verdict(EVIL), a_verdict("a/long/path/" * 9), bare]
    return Diagnosis(verdicts=named, base=None, data=DataIdentity("clips", "ab", 12))


def test_a_verdict_shows_its_evidence():
    verdict = a_verdict(warnings=["One sample carries the mean."])
    assert repr(verdict) == (
        "Verdict(lsm): ignores the instruction (speech anchor bias); D_i 0.10 [0.00, 0.20]; D_s 0.80 [0.70, 0.90]"
    )
    html = shown(verdict)
    for text in ("D_i is low.", "the base LLM&#39;s 0.9", "0.80 [0.70, 0.90]", "One sample carries the mean."):
        assert text in html
    assert list(verdict.to_frame()["key"]) == ["instruction_sensitivity", "source_sensitivity"]


def test_a_diagnosis_shows_its_verdicts(diagnosis):
    diagnosis = replace(diagnosis, verdicts=[a_verdict("one"), a_verdict("two")])
    assert "one: ignores the instruction" in repr(diagnosis)
    html = shown(diagnosis)
    assert html.count("ignores the instruction (speech anchor bias)") == 4  # the line and the table


def test_any_diagnosis_is_shown(diagnosis):
    html = diagnosis._repr_html_()
    assert "<script" not in html
    assert "cannot tell" in html
    assert "<img" in html


def test_the_figure_has_a_row_a_checkpoint_and_a_panel_a_number(diagnosis):
    figure = diagnosis.plot()
    assert [ax.get_title() for ax in figure.axes] == ["D_i", "D_s"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(labels) == 3
    assert labels[2] == "bare\ncannot tell"
    drawn = [container.lines[0].get_xdata()[0] for container in figure.axes[1].containers]
    assert drawn == [0.8, 0.8]
    assert not a_verdict(evidence=()).plot().axes[0].containers
