"""What counts as a regression, and what cannot be compared at all."""

from dataclasses import replace

import numpy as np
import pytest

from lsm_probe.errors import InputError
from lsm_probe.probes.attention.conventions import Conventions
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.regression.baseline import Baseline, read_baseline
from lsm_probe.regression.check import CurveCheck, check
from lsm_probe.runner.identity import CheckpointIdentity

NOTHING = {"tolerance": 0.02}
PLANTED = {  # changes of eta by layer, how it is checked, layers that regressed, worst first
    "nothing": ({}, {}, []),
    "nothing, two-sided": ({}, {"two_sided": True}, []),
    "nothing, paired": ({}, {"paired": True}, []),
    "nothing, no tolerance": ({}, {"tolerance": 0.0}, []),
    "fall in the first layer": ({0: -0.05}, {}, [0]),
    "fall in a middle layer": ({3: -0.05}, {}, [3]),
    "fall in the last layer": ({5: -0.05}, {}, [5]),
    "fall in one layer, paired": ({3: -0.05}, {"paired": True}, [3]),
    "fall in one layer, two-sided": ({3: -0.05}, {"two_sided": True}, [3]),
    "fall in one layer, paired, two-sided": ({3: -0.05}, {"paired": True, "two_sided": True}, [3]),
    "fall in two layers": ({1: -0.03, 4: -0.06}, {}, [4, 1]),
    "fall in every layer": (dict.fromkeys(range(6), -0.05), {"paired": True}, list(range(6))),
    "fall and rise": ({1: -0.03, 4: 0.06}, {}, [1]),
    "fall and rise, two-sided": ({1: -0.03, 4: 0.06}, {"two_sided": True}, [4, 1]),
    "rise in one layer": ({2: 0.05}, {}, []),
    "rise in one layer, two-sided": ({2: 0.05}, {"two_sided": True}, [2]),
    "rise in one layer, paired": ({2: 0.05}, {"paired": True}, []),
    "rise in one layer, paired, two-sided": ({2: 0.05}, {"paired": True, "two_sided": True}, [2]),
    "fall just within": ({2: -0.0199}, {}, []),
    "fall just beyond": ({2: -0.0201}, {}, [2]),
    "fall within in every layer": (dict.fromkeys(range(6), -0.019), {}, []),
    "fall within the wider tolerance": ({2: -0.05}, {"tolerance": 0.06}, []),
    "fall beyond the narrower tolerance": ({2: -0.005}, {"tolerance": 0.001}, [2]),
    "fall within, paired": ({2: -0.015}, {"paired": True}, []),
}


@pytest.mark.parametrize(("changes", "flags", "expected"), PLANTED.values(), ids=PLANTED.keys())
def test_a_planted_change_is_found_where_it_is(pair, with_eta, scatter, changes, flags, expected):
    eta = scatter()
    for layer, change in changes.items():
        eta[:, layer] += change
    verdict = check(*pair(with_eta(eta)), **flags)
    assert sorted(verdict.regressed) == sorted(expected)
    if len({abs(change) for change in changes.values()}) == len(changes):
        assert verdict.regressed == expected
    assert verdict.headline.startswith("regressed: " if expected else "holds: ")
    for layer in expected:
        assert verdict.now[layer] - verdict.before[layer] == pytest.approx(changes[layer], abs=2e-6)


@pytest.mark.parametrize(
    "conventions", [{"segment": "sum"}, {"aggregate": "ratio_of_means"}, {"heads": "mean_of_norms"}]
)
@pytest.mark.parametrize("paired", [False, True])
def test_the_curve_is_read_under_the_conventions_of_the_result(
    pair, with_eta, scatter, baseline, conventions, paired, tmp_path
):
    eta = scatter()
    eta[:, 2] -= 0.08
    folder = baseline.with_conventions(**conventions).save(tmp_path / "b")
    verdict = check(folder, with_eta(eta).with_conventions(**conventions).save(tmp_path / "c"), paired=paired)
    assert verdict.regressed == [2]
    np.testing.assert_allclose(verdict.before, AttentionResult.load(folder).eta().mean, atol=1e-6)


def test_prompts_of_another_date_or_template_are_not_compared(pair, edit):
    before, now = pair()
    edit(before, checkpoint__prompt_sha256="aaa", checkpoint__date="2024-07-26")
    edit(now, checkpoint__prompt_sha256="bbb", checkpoint__date="2031-03-01")
    with pytest.raises(InputError, match=r"the date in the prompt differs: '2024-07-26' .* with the same --date"):
        check(before, now)
    edit(now, checkpoint__date="2024-07-26")
    with pytest.raises(InputError, match=r"the text of the prompt template \(sha256\) differs: 'aaa' in the baseline"):
        check(before, now)
    edit(now, checkpoint__prompt_sha256="aaa")
    assert not check(before, now).notes


