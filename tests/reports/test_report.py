"""The page holds the results' numbers without JavaScript, needs nothing from elsewhere, and stays small."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

import lsm_probe
from lsm_probe.diagnosis.verdict import Evidence, Verdict
from lsm_probe.errors import InputError
from lsm_probe.reports import report
from lsm_probe.reports.collection import StoredTimeline
from lsm_probe.reports.curves import HEIGHT, TOP, chart, differing
from lsm_probe.reports.report import LARGEST, report_page, save_report
from lsm_probe.runner.identity import Control

VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """Text, tables, tags and attributes of a page, scripts and styles apart."""

    def __init__(self, source):
        super().__init__()
        self.text, self.tables, self.tags, self.open, self.attributes = "", [], [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag  # well-formed

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text += data
            if {"td", "th"} & set(self.open):
                self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def results(runs):
    return lsm_probe.read_results([runs])


@pytest.fixture(scope="module")
def source(results):
    return report_page(results)


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


@pytest.fixture
def made(planted, tmp_path):
    """`made(results...)`: those results, read back."""

    def make(*results):
        for i, result in enumerate(results):
            result.save(tmp_path / str(i))
        return lsm_probe.read_results([tmp_path])

    return make


def test_the_page_has_every_section(page):
    ids = {attributes.get("id") for _, attributes in page.attributes}
    parts = {
        "verdicts",
        "verdict-0",
        "verdict-1",
        "eta",
        "tokens",
        "conventions",
        "heads",
        "sensitivity",
        "knockout",
        "alignment",
        "importance",
    }
    assert parts | {"evaluation", "samples", "timeline", "provenance"} <= ids
    assert page.open == []
    assert "training seed" in page.text


def test_built_in_models_of_the_same_parts_have_different_names(planted, tmp_path):
    parts = {"llm": {"weights_sha256": {"model.safetensors": "12" * 32}}}
    for name, digest in (("first", "ab" * 32), ("second", "cd" * 32)):
        planted(name, 0.4, **parts, training={"study": "one", "arm": name, "seed": 0, "sha256": digest}).save(
            tmp_path / name
        )
    page = Page(report_page(lsm_probe.read_results([tmp_path])))
    assert f"llm {'12' * 8}, training {'ab' * 8}" in page.text
    assert f"llm {'12' * 8}, training {'cd' * 8}" in page.text


def evidence(label, value, *ends, side="for", **more):
    low, high = ends or (None, None)
    about = {"unit": "nats per token", "n_utterances": 6, "compared_with": "the base LLM's 0.48", "text": "It shows."}
    return Evidence(key=label, label=label, value=value, ci_low=low, ci_high=high, side=side, **{**about, **more})


@pytest.fixture
def judged(planted, made):
    """`judged(**verdict)`: the page about a checkpoint that depends on nothing but the speech, with this verdict."""

    def make(**verdict):
        planted_verdict = Verdict(checkpoint="mine", **{"reason": "The reason.", **verdict})
        return Page(report_page(made(planted("mine", 0.3)), [planted_verdict]))

    return make


def test_the_table_of_verdicts_holds_the_numbers_that_speak_for_each(judged):
    numbers = [
        evidence("D_i", 0.0004, -0.0003, 0.001),
        evidence("word error rate", 2.2, 0.0, 6.7, unit="%", compared_with="98 % by chance"),
        evidence("eta", 0.4, 0.3, 0.5, side="open"),
        evidence("D_s, base words", -0.8, -1.5, -0.3, side="against"),
    ]
    page = judged(verdict="ignores the instruction (speech anchor bias)", evidence=numbers, warnings=["A warning."])
    table, listed = page.tables[:2]
    assert table[0] == ["checkpoint", "verdict", "numbers"]
    assert table[1][0].strip() == "mine"
    assert "ignores the instruction (speech anchor bias)" in table[1][1]
    assert "0.000 [0.000, 0.001] nats per token, n = 6; compared with the base LLM's 0.48" in table[1][2]
    assert "2.20 [0.00, 6.70] %" in table[1][2]
    assert "eta" not in table[1][2]
    assert [row[:3] for row in listed[1:]] == [
        ["D_i", "supports the verdict", "0.000 [0.000, 0.001] nats per token"],
        ["word error rate", "supports the verdict", "2.20 [0.00, 6.70] %"],
        ["D_s, base words", "contradicts the verdict", "−0.80 [−1.50, −0.30] nats per token"],
        ["eta", "undecided", "0.40 [0.30, 0.50] nats per token"],
    ]
    assert "A warning." in page.text
    assert "Evidence about mine: 1 number contradicts the verdict" in page.text


def test_a_verdict_that_cannot_be_told_is_shown_with_its_reason_and_what_is_missing(judged):
    page = judged(verdict="cannot tell", missing=["At least 3 more utterances."], evidence=[evidence("D_i", None)])
    assert page.tables[0][0] == ["checkpoint", "verdict", "numbers", "what is missing"]
    assert page.tables[0][1][2:] == ["The reason.", "At least 3 more utterances."]
    assert "undefined" in page.tables[1][1]


def test_links_lead_to_what_the_page_has(page):
    ids = {attributes["id"] for _, attributes in page.attributes if "id" in attributes}
    assert {attributes["href"][1:] for tag, attributes in page.attributes if tag == "a"} <= ids


def test_a_checkpoint_has_one_colour_in_the_table_the_chart_and_the_figures(results, source):
    """The second of two checkpoints is the only one in the alignment figure."""
    page = source.split('<section id="')
    (color,) = set(re.findall(r"--base: (#\w+)[^>]*>(?:(?!</th>).)*?<span>lsm</span>", "".join(page), flags=re.DOTALL))
    for anchor in ("knockout", "alignment", "sensitivity", "importance", "evaluation"):
        (section,) = [part for part in page if part.startswith(f'{anchor}"')]
        assert color in section or "data:image/png" in section


def test_the_page_loads_no_external_resources(source, page):
    links = [v for _, a in page.attributes for k, v in a.items() if k in ("src", "href", "xlink:href", "action")]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\((?!#)|@import", source)
    assert not {"link", "object", "embed", "base"} & set(page.tags)
    assert next(a for tag, a in page.attributes if tag == "iframe")["sandbox"] == "allow-scripts"
    assert "default-src 'none'" in source


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(set(ids)) == len(ids)
    used = {
        found for _, a in page.attributes for v in a.values() for found in re.findall(r"url\(#([\w.-]+)\)", v or "")
    }
    assert used <= set(ids)


def test_no_number_is_missing(page):
    assert "nan" not in page.text.lower().split()
    assert "None" not in page.text
    assert "Undefined" not in page.text


def test_the_tables_hold_the_results_numbers(results, page):
    by_layer = next(table for table in page.tables if table[0][:1] == ["layer"])
    for column, result in enumerate(results.attention, start=1):
        eta = result.eta()
        for layer in range(result.n_layers):
            expected = f"{eta.mean[layer]:.2f} [{eta.ci_low[layer]:.2f}, {eta.ci_high[layer]:.2f}]"
            assert by_layer[1 + layer][column].startswith(expected)
    conventions = next(table for table in page.tables if table[0][:1] == ["heads"])
    assert len(conventions) == 17
    assert results.sensitivity[0].name in page.text


def test_sensitivity_names_the_responses_it_is_measured_on(runs, tmp_path):
    own = lsm_probe.read_results([runs / "sensitivity"]).sensitivity
    for i, result in enumerate(own):
        given = replace(result.checkpoint, responses="given")
        replace(result, checkpoint=given, samples=own[0].samples).save(tmp_path / "given" / str(i))
    page = Page(report_page(lsm_probe.read_results([runs / "sensitivity", tmp_path / "given"])))
    of = "Sensitivity of"
    assert page.text.index(f"{of} the same response") < page.text.index(f"{of} each checkpoint's own response")


def test_the_chart_is_drawn_with_the_results_numbers(results, page):
    drawn = [a["d"] for tag, a in page.attributes if tag == "path" and "marker-mid" in a]
    for result, path in zip(results.attention, drawn, strict=False):
        y = [float(point.split()[1]) for point in path[1:].split("L")]
        np.testing.assert_allclose(1 - (np.array(y) - TOP) / HEIGHT, result.eta().mean, atol=1e-3)


def test_layers_that_differ_are_marked_and_others_are_not(planted):
    first, second = planted("first", 0.5), planted("second", 0.5)
    norms = second.norms.copy()
    norms[:, 4, 2] -= 0.2
    norms[:, 9, 2] += 0.2
    second = replace(second, norms=norms, head_norms=norms[:, :, None])
    marks = differing(second, first)
    assert (marks[4], marks[9]) == (-1, 1)
    assert sum(map(abs, marks)) <= 3
    few = [result.subset([f"s{i}" for i in range(5)]) for result in (second, first)]
    assert not any(differing(*few))
    shown = chart([first, second])["readings"]["sum_then_norm|mean|mean_of_ratios|instruction"]
    assert [number[-1] for number in shown[0]["read"]] == ["]"] * 12
    assert [{"▼": -1, "▲": 1}.get(number[-1], 0) for number in shown[1]["read"]] == marks


def test_every_convention_can_be_chosen(results):
    shown = chart(results.attention)["readings"]
    assert len(shown) == 16
    for key, lines in shown.items():
        choice = dict(zip(("heads", "segment", "aggregate", "span"), key.split("|"), strict=True))
        for result, line in zip(results.attention, lines, strict=True):
            read = [float(number.split()[0]) for number in line["read"]]
            np.testing.assert_allclose(read, result.with_conventions(**choice).eta().mean, atol=5.1e-3)


def test_external_text_is_escaped(planted, made):
    evil = "<img src=x onerror=alert(1)>"
    result = planted(evil, 0.3)
    result = replace(
        result, samples=[{**s, "instruction": evil, "response": f"</script>{evil}"} for s in result.samples]
    )
    source = report_page(made(result, planted("other", 0.5)))
    page = Page(source)
    assert "img" not in page.tags
    assert page.tags.count("script") == 1
    assert evil in page.text


def test_an_embedded_timeline_stays_in_its_frame(results, page):
    frame = next(a for tag, a in page.attributes if tag == "iframe")
    assert frame["srcdoc"] == results.timelines[0].page


def test_the_page_stays_below_5_mb_and_says_what_is_left_out(planted, made):
    summary = {"checkpoint": {"name": "a"}, "sample": {"id": "s0"}, "versions": {}}
    few = made(planted("a", 0.3), planted("b", 0.5))
    timelines = [
        StoredTimeline(few.folders[0], few.attention[0].checkpoint, summary, "x" * 1_500_000) for _ in range(5)
    ]
    source = report_page(replace(few, timelines=timelines))
    assert len(source.encode()) <= LARGEST
    assert source.count("<iframe") == 3
    assert "2 more timelines do not fit on this page" in source


def test_many_samples_are_cut_and_counted(planted, made, monkeypatch):
    monkeypatch.setattr(report, "_SAMPLES", 5)
    source = report_page(made(planted("a", 0.3), planted("b", 0.5)))
    assert "All 5 samples of 12" in source
    assert "7 more samples" in source


def test_a_page_that_cannot_fit_is_refused(planted, made, monkeypatch):
    monkeypatch.setattr(report, "LARGEST", 1_000)
    with pytest.raises(InputError, match="give fewer checkpoints"):
        report_page(made(planted("a", 0.3)))


def test_parts_that_were_not_measured_are_named(planted, made):
    source = report_page(made(planted("a", 0.3)))
    assert "Not among the results: sensitivity, knockout, alignment, importance, evaluate, text-ability." in source
    assert 'id="sensitivity"' not in source


def test_a_page_without_attention_can_be_written(runs):
    page = Page(report_page(lsm_probe.read_results([runs / "sensitivity", runs / "evaluate"])))
    assert "D_i (instruction), nats per token" in page.text
    assert not any("lines" in attributes.get("id", "") for _, attributes in page.attributes)


def test_models_of_different_depths_are_shown_together(planted, made):
    text = planted("llm", 0.5, source="text", layers=8)
    control = planted("llm at length of b", 0.5, source="text", control=True, layers=8)
    page = Page(report_page(made(planted("a", 0.3), planted("b", 0.5, layers=8), text, control)))
    assert "a has 12 layers and b 8" in page.text
    assert "the last sixth of the layers" in page.text


def test_unusual_checkpoint_names_do_not_break_the_page(results):
    names = {"llm": "_lr-0.00010 $x_1$", "lsm": "_lr-0.00012 $x_1$ #000000"}

    def renamed(result):
        control = Control(names["llm"], (names["lsm"],)) if result.is_control else None
        name = control.name if control else names[result.name]
        return replace(result, checkpoint=replace(result.checkpoint, name=name, control=control))

    kinds = {kind: [renamed(result) for result in group] for kind, group in results.groups.items()}
    full = {names.get(name, name): found for name, found in results.full_names.items()}
    full |= {result.name: [result.name] for group in kinds.values() for result in group}
    timelines = [
        replace(timeline, checkpoint=replace(timeline.checkpoint, name=names["lsm"])) for timeline in results.timelines
    ]
    source = report_page(replace(results, groups=kinds, full_names=full, timelines=timelines))
    Page(source)
    sections = source.split("<section id=")
    for anchor in ("heads", "sensitivity", "knockout", "alignment", "importance", "evaluation"):
        (figure,) = [section for section in sections if section.startswith(f'"{anchor}"')]
        drawn = "".join(re.findall(r"<text[^>]*>.*?</text>", figure))
        for name in ("_lr-0.00010 $x_1$", "_lr-0.00012 $x_1$ #000000"):
            assert name in drawn or name not in [
                r.name for r in kinds[{"heads": "attention", "evaluation": "evaluate"}.get(anchor, anchor)]
            ]


def test_the_same_results_give_the_same_bytes(results, source, tmp_path):
    save_report(results, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes().decode() == source
