"""Progress if stderr is a log: lines from the start, but not too many."""

from lsm_probe.cli import progress as module
from lsm_probe.cli.progress import progress


def test_progress_is_logged_at_the_start_every_ten_seconds_and_at_the_end(capsys, monkeypatch):
    now = iter([0.0, 1.0, 10.5, 11.0, 12.0, 12.5])
    monkeypatch.setattr(module, "monotonic", lambda: next(now))
    with progress() as on_progress:
        on_progress("train", 0, 4, "first step")
        on_progress("train", 1, 4)
        on_progress("train", 2, 4, "loss 1.5")
        on_progress("encoding [x]", 0, None)
        on_progress("train", 3, 4)
        on_progress("train", 4, 4)
    assert capsys.readouterr().err.splitlines() == [
        "train: 0/4, first step",
        "train: 2/4, loss 1.5",
        "encoding [x]: 0",
        "train: 4/4",
    ]
