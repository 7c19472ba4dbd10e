"""The progress of one of datatrove's ranks, computed only from its shards.

datatrove keeps its own count of finished chunks in `checkpoints/last_chunk/RANK.txt`. A kill can leave that file empty,
so that no later run can read it, or ahead of the last shard, which datatrove closes after counting it, so that its rows
would never be generated. Therefore the count is rebuilt before each run from the readable shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lsm_probe.data.augmentation.collect import SHARDS
from lsm_probe.data.augmentation.shards import rows_in
from lsm_probe.files import replacing

CHECKPOINTS, LOGS = "checkpoints", "logs"
SHARD_ROWS = 10_000
"""Rows of a shard. A killed run loses only the answers that are being generated."""

SHARD_NAME = "${rank}_chunk_${chunk_index}.parquet"
"""File name pattern for datatrove's writers; see [`Rank.shard`]."""


@dataclass(frozen=True)
class Rank:
    """One of the equal parts of a run."""

    out: Path
    number: int  # of the part, from 0
    rows: int  # number of its samples
    shard_rows: int  # rows of each shard except the last

    @property
    def is_finished(self) -> bool:
        return self._whole_shards() * self.shard_rows >= self.rows

    @property
    def completion_marker(self) -> Path:
        """The file that makes datatrove skip this rank."""
        return self.out / LOGS / "completions" / f"{self.number:05d}"

    def shard(self, chunk: int) -> Path:
        return self.out / SHARDS / f"{self.number:05d}_chunk_{chunk}.parquet"

    def repair_count(self) -> None:
        """Sets datatrove's count to the number of complete shards."""
        whole = self._whole_shards()
        for chunk in range(whole):
            self._rows_of_chunk(chunk).unlink(missing_ok=True)
        if whole:
            with replacing(self._count) as temporary:
                temporary.write_text(str(whole - 1))
        else:
            self._count.unlink(missing_ok=True)

    def rows_done(self) -> int:
        """Rows written so far: those of finished shards, and datatrove's copy of the others."""
        try:
            done = (int(self._count.read_text()) + 1) * self.shard_rows
        except (OSError, ValueError):
            done = 0
        for path in self._rows_of_chunk(0).parent.glob("chunk_*.jsonl"):
            try:
                done += path.read_bytes().count(b"\n")
            except OSError:  # finished in the meantime
                continue
        return min(done, self.rows)

    @property
    def _count(self) -> Path:
        return self.out / CHECKPOINTS / "last_chunk" / f"{self.number:05d}.txt"

    def _rows_of_chunk(self, chunk: int) -> Path:
        return self.out / CHECKPOINTS / f"{self.number:05d}" / f"chunk_{chunk:05d}.jsonl"

    def _whole_shards(self) -> int:
        """Number of consecutive complete shards, from the first."""
        whole = 0
        for start in range(0, self.rows, self.shard_rows):
            if rows_in(self.shard(whole)) != min(self.shard_rows, self.rows - start):
                break
            whole += 1
        return whole


def split(out: Path, rows: int, ranks: int, shard_rows: int) -> list[Rank]:
    """The parts of `rows` samples, every `ranks`-th to each."""
    return [Rank(out, number, len(range(number, rows, ranks)), shard_rows) for number in range(ranks)]
