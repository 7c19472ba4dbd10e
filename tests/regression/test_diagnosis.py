"""A diagnosis is compared with a baseline: verdicts, D_i and the share in the asked-for form; files that cannot be."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from lsm_probe.data.identity import DataIdentity
from lsm_probe.diagnosis.diagnosis import Diagnosis
from lsm_probe.diagnosis.verdict import Evidence, Verdict
from lsm_probe.errors import InputError
from lsm_probe.regression.diagnosis import check_diagnosis
from lsm_probe.regression.kinds import accept, check

pytest_plugins = "pytester"

FOLLOWS, BETWEEN, IGNORES = "follows the instruction", "in between", "ignores the instruction (speech anchor bias)"
DEAF, OPEN = "does not use the speech", "cannot tell"


def judged(verdict=FOLLOWS, name="lsm", d_i=0.45, form=0.9):
    numbers = {"instruction_sensitivity": d_i, "form_share": form}
    evidence = [
        Evidence(
            key=key, label=key, value=value, ci_low=value - 0.1, ci_high=value + 0.1, unit="", n_utterances=12,
            compared_with="nothing", side="for", text="A number.",
        )
        for key, value in numbers.items() if value is not None
    ]  # fmt: skip
    return Verdict(checkpoint=name, verdict=verdict, reason="By the rules.", evidence=evidence)


def diagnosis(*verdicts, **changes):
    fields = {
        "verdicts": verdicts or [judged()],
        "base": "builtin:llm",
        "data": DataIdentity("clips", "abc", 24),
        "settings": {"seed": 0, "max_new_tokens": 32},
    }
    return Diagnosis(**{**fields, **changes})


@pytest.fixture
def compared(tmp_path):
    """`compared(before, now)` saves both and checks them."""

    def run(before, now, **options):
        for name, each in (("before", before), ("now", now)):
            each.save(tmp_path / name)
        return check(tmp_path / "before", tmp_path / "now", **options)

    return run


def test_the_same_diagnosis_holds(compared):
    found = compared(diagnosis(), diagnosis())
    assert not found.regressed
    assert found.headline == "holds: no verdict became worse (1 compared), tolerance 0.05 for numbers"


@pytest.mark.parametrize(
    ("before", "now", "regressed"),
    [
        (FOLLOWS, IGNORES, True),
        (FOLLOWS, BETWEEN, True),
        (FOLLOWS, OPEN, True),
        (IGNORES, DEAF, True),  # neither is better
        (IGNORES, FOLLOWS, False),
        (OPEN, BETWEEN, False),
        (BETWEEN, BETWEEN, False),
    ],
)
def test_a_verdict_regresses_if_it_changes_to_one_that_is_not_better(compared, before, now, regressed):
    found = compared(diagnosis(judged(before)), diagnosis(judged(now)))
    assert bool(found.regressed) is regressed
    either = compared(diagnosis(judged(before)), diagnosis(judged(now)), two_sided=True)
    assert bool(either.regressed) is (before != now)


@pytest.mark.parametrize(
    ("now", "options", "regressed"),
    [
        ({"d_i": 0.40}, {}, []),
        ({"d_i": 0.39}, {}, ["D_i, nats per token"]),
        ({"d_i": 0.39}, {"tolerance": 0.1}, []),
        ({"form": 0.8}, {}, ["share in the asked-for form"]),
        ({"form": None}, {}, ["share in the asked-for form"]),
        ({"d_i": 0.6}, {}, []),
        ({"d_i": 0.6}, {"two_sided": True}, ["D_i, nats per token"]),
    ],
)
def test_numbers_may_fall_by_the_tolerance(compared, now, options, regressed):
    found = compared(diagnosis(), diagnosis(judged(**now)), **options)
    assert [change.what for change in found.regressed] == regressed


def test_the_text_names_what_regressed(compared):
    text = compared(diagnosis(), diagnosis(judged(IGNORES, d_i=0.01))).text()
    assert text.splitlines()[0] == (f"regressed: verdict of lsm went from {FOLLOWS} to {IGNORES}; 2 changes in all")
    assert "D_i, nats per token" in text
    assert "0.450" in text


def test_checkpoints_are_compared_by_name_and_one_renamed_with_a_note(compared):
    renamed = compared(diagnosis(judged(name="old")), diagnosis(judged(name="new")))
    assert not renamed.regressed
    assert renamed.notes == ["compared although the names differ: old and new"]
    larger = diagnosis(settings={"seed": 0, "max_new_tokens": 32, "batch_size": 4})
    assert compared(diagnosis(), larger).notes == ["the setting 'batch_size' differs: None in the baseline, 4 now"]
    two = diagnosis(judged(name="a"), judged(IGNORES, name="b"))
    swapped = diagnosis(judged(IGNORES, name="b"), judged(name="a"))
    assert not compared(two, swapped).regressed
    with pytest.raises(InputError, match="checkpoint a of the baseline is not in the current diagnosis"):
        compared(two, diagnosis(judged(name="c"), judged(name="d")))
    more = compared(diagnosis(judged(name="a")), two)
    assert more.notes == ["not compared, because the baseline does not have it: b"]


def test_another_dtype_is_noted_also_if_the_setting_is_auto(compared):
    auto = {"settings": {"seed": 0, "max_new_tokens": 32, "dtype": "auto"}}
    exact, half = (diagnosis(dtypes={"lsm": dtype}, **auto) for dtype in ("float32", "bfloat16"))
    assert compared(exact, exact).notes == []
    note = "dtypes differ (lsm in the baseline: float32, lsm now: bfloat16), and the error of half precision may be"
    assert [each.startswith(note) for each in compared(exact, half).notes] == [True]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DataIdentity("clips", "xyz", 24)}, "the data"),
        ({"base": None}, "the base LLM differs: 'builtin:llm' in the baseline, None"),
        ({"settings": {"seed": 1, "max_new_tokens": 32}}, "the setting 'seed' differs: 0 in the baseline, 1"),
        ({"settings": {"seed": 0, "max_new_tokens": 32, "template": "chat"}}, "the setting 'template' differs: None"),
    ],
)
def test_diagnoses_with_different_settings_cannot_be_compared(compared, changes, message):
    with pytest.raises(InputError, match=message):
        compared(diagnosis(), diagnosis(**changes))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not a usable diagnosis"),
        ('{"schema": "lsm-probe/attention/2"}', "is not a usable diagnosis"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_no_diagnosis_is_reported_in_one_line(tmp_path, content, message):
    diagnosis().save(tmp_path / "now")
    baseline = tmp_path / "before.json"
    if content is not None:
        baseline.write_text(content)
    with pytest.raises(InputError, match=message):
        check(baseline, tmp_path / "now")


def test_a_value_that_is_not_finite_is_refused(tmp_path):
    path = diagnosis().save(tmp_path / "now")
    stored = json.loads(path.read_text())
    stored["checkpoints"][0]["evidence"][0]["value"] = float("nan")
    path.write_text(json.dumps(stored))
    diagnosis().save(tmp_path / "before")
    with pytest.raises(InputError, match="is not a usable diagnosis"):
        check_diagnosis(tmp_path / "before", tmp_path / "now")


def test_accept_makes_a_baseline_that_then_holds(tmp_path):
    diagnosis().save(tmp_path / "now")
    with pytest.raises(InputError, match="made with --update"):
        check(tmp_path / "lsm.json", tmp_path / "now")
    assert accept(tmp_path / "now", tmp_path / "lsm.json") == tmp_path / "lsm.json"
    assert not check(tmp_path / "lsm.json", tmp_path / "now").regressed
    with pytest.raises(InputError, match="--paired is for results of the attention probe"):
        check(tmp_path / "lsm.json", tmp_path / "now", paired=True)
    with pytest.raises(InputError, match="the same file"):
        check(tmp_path / "now", tmp_path / "now")


def test_the_command_exits_with_1_where_a_verdict_became_worse(lsm_probe_command, tmp_path):
    diagnosis().save(tmp_path / "before")
    worse = diagnosis(replace(judged(IGNORES), warnings=["Look."]))
    worse.save(tmp_path / "now")
    options = ("--baseline", tmp_path / "before", "--current", tmp_path / "now")
    code, told, _ = lsm_probe_command("check", *options)
    assert code == 1
    assert told.startswith("regressed: verdict of lsm went from")
    code, told, _ = lsm_probe_command("check", *options, "--json")
    assert json.loads(told)["changes"][0]["now"] == IGNORES
    assert lsm_probe_command("check", *options, "--update")[0] == 0
    assert lsm_probe_command("check", *options)[0] == 0


def test_the_fixture_takes_a_diagnosis(pytester, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    diagnosis().save(tmp_path / "first")
    diagnosis(judged(IGNORES)).save(tmp_path / "second")
    pytester.makepyfile(
        test_lsm=f"""
        def test_verdict(diagnosis_regression, request):
            diagnosis_regression.check({str(tmp_path)!r} + "/" + open("which").read())
        """
    )
    runs = []
    for which in ("first", "first", "second"):
        (pytester.path / "which").write_text(which)
        runs.append(pytester.runpytest_inprocess("-p", "lsm_probe.regression.plugin"))
    runs[0].stdout.fnmatch_lines(["*no baseline yet, written:*"])
    runs[1].assert_outcomes(passed=1)
    runs[2].assert_outcomes(failed=1)
    runs[2].stdout.fnmatch_lines(["*regressed: verdict of lsm went from*"])


def test_a_check_imports_no_large_package():
    code = "import sys, lsm_probe.regression.kinds; print({'numpy', 'pandas', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
