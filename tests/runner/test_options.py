"""Shared options: keyword arguments, dataclasses and the command line agree."""

from dataclasses import dataclass, fields
from inspect import Parameter, signature

import numpy as np
import pytest

import lsm_probe
from lsm_probe.data.identity import DataIdentity
from lsm_probe.errors import InputError
from lsm_probe.probes.registry import PROBES
from lsm_probe.runner.defaults import frame_table
from lsm_probe.runner.identity import CheckpointIdentity
from lsm_probe.runner.options import MeasureKeywords, ResponseOptions, RunKeywords, RunOptions, split_options


@dataclass(frozen=True, kw_only=True)
class Empty(lsm_probe.MeasurementResult):
    NAME = "empty"
    BY_SAMPLE = ()


@dataclass(frozen=True, kw_only=True)
class Mixed(lsm_probe.MeasurementResult):
    NAME = "mixed"
    BY_SAMPLE = ("whole", "layers", "heads")

    whole: np.ndarray
    layers: np.ndarray
    heads: np.ndarray


BUILTIN = tuple(PROBES.built_in)


def test_keyword_types_match_the_fields_of_the_options():
    run, response = ({field.name for field in fields(options)} for options in (RunOptions, ResponseOptions))
    assert set(RunKeywords.__annotations__) == run
    assert set(MeasureKeywords.__annotations__) == run | response


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"batchsize": 2}, TypeError, "unexpected keyword argument 'batchsize'"),
        ({"batch_size": 0}, InputError, "batch_size is 0"),
        ({"max_new_tokens": 0}, InputError, "max_new_tokens is 0"),
        ({"on_error": "hope"}, InputError, "on_error 'hope' is unknown; choose one of: fail, skip"),
        ({"response": "mine"}, InputError, "response 'mine' is unknown"),
        ({"response_part": "reasoning"}, InputError, "is unknown; choose one of: all, thinking, answer"),
    ],
)
def test_an_unknown_option_is_refused(keywords, error, message):
    with pytest.raises(error, match=message):
        split_options(keywords)


@pytest.mark.parametrize("name", BUILTIN)
def test_commands_and_functions_have_the_same_defaults(name):
    probe = PROBES[name]
    given = probe.parse_options({parameter.name: parameter.default for parameter in probe.own_parameters()}).measure
    parameters = signature(probe.get("measure")).parameters
    assert {key: parameters[key].default for key in given} == given
    keyword_only = {key for key, parameter in parameters.items() if parameter.kind == Parameter.KEYWORD_ONLY}
    assert keyword_only - set(given) <= {"source_lengths", "source_length_of", "layers"}


def test_every_probe_and_its_result_are_public():
    for name in BUILTIN:
        assert getattr(lsm_probe, name) is PROBES[name].get("measure")
        assert getattr(lsm_probe, PROBES[name].get("result").__name__) is PROBES[name].get("result")
    with pytest.raises(AttributeError):
        lsm_probe.no_such_name  # noqa: B018


def test_results_of_other_packages_may_have_no_arrays_or_arrays_of_several_shapes():
    about = {
        "clusters": np.arange(3),
        "samples": [{"id": str(i)} for i in range(3)],
        "checkpoint": CheckpointIdentity(name="llm", source="text", template="chat", dtype="float32"),
        "data": DataIdentity("data", "x", 3),
    }
    assert Empty(**about).to_frame().to_dict("records") == [{"checkpoint": "llm", "layer": 0}]
    mixed = Mixed(**about, whole=np.arange(3.0), layers=np.ones((3, 2)), heads=np.ones((3, 2, 4)))
    frame = mixed.to_frame()
    assert frame["whole"].tolist() == [1.0, 1.0]
    assert frame["layers"].tolist() == [1.0, 1.0]
    assert "heads" not in frame
    assert frame_table([mixed]).rows[1][0] == "llm"
