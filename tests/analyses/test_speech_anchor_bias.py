"""The study's tables come out of its committed results, and its published curves come out of the package again."""

import importlib.util
from pathlib import Path

import pandas as pd
import pytest

import lsm_probe
from lsm_probe.models.trained import trained

FOLDER = Path(__file__).parents[2] / "analyses" / "speech_anchor_bias"


@pytest.fixture(scope="module")
def study():
    spec = importlib.util.spec_from_file_location("speech_anchor_bias_study", FOLDER / "study.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_that_of_the_results(study):
    stored = pd.read_csv(FOLDER / "arms.csv")
    assert {"vanilla_asr", "self_powered"} < set(stored["arm"])
    pd.testing.assert_frame_equal(stored, study.arms(), atol=1e-6, check_dtype=False)


@pytest.mark.real
@pytest.mark.parametrize("name", trained())
def test_the_published_curve_comes_out_again(name, lsm_probe_command, tmp_path):
    checkpoint = lsm_probe.load(f"builtin:{name}", device="cpu", dtype="float32")
    again = lsm_probe.attention(checkpoint, lsm_probe.read_manifest("builtin:commands"), max_new_tokens=32)
    again.save(tmp_path / "now")
    published = FOLDER / "results" / "0" / "attention" / f"{name}-0"
    code, out, err = lsm_probe_command("check", "--two-sided", "--baseline", published, "--current", tmp_path / "now")
    assert code == 0, f"{out}\n{err}"
