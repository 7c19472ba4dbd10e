"""What all probes do alike: an interrupted run goes on to the same numbers, under the same settings alone."""

from functools import partial

import numpy as np
import pytest

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.runner import measurement_run

QUICK = {"max_new_tokens": 6}
PROBES = {
    "attention": (lsm_probe.attention, {**QUICK, "tokens": True}),
    "sensitivity": (lsm_probe.sensitivity, {**QUICK, "instructions": lsm_probe.read_pool("probing")}),
    "knockout": (lsm_probe.knockout, {**QUICK, "window": 3, "single_heads": True}),
    "alignment": (lsm_probe.alignment, {**QUICK, "segment": "response", "perplexity": 2.0}),
    "importance": (lsm_probe.importance, {}),
}


@pytest.mark.parametrize("name", PROBES)
def test_an_interrupted_run_resumes_to_the_same_numbers(name, tiny_lsm, samples, tmp_path, stopped, monkeypatch):
    probe, options = PROBES[name]
    run = partial(probe, tiny_lsm, samples[:6], batch_size=2, **options)
    whole = run()
    stopped(run, after=4, progress_folder=tmp_path)
    prepare, begun = measurement_run.prepare, []

    def note(checkpoint, batch, *more):
        begun.extend(sample.id for sample in batch)
        return prepare(checkpoint, batch, *more)

    monkeypatch.setattr(measurement_run, "prepare", note)
    resumed = run(progress_folder=tmp_path)
    assert begun == ["s4", "s5"]
    assert resumed.to_dict() == whole.to_dict()
    for key, values in whole._arrays().items():
        np.testing.assert_array_equal(resumed._arrays()[key], values)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("attention", {"max_new_tokens": 5}),
        ("attention", {"response": "reference"}),
        ("attention", {"batch_size": 3}),
        ("knockout", {"window": 1}),
        ("knockout", {"layers": [1]}),
        ("alignment", {"segment": "prompt"}),
        ("importance", {"response": "generated"}),
        ("importance", {"modality": "text"}),
    ],
)
def test_resuming_under_other_settings_is_refused(name, change, tiny_lsm, samples, tmp_path, stopped):
    probe, options = PROBES[name]
    given = {"batch_size": 2, **options}
    stopped(probe, tiny_lsm, samples, progress_folder=tmp_path, **given)
    with pytest.raises(InputError, match="another checkpoint, data or settings"):
        probe(tiny_lsm, samples, progress_folder=tmp_path, **{**given, **change})


def test_alignment_vectors_do_not_depend_on_perplexity_and_seed(tiny_lsm, samples, tmp_path, stopped):
    probe, options = PROBES["alignment"]
    stopped(probe, tiny_lsm, samples, batch_size=2, progress_folder=tmp_path, **options)
    probe(tiny_lsm, samples, batch_size=2, progress_folder=tmp_path, **{**options, "perplexity": 3.0, "seed": 1})
