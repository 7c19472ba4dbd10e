"""The training speed of a machine, measured with two passes."""

from lsm_probe.training import timing
from lsm_probe.training.timing import seconds_per_sample


def test_the_second_pass_is_timed_and_divided_by_its_samples(training_config, monkeypatch) -> None:
    clock = iter([0.0, 20.0, 26.0])
    monkeypatch.setattr(timing, "perf_counter", lambda: next(clock))
    assert seconds_per_sample(training_config()) == 1.5