def test_a_baseline_without_stored_prompts_stays_usable(pair, edit):
    before, now = pair()
    edit(now, checkpoint__prompt_sha256="bbb")
    assert not check(before, now).notes
    edit(now, checkpoint__date="2024-07-26")
    assert check(before, now).notes == [
        "the current prompts contain the date 2024-07-26; the baseline was made by an older version, which did not "
        "store its date"
    ]


def test_a_fall_of_exactly_the_tolerance_holds(pair, edit):
    """0.52 - 0.5 is above 0.02 in floating point."""
    before, now = pair()
    edit(before, eta__mean=[0.52] * 6)
    edit(now, eta__mean=[0.5] * 6)
    assert not check(before, now).regressed
    edit(now, eta__mean=[0.5] * 5 + [0.499999])
    assert check(before, now).regressed == [5]


UNUSABLE = {
    "other data": ({"data__sha256": "other"}, "the data (sha256) differs: 'abc' in the baseline, 'other' in"),
    "other number of samples": ({"data__n_samples": 23}, "number of samples"),
    "another segment convention": ({"conventions__segment": "sum"}, "probe both with the same --segment"),
    "another response": ({"conventions__response": "generated"}, "'response' differs"),
    "an unknown convention": ({"conventions__segment": "median"}, "conventions.segment"),
    "another template": ({"checkpoint__template": "vicuna"}, "'chat' in the baseline, 'vicuna' in the current"),
    "text instead of speech": ({"checkpoint__source": "text"}, "the kind of source"),
    "a control": ({"checkpoint__control": "given lengths"}, "the kind of control"),
    "given responses": ({"checkpoint__responses": "given"}, "where responses come from"),
    "a part of responses": ({"checkpoint__response_part": "answer"}, "probe both with the same --response-part"),
    "other layers": ({"layers": [1, 2, 3, 4, 5, 6]}, "which layers"),
    "a value too few": ({"eta__mean": [0.5] * 5}, "eta.mean has 5 values for 6 layers"),
    "no layers": ({"layers": []}, "layers"),
    "nan": ({"eta__mean": [0.5] * 5 + [float("nan")]}, "'eta.mean.5' is nan"),
    "infinity": ({"eta__ci_high": [float("inf")] * 6}, "eta.ci_high.0"),
    "undefined": ({"eta__mean": [0.5] * 5 + ["0.5"]}, "eta.mean.5"),
    "no eta at all": ({"eta__mean": [0.5] * 5 + [1.5]}, "eta.mean.5"),
    "another schema": ({"schema": "lsm-probe/attention/3"}, "'schema' is 'lsm-probe/attention/3'"),
    "another probe": ({"schema": "lsm-probe/knockout/1"}, "attention probe"),
    "no conventions": ({"conventions": None}, "'conventions' is missing"),
    "no samples": ({"n_samples": 0}, "n_samples"),
}


