"""What one of datatrove's ranks has finished, told from its shards alone.

datatrove keeps its own count of finished chunks in `checkpoints/last_chunk/RANK.txt`. A kill can leave that file empty,
which no later run can read, or ahead of the last shard, which datatrove closes after counting it: its rows would be
skipped for ever. So before each run the count is made anew from what can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lsm_probe.data.augmentation.collect import SHARDS
from lsm_probe.data.augmentation.shards import rows_in
from lsm_probe.files import replacing

CHECKPOINTS, LOGS = "checkpoints", "logs"
SHARD_ROWS = 10_000
"""Rows of a shard; what a kill costs is no more than the answers under way."""

SHARD_NAME = "${rank}_chunk_${chunk_index}.parquet"
"""As datatrove's writers take it: see [`Rank.shard`]."""


@dataclass(frozen=True)
class Rank:
    """One of the equal parts of a run."""

    out: Path
    number: int  # of the part, from 0
    rows: int  # samples that fall to it
    shard_rows: int  # rows of a shard, the last excepted

    @property
    def is_finished(self) -> bool:
        return self._whole_shards() * self.shard_rows >= self.rows

    @property
    def completion_marker(self) -> Path:
        """The file that tells datatrove to leave this rank out."""
        return self.out / LOGS / "completions" / f"{self.number:05d}"

    def shard(self, chunk: int) -> Path:
        return self.out / SHARDS / f"{self.number:05d}_chunk_{chunk}.parquet"

    def repair_count(self) -> None:
        """Makes datatrove's count that of the shards that hold all their rows."""
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
            except OSError:  # finished in between
                continue
        return min(done, self.rows)

    @property
    def _count(self) -> Path:
        return self.out / CHECKPOINTS / "last_chunk" / f"{self.number:05d}.txt"

    def _rows_of_chunk(self, chunk: int) -> Path:
        return self.out / CHECKPOINTS / f"{self.number:05d}" / f"chunk_{chunk:05d}.jsonl"

    def _whole_shards(self) -> int:
        """Shards in a row, from the first, with all the rows that belong there."""
        whole = 0
        for start in range(0, self.rows, self.shard_rows):
            if rows_in(self.shard(whole)) != min(self.shard_rows, self.rows - start):
                break
            whole += 1
        return whole


def split(out: Path, rows: int, ranks: int, shard_rows: int) -> list[Rank]:
    """The parts of `rows` samples, every `ranks`-th to each."""
    return [Rank(out, number, len(range(number, rows, ranks)), shard_rows) for number in range(ranks)]
