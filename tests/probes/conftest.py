"""What the tests of the probes share."""

import matplotlib.pyplot as plt
import pytest


@pytest.fixture(params=["speech", "text"])
def checkpoint(request, tiny_lsm, tiny_llm):
    return tiny_lsm if request.param == "speech" else tiny_llm


class Stopped(Exception):
    pass


@pytest.fixture
def stopped():
    """`stopped(probe, ..., after=1)` runs a probe and stops it once so many samples are done."""

    def run(probe, *arguments, after=1, **options):
        def stop(done):
            if done >= after:
                raise Stopped

        with pytest.raises(Stopped):
            probe(*arguments, on_progress=stop, **options)

    return run


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


@pytest.fixture
def written_twice(tmp_path):
    """`written_twice(save, names)`: the folder of what `save(folder)` writes, the same bytes each time."""

    def write(save, names):
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            save(tmp_path / name)
        assert {path.name for path in (tmp_path / "one").iterdir()} == set(names)
        for name in names:
            written = (tmp_path / "one" / name).read_bytes()
            assert written
            assert (tmp_path / "two" / name).read_bytes() == written
        return tmp_path / "one"

    return write
