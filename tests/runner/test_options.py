"""Shared options are declared once: keyword arguments, dataclasses and the command line agree."""

from dataclasses import fields
from inspect import Parameter, signature

import pytest

import lsm_probe
from lsm_probe.errors import InputError
from lsm_probe.probes.registry import PROBES
from lsm_probe.runner.options import MeasureKeywords, ResponseOptions, RunKeywords, RunOptions, split_options

BUILTIN = ("attention", "sensitivity", "knockout", "alignment", "importance")


def names(*classes):
    return {field.name for options in classes for field in fields(options)}


def test_keywords_are_the_fields():
    assert set(RunKeywords.__annotations__) == names(RunOptions)
    assert set(MeasureKeywords.__annotations__) == names(RunOptions, ResponseOptions)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"batchsize": 2}, TypeError, "unexpected keyword argument 'batchsize'"),
        ({"batch_size": 0}, InputError, "batch_size 0"),
        ({"max_new_tokens": 0}, InputError, "max_new_tokens 0"),
        ({"on_error": "hope"}, InputError, "on_error 'hope' is unknown; choose one of: fail, skip"),
        ({"response": "mine"}, InputError, "response 'mine' is unknown"),
    ],
)
def test_what_no_measurement_takes_is_refused(keywords, error, message):
    with pytest.raises(error, match=message):
        split_options(keywords)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_command_without_options_measures_what_the_function_does(name):
    probe = PROBES[name]
    given = probe.parse_options({parameter.name: parameter.default for parameter in probe.own_parameters()}).measure
    parameters = signature(probe.get("measure")).parameters
    assert {key: parameters[key].default for key in given} == given
    keyword_only = {key for key, parameter in parameters.items() if parameter.kind == Parameter.KEYWORD_ONLY}
    from_other_results = {"source_lengths", "source_length_of"}
    assert keyword_only - set(given) <= {*from_other_results, *({"layers"} if name == "alignment" else ())}


def test_every_probe_and_its_result_are_public():
    for name in BUILTIN:
        assert getattr(lsm_probe, name) is PROBES[name].get("measure")
        assert getattr(lsm_probe, PROBES[name].get("result").__name__) is PROBES[name].get("result")
    with pytest.raises(AttributeError):
        lsm_probe.no_such_name  # noqa: B018
