"""The verdicts about the study's arms, recomputed from its archive, and the tables that are committed."""

import importlib
import re
import sys
from pathlib import Path

import pytest

ANALYSIS = Path(__file__).parents[2] / "analyses" / "diagnosis"
DOCS = Path(__file__).parents[2] / "docs" / "diagnose.md"


@pytest.fixture(scope="module")
def calibrate():
    sys.path.insert(0, str(ANALYSIS))
    yield importlib.import_module("calibrate")
    sys.path.remove(str(ANALYSIS))


def test_the_archive_gives_the_committed_table(calibrate):
    committed = [row for row in calibrate.read(calibrate.CALIBRATION) if row["group"] == "archive"]
    found = calibrate.calibration_rows(list(calibrate.known(None)))
    assert len(found) == 33
    assert [{key: str(value) for key, value in row.items()} for row in found] == committed


def test_no_verdict_about_a_known_checkpoint_is_wrong(calibrate):
    rows = calibrate.read(calibrate.CALIBRATION)
    assert [row for row in rows if row["outcome"] == "wrong"] == []
    # "Cannot tell" everywhere would not be wrong either.
    sure = [row for row in rows if row["data"] == "commands" and row["checkpoint"].startswith(SURE)]
    assert len(sure) >= 10
    assert {row["outcome"] for row in sure} == {"right"}


SURE = ("builtin:", "untrained", "vanilla_asr", "self_powered-")


def test_the_page_shows_the_committed_tables(calibrate):
    page = DOCS.read_text(encoding="utf-8")
    for row in calibrate.read(calibrate.CALIBRATION):
        assert re.search(rf"^\| {row['data']} \| `{row['checkpoint']}` \|.*\| {row['outcome']} \|", page, re.MULTILINE), row
    for row in calibrate.summary(calibrate.read(calibrate.SUBSAMPLING)):
        shown = calibrate.SHORT.get(row["expected"], row["expected"])
        numbers = " | ".join([row["utterances"], row["checkpoints"], row["right"], row["cannot tell"], row["wrong"]])
        assert f"| {shown} | {numbers} |" in page
