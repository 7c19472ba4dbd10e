"""Bars in a notebook by default, nothing in scripts, and what the caller gives wherever it is given."""

import lsm_probe
from lsm_probe import progress
from lsm_probe.progress import in_notebook, notebook_progress


def test_a_script_shows_nothing(tiny_lsm, samples, capsys):
    lsm_probe.attention(tiny_lsm, samples[:2], max_new_tokens=1)
    assert capsys.readouterr().err == ""
    assert not in_notebook()


def test_a_notebook_shows_a_bar_from_the_start_and_takes_it_away(tiny_lsm, samples, capsys, monkeypatch):
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    lsm_probe.attention(tiny_lsm, samples[:3], max_new_tokens=1, batch_size=2)
    shown = capsys.readouterr().err
    for count in ("0/3", "2/3", "3/3"):
        assert f"{tiny_lsm.name}: " in shown
        assert count in shown
    assert shown.endswith("\r")


def test_measuring_again_in_float32_is_part_of_the_progress(tiny_lsm_folder, samples, capsys, monkeypatch):
    half, seen = lsm_probe.load(tiny_lsm_folder, device="cpu", dtype="float16"), []
    options = {"max_new_tokens": 1, "batch_size": 1, "verify_precision": 2}
    lsm_probe.attention(half, samples[:3], **options, on_progress=seen.append)
    assert list(dict.fromkeys(seen)) == [1, 2, 3, 4, 5]
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    lsm_probe.attention(half, samples[:3], **options)
    shown = capsys.readouterr().err
    assert "4/5" in shown
    assert "5/5" in shown


def test_several_names_notes_and_unknown_totals(capsys, monkeypatch):
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    with notebook_progress() as on_progress:
        on_progress("one", 1, None)
        on_progress("two", 3, 7, "loss 1.5")
    shown = capsys.readouterr().err
    assert "one: 1it" in shown
    assert "3/7" in shown
    assert "loss 1.5" in shown


def test_what_is_given_is_called_instead(tiny_lsm, samples, capsys, monkeypatch):
    monkeypatch.setattr(progress, "in_notebook", lambda: True)
    seen = []
    lsm_probe.attention(tiny_lsm, samples[:2], max_new_tokens=1, batch_size=1, on_progress=seen.append)
    assert seen == [1, 2]
    with notebook_progress(lambda *values: seen.append(values)) as on_progress:
        on_progress("one", 1, 2)
    assert seen[-1] == ("one", 1, 2)
    assert capsys.readouterr().err == ""
