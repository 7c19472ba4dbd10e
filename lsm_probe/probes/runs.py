"""A run of the attention probe over one or several checkpoints: folders, resuming, control, comparison."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.folders import alone_in
from lsm_probe.models.checkpoint import Checkpoint
from lsm_probe.models.loading import load
from lsm_probe.probes.attention import attention
from lsm_probe.probes.comparison import compare
from lsm_probe.probes.result import AttentionResult, write_json

CONTROL = " at length of "
"""Stands in a control's name between the text LLM and the speech checkpoint."""
OUTPUTS = (
    *("result.json", "arrays.npz", "samples.jsonl", "comparison.json"),
    *("eta.png", "eta.svg", "eta.csv", "eta_heads.csv"),
)
"""What a run leaves in its folder; that of an earlier run goes first, so that nothing is ever mixed."""

OnProgress = Callable[[str, int, int], None]


def run_attention(
    names: Sequence[str],
    samples: Sequence[Sample],
    out: Path,
    *,
    loading: dict[str, Any],
    probing: dict[str, Any],
    resume: bool = False,
    on_progress: OnProgress = lambda name, done, total: None,
) -> tuple[list[AttentionResult], dict[str, Any] | None]:
    """Probes checkpoints one after another on the same samples and writes everything into a folder.

    One checkpoint writes `result.json`, `arrays.npz` and `samples.jsonl` into `out`; several write them into a folder
    each and `comparison.json` beside. A text LLM beside a speech checkpoint is probed once more with its transcript
    at the speech's length: same responses, same positions, so that only the kind of source differs.

    Args:
        names: what [`load`] takes.
        samples: the samples.
        out: output folder.
        loading: keyword arguments of [`load`].
        probing: keyword arguments of [`attention`].
        resume: go on from an interrupted run in the same folder.
        on_progress: called with the checkpoint's name, samples done and samples in all.

    Returns:
        The results, controls last, and what `comparison.json` holds (None for a single result).

    Raises:
        InputError: if a checkpoint or sample cannot be used, or another process writes to `out`.
    """
    if len(set(names)) < len(names):
        raise InputError(f"--ckpt names a checkpoint twice ({', '.join(names)}): name each once")
    with alone_in(out):
        progress = out / "progress"
        for stale in OUTPUTS:
            (out / stale).unlink(missing_ok=True)
        folders = _Folders()
        if not resume:
            shutil.rmtree(progress, ignore_errors=True)

        def probe(checkpoint: Checkpoint, chosen: Sequence[Sample], **changes: Any) -> AttentionResult:
            name, folder = checkpoint.name, folders.name(checkpoint.name)
            result = attention(
                checkpoint,
                chosen,
                progress_folder=progress / folder,
                on_progress=lambda done: on_progress(name, done, len(chosen)),
                **{**probing, **changes},
            )
            result.save(out / folder if len(names) > 1 else out)
            return result

        results = [probe(load(name, **loading), samples) for name in names]
        results += [
            probe(checkpoint, chosen, responses=text.responses(), source_lengths=lengths)
            for text, checkpoint, chosen, lengths in _controls(results, samples, loading)
        ]
        comparison = compare(results) if len(results) > 1 else None
        if comparison is not None:
            write_json(out / "comparison.json", comparison)
        shutil.rmtree(progress, ignore_errors=True)
    return results, comparison


def slug(name: str) -> str:
    """A checkpoint's name as a folder name: the last part of a path, without the characters folders dislike."""
    if CONTROL in name:
        return "-at-length-of-".join(slug(part) for part in name.split(CONTROL))
    last = name if name.startswith("builtin:") else Path(name).name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-.") or "checkpoint"


class _Folders:
    """Gives each checkpoint a folder name of its own, also where two paths end alike."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def name(self, checkpoint: str) -> str:
        plain = slug(checkpoint)
        candidates = (plain if i == 1 else f"{plain}-{i}" for i in count(1))
        chosen = next(c for c in candidates if c not in self._taken)
        self._taken.add(chosen)
        return chosen


def _controls(
    results: Sequence[AttentionResult], samples: Sequence[Sample], loading: dict[str, Any]
) -> Iterator[tuple[AttentionResult, Checkpoint, list[Sample], dict[str, int]]]:
    """The length-matched controls that a comparison of text and speech needs: each text LLM at each speech's length."""
    for speech in (r for r in results if r.checkpoint["source"] == "speech"):
        lengths = speech.source_lengths()
        for text in (r for r in results if r.checkpoint["source"] == "text"):
            shared = set(text.ids) & set(lengths)
            if all(text.source_lengths()[i] == lengths[i] for i in shared):
                continue
            checkpoint = load(text.name, **loading)
            checkpoint = replace(checkpoint, name=f"{text.name}{CONTROL}{speech.name}")
            yield text, checkpoint, [s for s in samples if s.id in shared], lengths
