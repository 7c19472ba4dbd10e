"""Threads of a command: waiting threads sleep, a container's limit counts, and the user's variables decide."""

import pytest

from lsm_probe.cli import threads


@pytest.fixture
def environment(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_cores", lambda: 64)
    return monkeypatch


@pytest.mark.parametrize(
    ("content", "cpus"),
    [("200000 100000\n", 2), ("150000 100000\n", 2), ("5000 100000\n", 1), ("max 100000\n", None), ("", None)],
)
def test_a_container_limit_is_rounded_up_to_cpus(tmp_path, content, cpus):
    (tmp_path / "cpu.max").write_text(content)
    assert threads.container_cpus(tmp_path / "cpu.max") == cpus
    assert threads.container_cpus(tmp_path / "nowhere") is None


@pytest.mark.parametrize(("limit", "expected"), [(2, "2"), (64, None), (None, None)])
def test_no_more_threads_than_the_container_may_use(environment, limit, expected):
    environment.setattr(threads, "container_cpus", lambda: limit)
    threads.set_thread_defaults()
    assert threads.os.environ.get("OMP_NUM_THREADS") == expected
    assert threads.os.environ["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_the_usual_variables_decide(environment, name):
    environment.setattr(threads, "container_cpus", lambda: 2)
    environment.setenv(name, "7")
    environment.setenv("OMP_WAIT_POLICY", "active")
    threads.set_thread_defaults()
    assert threads.os.environ[name] == "7"
    assert threads.os.environ["OMP_WAIT_POLICY"] == "active"
    assert threads.os.environ.get("OMP_NUM_THREADS", "7") == "7"
