"""Output of the commands that write manifests: progress, then the counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from lsm_probe.cli.progress import progress
from lsm_probe.cli.stopping import RESUME, stoppable
from lsm_probe.data.prepare import Prepared
from lsm_probe.data.problems import LEFT_OUT
from lsm_probe.files import check_can_write


def prepare_and_show(prepare: Callable[..., Prepared], out: Path, *, resumable: bool, as_json: bool) -> None:
    """Calls `prepare(on_progress=...)` and prints the counts that it returns."""
    check_can_write("--out", out, folder=True)
    with stoppable(RESUME if resumable else ""), progress() as on_progress:
        prepared = prepare(on_progress=on_progress)
    if as_json:
        print(json.dumps({"out": str(out), **prepared.to_dict()}))
        return
    for name, count in sorted(prepared.samples.items()):
        print(f"{out / name}: {count} samples")
    if prepared.left_out:
        print(f"left out: {len(prepared.left_out)}, each with its reason in {out / LEFT_OUT}")
    if spoken := prepared.spoken:
        print(
            f"spoken: {spoken.new} texts, {spoken.seconds:.0f} s of speech in {spoken.wall_seconds:.0f} s, "
            f"{spoken.times_real_time:.0f} times real time; {spoken.already} were there already"
        )
