"""The index over a folder of shards: which bytes of which tar hold a clip, and how heavily it is drawn."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines import schemas
from pipelines.errors import StoreError

INDEX_FILE = "shard_index.parquet"


class ShardError(StoreError):
    """A shard or its index does not hold what it must."""


@dataclass(frozen=True)
class ClipEntry:
    """Where one clip lies. `offset` and `length` (bytes) delimit the mp4 member inside `shard`; times are in s of the clip."""

    row: int
    clip_id: str
    video_id: str
    shard: str
    offset: int
    length: int
    sha256: str
    frames: int


class ShardIndex:
    """`shard_index.parquet` as columns, with ranged reads that check what they read. Safe to share between threads.

    Rows are in the file's order (by clip_id); `cumulative` is the normalised running sum of the weights, float64 (n,).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / INDEX_FILE
        if not path.is_file():
            raise ShardError(f"no shard index in {folder}", expected=INDEX_FILE, found="none", remedy="materialize training_shards")
        self.table = schemas.read_table(path, schemas.SHARD_INDEX)
        if len(self.table) == 0:
            raise ShardError(f"the shards in {folder} hold no clip", expected="at least one clip", found="0", remedy="select more clips")
        self.first_s, self.last_s, self.frame_rate, self.weight, self.source_start_s = (
            self.table.column(name).to_numpy().astype(np.float64)
            for name in ("first_pts_s", "last_pts_s", "frame_rate", "weight", "source_start_s")
        )
        total = self.weight.sum()
        if not (np.isfinite(total) and total > 0 and (self.weight >= 0).all()):
            raise ShardError(
                f"the weights in {path} cannot be drawn from", expected="finite weights, none negative, sum above 0",
                found=f"sum {total}, smallest {self.weight.min()}", remedy="materialize curated_clips and training_shards again",
            )  # fmt: skip
        self.cumulative = np.cumsum(self.weight) / total
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.table)

    def entry(self, row: int) -> ClipEntry:
        """The clip in row `row`."""
        values = self.table.slice(row, 1).select(["clip_id", "video_id", "shard", "offset", "length", "sha256", "frames"])
        return ClipEntry(row=row, **values.to_pylist()[0])

    def column(self, name: str) -> list[str]:
        """A text column as a list."""
        return self.table.column(name).to_pylist()

    def read(self, entry: ClipEntry) -> bytes:
        """The clip's mp4 bytes by one ranged read; raises `ShardError` naming the clip when they are not the indexed ones."""
        data = os.pread(self._descriptor(entry.shard), entry.length, entry.offset)
        found = hashlib.sha256(data).hexdigest()
        if found != entry.sha256:
            raise ShardError(
                f"clip {entry.clip_id} in {self.folder / entry.shard} is damaged",
                expected=f"{entry.length} bytes with sha256 {entry.sha256[:16]}", found=f"{len(data)} bytes with {found[:16]}",
                remedy="delete this training_shards artefact and materialize it again",
            )  # fmt: skip
        return data

    def _descriptor(self, shard: str) -> int:
        with self._lock:
            if shard not in self._open:
                try:
                    self._open[shard] = os.open(self.folder / shard, os.O_RDONLY)
                except FileNotFoundError as error:
                    raise ShardError(
                        f"shard {shard} is missing from {self.folder}", expected="every shard the index names", found="no such file",
                        remedy="delete this training_shards artefact and materialize it again",
                    ) from error  # fmt: skip
            return self._open[shard]

    def close(self) -> None:
        """Close the shards' file descriptors; a later read opens them again."""
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()