@pytest.mark.parametrize(("changes", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_results_that_cannot_be_compared_are_refused_in_one_line(pair, edit, changes, message):
    before, now = pair()
    edit(now, **changes)
    with pytest.raises(InputError) as info:
        check(before, now)
    assert message in str(info.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"null", b'{"schema": "lsm-probe/attention/1"}', b"[" * 10**5]
)
def test_a_file_that_is_no_result_is_refused_in_one_line(pair, content):
    before, now = pair()
    (now / "result.json").write_bytes(content)
    with pytest.raises(InputError) as info:
        check(before, now)
    assert len(str(info.value)) < 400


def test_another_number_of_layers_is_refused(pair, with_eta, scatter):
    with pytest.raises(InputError, match="number of layers differs: 6 in the baseline, 5"):
        check(*pair(with_eta(scatter()[:, 1:])))


def test_generated_responses_must_have_the_same_maximum_length(pair, edit):
    before, now = pair()
    for folder, longest in ((before, 128), (now, 64)):
        edit(folder, conventions__response="generated", checkpoint__max_new_tokens=longest)
    with pytest.raises(InputError, match="--max-new-tokens"):
        check(before, now)
    for folder in (before, now):
        edit(folder, conventions__response="reference")
    assert not check(before, now).regressed


def test_comparing_generated_with_given_responses_names_both(pair, edit):
    before, now = pair()
    for folder in (before, now):
        edit(folder, conventions__response="generated", checkpoint__max_new_tokens=32)
    edit(now, checkpoint__responses="given")
    with pytest.raises(InputError) as info:
        check(before, now)
    assert str(info.value) == (
        "where responses come from differs: 'generated by the model' in the baseline, 'given with --responses' in the "
        "current result; probe both with --responses or both without, or accept another baseline with --update"
    )


def test_samples_left_out_must_be_the_same(pair, baseline):
    fewer = replace(baseline.subset(baseline.ids[:-2]), excluded={"zero norms": ["s22", "s23"]})
    with pytest.raises(InputError, match="left out differs"):
        check(*pair(fewer))
    verdict = check(*pair(fewer), paired=True)
    assert not verdict.regressed
    assert verdict.n_utterances == 22
    assert "compared on the 22 samples that both measured" in verdict.notes


def test_a_file_against_itself_is_refused(pair):
    """Such a check would always hold."""
    before, _ = pair()
    for other in (before, before / "result.json", before / ".." / "baseline"):
        with pytest.raises(InputError, match="same file"):
            check(before, other)


@pytest.mark.parametrize("tolerance", [float("nan"), float("inf"), -0.01, 2])
def test_an_invalid_tolerance_is_refused(pair, tolerance):
    with pytest.raises(InputError, match="tolerance"):
        check(*pair(), tolerance=tolerance)


def test_another_checkpoint_dtype_and_version_are_what_a_check_is_for(pair, edit):
    before, now = pair(checkpoint=CheckpointIdentity(name="next", source="speech", template="chat", dtype="bfloat16"))
    edit(now, versions={"torch": "9.9"}, self_check={"backend": "nnsight"}, segments__source__tokens__mean=31.0)
    verdict = check(before, now)
    assert not verdict.regressed
    for note in (
        "dtypes differ (baseline: float32, current result: bfloat16), and the error of half precision may be",
        "-> 9.9",
        "backends differ",
        "source lengths differ (30, 31 tokens",
    ):
        assert any(note in line for line in verdict.notes), note


def test_generated_responses_are_noted(pair, edit):
    folders = pair()
    assert not check(*folders).notes
    for folder in folders:
        edit(folder, conventions__response="generated")
    assert "--response reference" in check(*folders).notes[0]


def test_a_folder_of_several_results_names_them(pair, tmp_path):
    before, _ = pair()
    with pytest.raises(InputError, match="name one of the folders below: baseline, current"):
        check(before, tmp_path)


def test_a_pipe_can_be_read(pair, tmp_path):
    """`--baseline <(git show main:eta/result.json)`"""
    import os
    import threading

    before, now = pair()
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=((before / "result.json").read_bytes(),))
    writer.start()
    assert not check(tmp_path / "pipe", now).regressed
    writer.join()


def test_the_json_verdict_agrees_with_the_text(pair, with_eta, scatter):
    eta = scatter()
    eta[:, 4] -= 0.07
    verdict = check(*pair(with_eta(eta)), paired=True)
    content = verdict.to_dict()
    assert content["verdict"] == "regressed"
    assert content["regressed"] == [{"layer": 4, "change": -0.07}]
    assert len(content["p"]) == len(content["change"]) == len(content["layers"]) == 6
    first = verdict.text().splitlines()[2].split()
    assert first[0] == "4"
    assert first[3] == "-0.070"
    assert first[-1] == "regressed"


def test_the_text_says_how_many_layers_it_leaves_out():
    eta = [0.5] * 30
    text = CurveCheck(layers=range(30), before=eta, now=eta, tolerance=0.02).text().splitlines()
    assert len(text) == 1 + 1 + 8 + 1  # headline, head, layers
    assert "22 layers that changed less" in text[-1]
    assert "more" not in CurveCheck(layers=range(8), before=eta[:8], now=eta[:8], tolerance=0.02).text()


def test_the_schema_is_the_attention_probes():
    assert Baseline.model_fields["schema_"].annotation.__args__[-1] == AttentionResult.schema()


def test_every_convention_must_agree(pair, edit):
    for name in Conventions().to_dict():
        before, now = pair()
        value = read_baseline(before).conventions.to_dict()[name]
        hints = {"heads": "mean_of_norms", "segment": "sum", "aggregate": "ratio_of_means"}
        other = {**hints, "span": "instruction+template", "response": "generated"}[name]
        assert value != other
        edit(now, **{f"conventions__{name}": other})
        with pytest.raises(InputError, match=f"convention '{name}' differs"):
            check(before, now)
