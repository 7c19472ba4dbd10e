"""Names given by users are drawn literally, completely, and with unique labels."""

import unicodedata
from dataclasses import replace
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from lsm_probe.probes.attention.plot import eta_figure, save_attention
from lsm_probe.runner import labels
from lsm_probe.runner.labels import checkpoint_labels, plain

pytestmark = pytest.mark.usefixtures("rendered")

FORMULA = r"a$b$\frac{1}$"
ODD = ("_base", FORMULA, "模型一", "模型二", "bell\a", "two\nlines", "$HOME", "[red]x[/] :smile:")


@pytest.fixture
def result(attention_result):
    """An attention result of one checkpoint."""
    return attention_result(n=3, heads=2)


def named(result, *names):
    return [replace(result, checkpoint=replace(result.checkpoint, name=name)) for name in names]


@pytest.fixture
def no_further_fonts(monkeypatch):
    """Only the fonts that are included in matplotlib, whatever its list of fonts has kept from other programs."""
    manager = font_manager.fontManager
    monkeypatch.setattr(manager, "ttflist", [])
    for file in Path(matplotlib.get_data_path(), "fonts", "ttf").glob("*.ttf"):
        manager.addfont(file)
    labels._font_of.cache_clear()
    labels._warn_of_codes.cache_clear()
    yield
    labels._font_of.cache_clear()
    manager._findfont_cached.cache_clear()  # what was found, or not found, in this list


@pytest.fixture
def font_with(no_further_fonts, tmp_path):
    """`font_with(characters)` installs a font that draws these as squares; returns its name."""

    def make(characters):
        pen = TTGlyphPen(None)
        for i, corner in enumerate(((0, 0), (0, 500), (500, 500), (500, 0))):
            (pen.lineTo if i else pen.moveTo)(corner)
        pen.closePath()
        glyphs = [".notdef", *(f"g{i}" for i in range(len(characters)))]
        builder = FontBuilder(1000, isTTF=True)
        builder.setupGlyphOrder(glyphs)
        builder.setupCharacterMap({ord(c): glyphs[i + 1] for i, c in enumerate(characters)})
        builder.setupGlyf(dict.fromkeys(glyphs, pen.glyph()))
        builder.setupHorizontalMetrics(dict.fromkeys(glyphs, (600, 0)))
        builder.setupHorizontalHeader(ascent=800, descent=-200)
        builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
        builder.setupOS2()
        builder.setupPost()
        builder.save(tmp_path / "squares.ttf")
        font_manager.fontManager.addfont(tmp_path / "squares.ttf")
        return "Squares"

    return make


def test_names_are_drawn_if_the_list_of_fonts_lacks_matplotlibs_own(monkeypatch):
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    font_manager.fontManager._findfont_cached.cache_clear()
    labels._font_of.cache_clear()
    assert plain("models/a") == "models/a"
    font_manager.fontManager._findfont_cached.cache_clear()


@pytest.mark.usefixtures("no_further_fonts")
def test_every_name_is_shown_in_the_legend_and_in_the_files(result, tmp_path):
    with pytest.warns(
        UserWarning, match=r"no installed font, so the figures show their codes, such as \\u6a21: install"
    ):
        legend = [text.get_text() for text in eta_figure(named(result, *ODD)).legends[0].get_texts()]
    shown = [text.removeprefix("\N{ZERO WIDTH SPACE}").replace(r"\$", "$") for text in legend]
    expected = [
        "_base",
        FORMULA,
        r"\u6a21\u578b\u4e00",
        r"\u6a21\u578b\u4e8c",
        r"bell\x07",
        r"two\nlines",
    ]
    for text, name in zip(shown, [*expected, *ODD[-2:]], strict=True):
        assert text.startswith(f"{name.rpartition('/')[2]} (3 samples")  # the end of a path
    save_attention(named(result, *ODD), tmp_path)
    assert "_base" in (tmp_path / "eta.svg").read_text(encoding="utf-8")


def test_a_font_that_has_the_characters_is_used(result, font_with, tmp_path):
    font = font_with("模型一二")
    figure = eta_figure(named(result, "模型一", "plain"))
    first, second = figure.legends[0].get_texts()
    assert first.get_text().startswith("模型一 (")
    assert first.get_fontfamily()[-1] == font
    assert font not in second.get_fontfamily()
    save_attention(named(result, "模型一"), tmp_path)  # without a warning of missing glyphs
    assert "模型一" in (tmp_path / "eta.svg").read_text(encoding="utf-8")


def test_tick_labels_get_the_font_too(font_with):
    font = font_with("模")
    figure, ax = plt.subplots()
    ax.set_xticks([0, 1], [plain("模"), "b"])
    labels.use_fonts_with_all_glyphs(figure)
    figure.draw_without_rendering()
    assert ax.get_xticklabels()[0].get_fontfamily()[-1] == font
    assert font not in ax.get_yticklabels()[0].get_fontfamily()
    plt.close(figure)


def test_labels_are_unique():
    long = ["one/" + "x" * 100, "two/" + "x" * 100]
    cafe = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    found = checkpoint_labels([*long, *cafe, "short"], 20)
    assert len({unicodedata.normalize("NFC", label) for label in found}) == 5
    assert found[0] == f"…{'x' * 19} (1)"
    assert found[-1] == "short"


def test_undecodable_bytes_are_written_as_codes():
    assert plain("half \udcff") == r"half \udcff"


@pytest.mark.parametrize("setting", ["text.usetex: True", "font.family: no such font", "savefig.format: pdf"])
def test_the_users_matplotlib_settings_do_not_change_figures(result, tmp_path, setting):
    (tmp_path / "matplotlibrc").write_text(setting)
    for folder, settings in (("own", {}), ("theirs", plt.matplotlib.rc_params_from_file(tmp_path / "matplotlibrc"))):
        (tmp_path / folder).mkdir()
        with plt.rc_context(settings):
            save_attention(named(result, "a_b"), tmp_path / folder)
    for path in (tmp_path / "own").iterdir():
        assert path.read_bytes() == (tmp_path / "theirs" / path.name).read_bytes()
