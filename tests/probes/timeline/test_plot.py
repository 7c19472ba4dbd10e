"""The figure and the page show the numbers of the timeline; the page needs nothing from elsewhere."""

import base64
import io
import re
from dataclasses import replace
from xml.dom import minidom

import matplotlib.pyplot as plt
import numpy as np
import pytest
import soundfile
from matplotlib.image import imread

from lsm_probe.models.speech_times import even_times, frame_times
from lsm_probe.probes.timeline.measure import spread_evenly
from lsm_probe.probes.timeline.page import PAGE, save_page, timeline_page
from lsm_probe.probes.timeline.plot import (
    PICTURES,
    layer_picture,
    log_mel,
    plot_layers,
    plot_rows,
    row_picture,
    save_timeline,
    spaced,
    timeline_figure,
    tone,
)
from lsm_probe.probes.timeline.words import Word

pytestmark = pytest.mark.usefixtures("rendered")


@pytest.fixture
def made(waveform, make_timeline):
    rng = np.random.default_rng(0)
    return make_timeline(
        waveform(2.0),
        eta=rng.uniform(size=5),
        norms=rng.gamma(1.0, size=(5, 4, 8)).astype(np.float32),
        sample={"id": "s&1", "instruction": "Say <b>it</b>.", "response": "five $ a", "text": "one two"},
        tokens=["five", " $", "</script>", "\n"],
        times_from="even",
        words=[Word("one", 0.2, 0.9), Word("two", 0.9, 1.6)],
    )


def test_pictures_hold_the_timelines_numbers(made):
    np.testing.assert_allclose(layer_picture(made).mean(1), 1, rtol=1e-5)
    share = layer_picture(made)[3] / layer_picture(made)[3].sum()
    np.testing.assert_allclose(share, made.over_time()[3] / made.over_time()[3].sum(), rtol=1e-5)
    np.testing.assert_allclose(row_picture(made, 2).sum(1), made.norms[2].sum(1), rtol=1e-5)
    over = row_picture(made, 2, standing_out=True)
    np.testing.assert_allclose(over.mean(0), 1, rtol=1e-5)
    assert log_mel(made).shape == (80, 200)


def test_axes_show_them_over_time(made):
    _, axes = plt.subplots(2)
    plot_layers(made, axes[0])
    np.testing.assert_allclose(axes[0].collections[0].get_array(), layer_picture(made))
    plot_rows(made, 2, axes[1], standing_out=True)
    np.testing.assert_allclose(axes[1].collections[0].get_array(), row_picture(made, 2, standing_out=True))
    drawn = axes[0].collections[0]
    np.testing.assert_allclose(drawn.norm(drawn.get_array()), tone(layer_picture(made)), atol=1e-6)
    assert [label.get_text() for label in axes[1].get_yticklabels()] == ["five", r"\$", "</script>", r"\n"]
    plt.close("all")


def test_tones_keep_the_order_and_stay_in_bounds():
    values = np.array([0.0, 1, 4, 9, 16])
    tones = tone(values)
    assert (np.diff(tones) >= 0).all()
    assert tones.min() == 0
    assert tones.max() == 1
    assert tone(np.zeros(3)).max() == 0


def test_labels_do_not_overlap():
    assert spaced([0, 1, 1, 1.5, 9], 2) == [0, 2, 4, 6, 9]
    assert spaced([], 2) == []


def test_equal_results_give_identical_files(made, written_twice):
    written_twice(lambda folder: (save_timeline(made, folder, 3), save_page(made, folder, 3)), [*PICTURES, PAGE])


def test_control_characters_do_not_break_the_svg(made, tmp_path):
    said = {"instruction": "a\x01b\x1b", "response": "a\x00b"}
    save_timeline(replace(made, sample=made.sample | said, words=[Word("a\x02b", 0, 1)]), tmp_path)
    minidom.parse(str(tmp_path / "timeline.svg"))


def test_speech_shorter_than_a_window_of_the_spectrogram_is_drawn(made, waveform, tmp_path):
    wave = waveform(2.0)[:170]
    times, frames = even_times(8, len(wave)), frame_times(len(wave))
    short = replace(
        made, waveform=wave, token_times=times, frame_times=frames, shares=spread_evenly(times, frames), words=[]
    )
    assert log_mel(short).shape == (80, 2)
    save_timeline(short, tmp_path)
    save_page(short, tmp_path)


def test_long_words_have_room_above_the_waveform(made):
    page = timeline_page(replace(made, words=[Word("w" * 22, 0.2, 0.9)]))
    top = re.search(r'class="word"[^>]*translate\([\d.]+ ([\d.]+)\)', page)[1]
    assert float(top) > 22 * 5  # a letter rises by some 5 units


def test_words_and_layer_stand_in_the_figure(made):
    figure = timeline_figure(made, 3)
    texts = {text.get_text() for ax in figure.axes for text in ax.texts} | {ax.get_title("left") for ax in figure.axes}
    assert {"one", "two", "by response token, layer 3"} <= texts
    nothing = replace(made, words=None, words_missing="the transcript is not known")
    assert not any(ax.texts for ax in timeline_figure(nothing, 3).axes)


def test_the_page_loads_nothing_from_elsewhere(made):
    page = timeline_page(made)
    sources = re.findall(r'\b(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert not re.findall(r"https?://|@import|url\(", page)


def test_the_page_plays_the_speech_itself(made):
    encoded = re.search(r'src="data:audio/flac;base64,([^"]*)"', timeline_page(made))[1]
    decoded, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)), dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(decoded, made.waveform, atol=1e-4)


def test_the_page_is_readable_without_javascript(made):
    page = re.sub(r"<script>.*?</script>", "", timeline_page(made, 3), flags=re.S)
    assert "data:image/png" in page
    assert "<noscript>" in page
    for text in ("one", "two", "five $ a", 'layer <tspan id="named">3', f"{made.eta[4]:.2f}", "spread evenly"):
        assert text in page
    assert re.search(r"<label class=\"js\" hidden>", page)


def test_model_output_is_escaped(made):
    page = timeline_page(made)
    assert "<b>it" not in page
    assert "&lt;b&gt;it" in page
    assert page.count("</script>") == 1


def test_each_layer_has_its_own_picture_to_choose(made):
    page = timeline_page(made, 3)
    stored = re.search(r"const pictures = (\[\[.*?\]\])", page)[1]
    pictures = re.findall(r"data:image/png;base64,[^\"\\]*", stored.replace("\\u003d", "="))
    assert len(pictures) == len(set(pictures)) == 5 * 2
    shown = imread(io.BytesIO(base64.b64decode(pictures[2 * 3].partition(",")[2])))
    assert shown.shape[:2] == (4, 100)
    brightest = np.unravel_index(shown[..., :3].sum(-1).argmax(), (4, 100))
    assert row_picture(made, 3)[brightest] >= np.percentile(row_picture(made, 3), 97)


def test_a_page_without_words_says_why(made):
    page = timeline_page(replace(made, words=None, words_missing="the transcript is not known"))
    assert "no words in the picture: the transcript is not known" in page
    assert 'class="word"' not in page
