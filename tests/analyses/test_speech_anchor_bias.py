"""The committed results give the study's tables, and the package measures its published curves again."""

import importlib
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from io import StringIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lsm_probe
from lsm_probe.probes.attention.result import AttentionResult
from lsm_probe.runner.result import Curve

FOLDER = Path(__file__).parents[2] / "analyses" / "speech_anchor_bias"
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
MODULES = ("claims", "measured", "page", "prediction", "scored", "table")


@pytest.fixture(scope="module")
def study():
    """The study's modules by name, as its script finds them."""
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        del sys.modules[name]


def stored(name):
    return pd.read_csv(FOLDER / f"{name}.csv")


def test_the_tables_are_those_of_the_results(study):
    arms = study["table"].arms()
    made = {
        "arms": arms,
        "claims": study["claims"].claims(),
        "conventions": study["claims"].conventions(),
        "headline": study["claims"].headline(),
        "prediction": study["prediction"].prediction(arms),
        "scored": study["scored"].scored(),
    }
    assert {"vanilla_asr", "self_powered"} < set(arms["arm"])
    for name, frame in made.items():
        read_back = pd.read_csv(StringIO(frame.to_csv(index=False)))  # as the committed file is read
        pd.testing.assert_frame_equal(stored(name), read_back, atol=1e-6, check_dtype=False, obj=name)


def test_the_page_shows_the_tables_as_they_came_out(study):
    for table in study["page"].tables(*map(stored, ("arms", "claims", "headline", "coverage"))):
        assert table in PAGE


def test_the_page_shows_the_eta_of_the_copying_text_llm(tmp_path):
    with tarfile.open(FOLDER / "text_control.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    command = [sys.executable, FOLDER / "text_control_eta.py", tmp_path]
    copies, vanilla, _ = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert copies == "copying text LLM minus text LLM: -0.17 [-0.21, -0.12]"
    assert vanilla == "vanilla minus text LLM: -0.05 [-0.12, 0.02]"
    words = " ".join(PAGE.split())
    assert "lower than the text LLM's by 0.17 [0.12, 0.21]; vanilla's is lower by 0.05 [−0.02, 0.12]" in words


def test_every_number_of_the_claims_comes_out_again_without_the_package():
    """`-I` keeps lsm-probe and the folder out of the way."""
    done = subprocess.run([sys.executable, "-I", FOLDER / "recompute.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = done.stdout.splitlines()[1:-1]
    assert len(numbers) == len(stored("claims")) + len(stored("headline"))


def test_a_number_that_was_altered_is_found(tmp_path):
    for name in ("recompute.py", "scored.csv", "headline.csv"):
        shutil.copyfile(FOLDER / name, tmp_path / name)
    for archive in FOLDER.glob("*.tar.xz"):
        (tmp_path / archive.name).symlink_to(archive)
    altered = stored("claims")
    altered.loc[altered["key"] == "bias", "ci_high"] += 0.001
    altered.to_csv(tmp_path / "claims.csv", index=False)
    done = subprocess.run([sys.executable, "-I", tmp_path / "recompute.py"], capture_output=True, text=True)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines() if "DISAGREES" in line] == ["bias", "bias"]


def test_every_claim_of_the_papers_is_listed_with_what_tests_it():
    coverage = stored("coverage")
    tested = {name for names in coverage["tested"] if names != "not run" for name in names.split()}
    keys = {key.removesuffix("_more") for key in stored("claims")["key"]}  # the same claim on more utterances
    paths = {name for name in tested if name.startswith("analyses/")}
    assert all((FOLDER.parents[1] / path).is_dir() for path in paths)
    assert tested - paths <= keys
    claims = stored("claims")
    ours = set(claims[claims["place"].isna()]["key"])
    assert keys - ours <= tested, "a claim of a paper that coverage.csv does not list"


def by_seed(key, digits):
    """A claim's numbers as the text of the page writes them, seed by seed."""
    rows = stored("claims").query("key == @key")[["mean", "ci_low", "ci_high"]]
    assert len(rows)
    written = [[f"{end:.{digits}f}".replace("-", "−") for end in ends] for ends in rows.to_numpy()]
    return [f"{mean} [{low}, {high}" for mean, low, high in written]


@pytest.mark.parametrize(
    ("key", "digits"),
    [
        ("collapse", 2), ("heard_D_s", 2), ("repair", 2), ("bias", 2), ("one_kind_unseen", 0),
    ],
)  # fmt: skip
def test_the_text_quotes_the_claims(key, digits):
    for number in by_seed(key, digits):
        assert number in " ".join(PAGE.split()), number


def test_the_text_quotes_the_table_of_arms():
    arms = stored("arms").set_index(["arm", "seed"])
    first = PAGE.partition("\n\n1. ")[0]
    for column, digits in (("own_D_i", 2), ("own_D_s", 2), ("wer", 0)):
        for arm in ("vanilla_asr", "self_powered", "untrained"):
            own = 3 if (arm, column) == ("vanilla_asr", "own_D_i") else digits
            shown = [f"{arms.loc[(arm, seed), column]:.{own}f}" for seed in (0, 1)]
            assert " and ".join(shown) in first, (arm, column, shown)


def test_no_number_of_the_recordings_that_no_arm_understands_is_used():
    assert "natural" not in " ".join(stored("arms").columns)


@pytest.mark.parametrize(
    ("intervals", "side", "bound", "verdict"),
    [
        ([(0.1, 0.3), (0.2, 0.4)], "above", 0, "holds"),
        ([(0.1, 0.3), (-0.1, 0.4)], "above", 0, "undecided"),
        ([(0.1, 0.3), (-0.4, -0.1)], "above", 0, "undecided"),
        ([(0.1, 0.3), (0.2, 0.4)], "below", 0, "fails"),
        ([(-0.1, 0.3), (-0.2, 0.4)], "below", 0, "undecided"),
        ([(1.1, 1.3), (1.2, 1.4)], "above", 1, "holds"),
        ([(0.1, 0.3), (0.2, 0.4)], "below", 0.5, "holds"),
        ([(0.1, 0.3), (0.2, 0.4)], "above", 1, "fails"),
    ],
)
def test_a_claim_holds_only_where_every_seed_shows_it(study, intervals, side, bound, verdict):
    claim = replace(study["claims"].CLAIMS[0], side=side, bound=bound)
    assert study["claims"].verdict(claim, [Curve((low + high) / 2, low, high) for low, high in intervals]) == verdict


def test_the_unpacked_results_serve_as_baselines(lsm_probe_command, tmp_path):
    subprocess.run([sys.executable, "-m", "tarfile", "-e", FOLDER / "results.tar.xz", tmp_path], check=True)
    vanilla, repaired = (tmp_path / "results/0/attention" / name for name in ("vanilla_asr-0", "self_powered-0"))
    again = AttentionResult.load(vanilla).save(tmp_path / "again")
    for current, expected in ((again, 0), (repaired, 1)):
        code, out, err = lsm_probe_command("check", "--two-sided", "--baseline", vanilla, "--current", current)
        assert code == expected, f"{out}\n{err}"


@pytest.mark.real
@pytest.mark.parametrize("name", ["self_powered", "vanilla_asr"])
def test_the_published_curve_comes_out_again(study, name, builtin):
    """On the published responses: what the arms say by themselves is tested with the arms."""
    samples = lsm_probe.read_manifest("builtin:commands")[:6]
    published = AttentionResult.load(study["measured"].results() / "0" / "attention" / f"{name}-0")
    again = lsm_probe.attention(builtin(f"builtin:{name}"), samples, responses=published.responses())
    expected = published.subset(again.ids)
    np.testing.assert_allclose(again.eta().mean, expected.eta().mean, atol=1e-3)
    np.testing.assert_allclose(again.norms, expected.norms, rtol=2e-2)


@pytest.fixture
def run_study(tmp_path):
    """Runs the study with stand-ins for `lsm-probe`, `python` and `flite` that only write down what they are asked."""
    for name in ("lsm-probe", "python", "flite"):
        stand_in = tmp_path / "bin" / name
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f'#!/usr/bin/env bash\n{{ printf "%q " "$@"; echo; }} >> "{tmp_path}/{name}.log"\n')
        stand_in.chmod(0o755)

    def run():
        log = tmp_path / "lsm-probe.log"
        log.unlink(missing_ok=True)
        path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, "NATURAL": "clips.jsonl"}
        subprocess.run(["bash", FOLDER / "run", tmp_path / "study", "0", "1"], check=True, env=env)
        return [shlex.split(line) for line in log.read_text().splitlines()]

    return run


