"""The page in a headless Chromium: no errors, controls that work, light and dark, narrow, print, without JavaScript.

Skipped where no Chromium is installed; what the page says is tested without one in test_report.py.
"""

import json
import time

import pytest

import lsm_probe
from lsm_probe.reports.report import save_report


@pytest.fixture(scope="module")
def results(runs):
    return lsm_probe.read_results([runs])


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    save_report(results, path)
    return path


def text(browser, selector):
    return browser.run(f"document.querySelector({json.dumps(selector)}).textContent")


def test_no_errors_with_every_frame_loaded(browser, page):
    browser.open(page)
    browser.run("document.querySelector('#timeline').scrollIntoView({behavior: 'instant'})")
    for _ in range(10):
        time.sleep(0.1)
        browser.run("1")
    assert browser.problems == []


def test_the_verdicts_are_on_the_first_screen(browser, page):
    browser.open(page)
    assert browser.run("document.querySelector('.verdicts').getBoundingClientRect().bottom") < 700


def test_moving_over_the_chart_reads_its_numbers(browser, page, results):
    browser.open(page)
    browser.run("document.getElementById('chart').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = browser.run("(b => [b.x, b.y, b.width, b.height])(document.getElementById('chart').getBoundingClientRect())")
    for layer, share in ((0, 0.2), (1, 0.52), (2, 0.9)):
        browser.point(box[0] + share * box[2], box[1] + box[3] / 2)
        assert text(browser, "#chosen") == str(layer)
        for i, result in enumerate(results.attention):
            assert text(browser, f"[data-read='{i}']").startswith(f"{result.eta().mean[layer]:.2f} [")


def test_the_layer_can_be_chosen_by_keyboard(browser, page):
    browser.open(page)
    browser.run("document.getElementById('layer').focus()")
    browser("Input.dispatchKeyEvent", type="keyDown", key="ArrowLeft", windowsVirtualKeyCode=37)
    assert text(browser, "#chosen") == "1"


def test_another_convention_moves_the_curves(browser, page, results):
    browser.open(page)
    line = "document.querySelector('[data-line=\"1\"] .line').getAttribute('d')"
    before = browser.run(line)
    browser.run(
        "(s => { s.value = 'sum'; s.dispatchEvent(new Event('change')); })"
        "(document.querySelector('[data-convention=segment]'))"
    )
    assert browser.run(line) != before
    eta = results.attention[1].with_conventions(segment="sum").eta().mean
    assert text(browser, "[data-read='1']").startswith(f"{eta[-1]:.2f} [")


def test_a_checkpoint_can_be_hidden_and_shown(browser, page):
    browser.open(page)
    for expected in ("hidden", "visible"):
        browser.click("[data-show='0']")
        assert browser.run("document.querySelector('[data-line=\"0\"]').getAttribute('visibility')") == expected


def test_another_sample_shows_its_responses(browser, page, results):
    browser.open(page)
    browser.click("#next")
    sample = results.attention[1].samples[1]
    assert text(browser, "#s-id") == sample["id"]
    assert text(browser, "#s-instruction") == sample["instruction"]
    assert text(browser, "[data-response='1']") == sample["response"]
    browser.click("#previous")
    browser.click("#previous")
    assert text(browser, "#s-id") == results.attention[0].samples[-1]["id"]


def test_text_and_figures_follow_the_dark_theme_of_the_system(browser, page):
    # Of texts in grey. Texts in the colour of a checkpoint keep it.
    fills = "[...document.querySelectorAll('figure svg text')].map(t => getComputedStyle(t).fill)"
    figure = f"[...new Set({fills}.filter(f => /^rgb\\((\\d+), \\1,/.test(f)))].join()"
    colours = {}
    for dark in (False, True):
        browser.open(page, dark=dark)
        colours[dark] = browser.run("getComputedStyle(document.body).backgroundColor"), browser.run(figure)
    assert colours[False] == ("rgb(255, 255, 255)", "rgb(28, 28, 30)")
    assert colours[True] == ("rgb(22, 22, 24)", "rgb(236, 236, 238)")


@pytest.mark.parametrize("width", [360, 768, 1400])
def test_the_page_never_scrolls_horizontally(browser, page, width):
    browser.open(page, width=width)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_without_javascript_only_the_controls_are_missing(browser, page, results):
    browser.open(page, javascript=False)
    assert browser.run("[...document.querySelectorAll('.js')].every(e => !e.checkVisibility())")
    assert text(browser, "#chosen") == "2"
    assert text(browser, "[data-read='0']").startswith(f"{results.attention[0].eta().mean[2]:.2f} [")
    assert browser.run("document.querySelector('[data-line=\"0\"] .line').getBoundingClientRect().width") > 100


def test_print_opens_what_is_folded_and_hides_controls(browser, page, tmp_path):
    browser.open(page)
    browser("Emulation.setEmulatedMedia", media="print")
    try:
        assert browser.run("[...document.querySelectorAll('.js')].every(e => !e.checkVisibility())")
        folded = "document.querySelector('details table td').checkVisibility({contentVisibilityAuto: true})"
        assert browser.run(folded)
        assert browser.run("document.querySelector('details table td').getBoundingClientRect().height") > 5
        browser.pdf(tmp_path / "report.pdf")
    finally:
        browser("Emulation.setEmulatedMedia", media="")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
