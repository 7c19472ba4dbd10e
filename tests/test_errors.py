"""The message of an error is one line, whatever it names, and its class says the exit code."""

import pytest

from lsm_probe.errors import InputError, SampleFault, WorkFailed


@pytest.mark.parametrize(("error", "code"), [(InputError, 2), (SampleFault, 2), (WorkFailed, 1)])
def test_a_message_is_one_line(error, code):
    assert str(error("a\nb\r\nc\u2028d\x00")) == r"a b c d\x00"
    assert error.exit_code == code
