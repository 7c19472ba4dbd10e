"""Threads of a command: waiting threads sleep, a container's limit is respected, and the user's variables are kept."""

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
def test_threads_are_limited_to_the_container_limit(environment, limit, expected):
    environment.setattr(threads, "container_cpus", lambda: limit)
    threads.set_thread_defaults()
    assert threads.os.environ.get("OMP_NUM_THREADS") == expected
    assert threads.os.environ["OMP_WAIT_POLICY"] == "passive"


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_thread_variables_of_the_user_are_kept(environment, name):
    environment.setattr(threads, "container_cpus", lambda: 2)
    environment.setenv(name, "7")
    environment.setenv("OMP_WAIT_POLICY", "active")
    threads.set_thread_defaults()
    assert threads.os.environ[name] == "7"
    assert threads.os.environ["OMP_WAIT_POLICY"] == "active"
    assert threads.os.environ.get("OMP_NUM_THREADS", "7") == "7"
