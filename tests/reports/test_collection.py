"""Result folders are found, named and grouped; what cannot stand side by side is refused in one line."""

import json
import shutil
from dataclasses import replace

import pytest

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.reports.collection import measurements
from lsm_probe.runner.comparison import compare
from lsm_probe.runner.result import write_json


def test_every_probe_is_found_below_one_folder(runs, tiny_lsm_folder):
    results = lsm_probe.read_results([runs])
    text, speech = "llm", "lsm"
    assert [r.name for r in results.attention] == [text, speech, f"{text} at length of {speech}"]
    for name in set(measurements()) - {"attention"}:
        expected = {"alignment": [speech], "text_ability": []}.get(name, [text, speech])
        assert [r.name for r in results.groups[name]] == expected
    assert [t.checkpoint.name for t in results.timelines] == [speech]
    assert results.full_names[speech] == [str(tiny_lsm_folder)]


def test_checkpoints_come_in_the_order_they_were_measured(planted, tmp_path):
    results = [planted(name, 0.4) for name in ("zebra", "ape", "lion")]
    for result in results:
        result.save(tmp_path / result.name)
    assert [r.name for r in lsm_probe.read_results([tmp_path]).attention] == ["ape", "lion", "zebra"]
    write_json(tmp_path / "comparison.json", compare(results))
    assert [r.name for r in lsm_probe.read_results([tmp_path]).attention] == ["zebra", "ape", "lion"]


def test_short_names_are_unique(planted, tmp_path):
    names = ["/a/runs/one/1-asr/model", "/a/runs/two/1-asr/model", "org/name-7B", "builtin:llm"]
    for i, name in enumerate(names):
        planted(name, 0.4).save(tmp_path / str(i))
    control = f"builtin:llm at length of {names[0]}"
    planted(control, 0.4, source="text", control=True).save(tmp_path / "control")
    results = lsm_probe.read_results([tmp_path])
    short = ["one/1-asr", "two/1-asr", "name-7B", "builtin:llm", "builtin:llm at length of one/1-asr"]
    assert [r.name for r in results.attention] == short


def test_the_same_weights_under_two_paths_are_one_checkpoint(planted, runs, tmp_path):
    weights = {"weights_sha256": {"model.safetensors": "12" * 32}}
    planted("vanilla", 0.4, **weights).save(tmp_path / "a")
    shutil.copytree(runs / "knockout", tmp_path / "k", ignore=shutil.ignore_patterns("llm*"))
    path = tmp_path / "k" / "lsm" / "result.json"
    content = json.loads(path.read_text())
    content["checkpoint"] |= {"name": "/elsewhere/v/model", **weights}
    path.write_text(json.dumps(content))
    results = lsm_probe.read_results([tmp_path / "a", tmp_path / "k"])
    assert results.knockout[0].name == results.attention[0].name == "vanilla"
    assert results.full_names["vanilla"] == ["vanilla", "/elsewhere/v/model"]


def empty(planted, folder):
    (folder / "nothing").mkdir(parents=True)


def twice(planted, folder):
    planted("one", 0.4).save(folder / "a")
    planted("one", 0.5).save(folder / "b")


def other_data(planted, folder):
    planted("one", 0.4).save(folder / "a")
    other = planted("two", 0.4)
    replace(other, data=replace(other.data, sha256="cd" * 32, name="other.jsonl")).save(folder / "b")


def other_conventions(planted, folder):
    planted("one", 0.4).save(folder / "a")
    planted("two", 0.4).with_conventions(segment="sum").save(folder / "b")


def other_weights(planted, folder):
    planted("one", 0.4, weights_sha256={"m": "1"}).save(folder / "a")
    planted("one", 0.4, weights_sha256={"m": "2"}).save(folder / "b")


def unknown(planted, folder):
    planted("one", 0.4).save(folder / "a")
    path = folder / "a" / "result.json"
    path.write_text(path.read_text().replace("lsm-probe/attention/2", "other/thing/9"))


def broken(planted, folder):
    planted("one", 0.4).save(folder / "a")
    (folder / "a" / "arrays.npz").write_bytes(b"not a zip")


def broken_timeline(planted, folder):
    folder.mkdir()
    (folder / "timeline.json").write_text('{"schema": "lsm-probe/timeline/1"}')


MISTAKES = {
    empty: "holds no result",
    twice: "are both attention results of one",
    other_data: "samples of other.jsonl, sha256 cdcdcdcdcdcd): report them apart",
    other_conventions: "with different conventions",
    other_weights: "one has other weights",
    unknown: "not a result that a report can show",
    broken: "no readable result of attention",
    broken_timeline: "no readable timeline",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_an_invalid_folder_is_reported_in_one_line_with_its_path(planted, tmp_path, mistake):
    mistake(planted, tmp_path / "given")
    with pytest.raises(InputError) as raised:
        lsm_probe.read_results([tmp_path / "given"])
    assert MISTAKES[mistake] in str(raised.value)
    assert mistake is other_weights or str(tmp_path / "given") in str(raised.value)


def test_a_path_that_is_no_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        lsm_probe.read_results([tmp_path / "none"])
