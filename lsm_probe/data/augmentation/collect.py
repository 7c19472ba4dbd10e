"""From shards to the training manifest and the report, with every job exactly once."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lsm_probe.data.augmentation.shards import read_shards
from lsm_probe.data.manifest import manifest_writer
from lsm_probe.data.sample import Sample
from lsm_probe.errors import InputError
from lsm_probe.files import replacing

MANIFEST, REPORT, SHARDS = "manifest.jsonl", "report.json", "shards"

_EXAMPLES = 3
"""Number of kept and of dropped examples for each task in the report."""


def collect(out: Path, sample_ids: Sequence[str]) -> dict[str, Any]:
    """Writes `manifest.jsonl` (the samples kept, in the order of the data) and `report.json` from `out/shards`.

    Returns:
        The report: samples drawn, kept and dropped by task and reason, number of responses with removed thinking
        (`thinking`, if any), response tokens, seconds of generation and tokens per second (None if no shard records
        them), and examples.

    Raises:
        InputError: the shards do not hold every job exactly once.
    """
    rows, seconds = read_shards(out / SHARDS)
    if rows["sample_id"].to_pylist() != list(sample_ids):
        raise InputError(
            f"{out / SHARDS} does not hold each of the {len(sample_ids)} samples once: continue with --resume"
        )
    with manifest_writer(out / MANIFEST) as write:
        for batch in rows.filter(pc.field("keep")).to_batches(max_chunksize=10_000):
            for row in batch.to_pylist():
                write(_to_sample(row))
    report = _report(rows, seconds)
    if not report["kept"]:
        warnings.warn(f"no answer was kept: {out / REPORT} says why", stacklevel=3)
    with replacing(out / REPORT) as temporary:
        temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def _to_sample(row: dict[str, Any]) -> Sample:
    return Sample(
        id=row["sample_id"],
        instruction=row["instruction"],
        audio=None if row["audio"] is None else Path(row["audio"]),
        text=row["text"],
        target=row["response"],
        start=row["start"],
        duration=row["duration"],
        task=row["task"],
        language=row["language"],
    )


def _report(rows: pa.Table, seconds: float) -> dict[str, Any]:
    tokens = pc.sum(rows["response_tokens"]).as_py() or 0
    by_task = {task: rows.filter(pc.field("task") == task) for task in sorted(set(rows["task"].to_pylist()))}
    return {
        **_counts(rows),
        "response_tokens": tokens,
        "seconds": round(seconds, 1) if seconds else None,
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "tasks": {task: _counts(of_task) for task, of_task in by_task.items()},
        "examples": {task: _examples(of_task) for task, of_task in by_task.items()},
    }


def _counts(rows: pa.Table) -> dict[str, Any]:
    reasons = Counter(reason for reason in rows["drop_reason"].to_pylist() if reason is not None)
    generated = [tokens for tokens in rows["response_tokens"].to_pylist() if tokens]
    thinking = len(rows) - rows["thinking"].null_count
    return {
        "samples": len(rows),
        "kept": len(rows) - reasons.total(),
        "dropped": dict(sorted(reasons.items())),
        **({"thinking": thinking} if thinking else {}),
        "mean_response_tokens": round(fmean(generated), 1) if generated else None,
    }


def _examples(rows: pa.Table) -> list[dict[str, Any]]:
    columns = ["sample_id", "instruction", "text", "response", "finish_reason", "drop_reason"]
    chosen = [rows.filter(condition).slice(0, _EXAMPLES) for condition in (pc.field("keep"), ~pc.field("keep"))]
    examples = pa.concat_tables(chosen).select(columns).to_pylist()
    return [{key: value for key, value in example.items() if value is not None} for example in examples]
