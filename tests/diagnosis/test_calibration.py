"""The verdicts about the study's arms, recomputed from its archive, and the tables that are committed."""

import importlib
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lsm_probe.diagnosis.rules import judge

ANALYSIS = Path(__file__).parents[2] / "analyses" / "diagnosis"
DOCS = Path(__file__).parents[2] / "docs" / "verdicts.md"


@pytest.fixture(scope="module")
def calibrate():
    sys.path.insert(0, str(ANALYSIS))
    yield importlib.import_module("calibrate")
    sys.path.remove(str(ANALYSIS))


@pytest.fixture(scope="module")
def archive(calibrate):
    """The study's checkpoints with their measurements, read once."""
    return list(calibrate.known(None))


def test_the_archive_gives_the_committed_table(calibrate, archive):
    committed = [row for row in calibrate.read(calibrate.CALIBRATION) if row["group"] in ("archive", "open")]
    found = calibrate.calibration_rows(archive)
    assert len(found) == 33 + 13
    assert [{key: str(value) for key, value in row.items()} for row in found] == committed


def test_one_verdict_about_the_known_checkpoints_is_wrong(calibrate):
    rows = calibrate.read(calibrate.CALIBRATION)
    assert [row["checkpoint"] for row in rows if row["outcome"] == "wrong"] == ["true_answers-0"]
    # "Cannot tell" everywhere would not be wrong either.
    commands = [row for row in rows if row["data"] == "commands"]
    sure = [row for row in commands if row["group"] == "fresh" or row["checkpoint"].startswith(SURE)]
    assert len(sure) == 9
    assert {row["outcome"] for row in sure} == {"right"}


SURE = ("untrained", "vanilla_asr", "self_powered-1")


def test_a_low_eta_supports_bias_and_a_high_eta_supports_nothing(archive):
    by_name = {measured.name: measured for _, data, _, measured in archive if data == "commands"}

    def eta(name):
        return next(each for each in judge(by_name[name]).evidence if each.key == "eta_last_sixth")

    biased, untrained = eta("vanilla_asr-0"), eta("untrained-0")
    assert biased.side == "for"
    assert "at the same length" in biased.compared_with
    assert "below that of the base LLM" in biased.text
    assert untrained.value > biased.value
    assert untrained.side == "open"
    for each in (biased, untrained):
        assert "A high eta is no sign of a good model" in each.text


def test_fewer_measurements_give_no_wrong_verdict(calibrate, archive):
    for group, data, kind, measured in archive:
        if data == "commands" and kind != "builtin:llm":
            row = calibrate.expected()[group, data, kind]
            for missing in ("base_own", "transcription"):
                verdict = judge(replace(measured, **{missing: None}))
                assert calibrate.outcome(verdict, row) != "wrong", (measured.name, missing, verdict.reason)


def test_the_page_shows_the_committed_tables(calibrate):
    page = DOCS.read_text(encoding="utf-8")
    rows = calibrate.read(calibrate.CALIBRATION)
    for data in {(row["group"], row["data"]) for row in rows}:
        of_data = [row for row in rows if (row["group"], row["data"]) == data]
        of = Counter(row["outcome"] for row in of_data)
        shown = f"| {of_data[0]['utterances']} | {of['right']} | {of['cannot tell']} | {of['wrong']} |"
        assert shown in page, data
    of = Counter(row["outcome"] for row in rows)
    assert (
        f'Of {len(rows)} verdicts {of["right"]} are right, {of["cannot tell"]} are "cannot tell", and one is wrong'
        in page
    )
    for row in calibrate.summary(calibrate.read(calibrate.SUBSAMPLING)):
        shown = calibrate.SHORT.get(row["expected"], row["expected"])
        numbers = " | ".join([row["utterances"], row["checkpoints"], row["right"], row["cannot tell"], row["wrong"]])
        assert f"| {shown} | {numbers} |" in page