def test_every_step_of_the_study_is_a_command_of_this_version(run_study, parsed):
    commands = run_study()
    assert {command[0] for command in commands} >= {"data", "augment", "train", "attention", "evaluate", "text-ability"}
    trained = [command for command in commands if command[0] == "train"]
    assert len(trained) == 10  # five arms, one of them the others' start, and two seeds
    made = {after for command in commands for name, after in pairwise(command) if name == "--out"}
    assert made > {"results/1/voices-evaluation", "results/1/natural-own-words"}  # steps that may be left out
    assert any(str(Path.cwd() / "clips.jsonl") in command for command in commands)  # from where the study was begun
    for command in commands:
        assert parsed(command)


def test_a_step_that_is_done_is_passed_over(run_study, tmp_path):
    (tmp_path / "study" / "train" / "transcribe-0" / "model").mkdir(parents=True)
    commands = run_study()
    assert not any("train/transcribe-0" in command for command in commands)
    assert any("train/transcribe-1" in command for command in commands)


@pytest.mark.skipif(shutil.which("xz") is None, reason="tar needs xz")
def test_the_study_packs_the_results_that_its_tables_read(run_study, tmp_path):
    read = [f"attention/arm/{name}" for name in ("arrays.npz", "result.json", "samples.jsonl")]
    read += [
        "attention/llm-at-length-of-vanilla_asr/result.json",
        "alignment/arm/result.json",
        "alignment/comparison.json",
    ]
    others = ["attention/eta.png", "attention/llm-at-length-of-untrained/result.json", "alignment/arm/arrays.npz"]
    for path in (tmp_path / "study" / "results" / "0" / name for name in read + others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    run_study()
    with tarfile.open(tmp_path / "study" / "results.tar.xz") as archive:
        assert sorted(archive.getnames()) == sorted(f"results/0/{name}" for name in read)
