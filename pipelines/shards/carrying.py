"""What of an earlier set of shards goes into the next one: whole tars by hard link, single clips byte for byte, or nothing."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines import schemas
from pipelines.errors import StoreError
from pipelines.parts import Parts
from pipelines.shards.form import ShardConfig
from pipelines.shards.tars import member_places, shard_number
from pipelines.shards.verify import Expected, expected_tars, index_is_sealed, tar_problems
from pipelines.store import NO_LINKS
from pipelines.tombstones import Tombstones

logger = logging.getLogger("tubelet.shards")


@dataclass(frozen=True, eq=False)
class Move:
    """A clip that is copied out of an earlier tar; `sidecar` and `video` are (offset, length) of its members' data, and `place` that of
    its row in the tar's part of the index."""

    tar: Path
    sidecar: tuple[int, int]
    video: tuple[int, int]
    index: pa.Table
    place: int

    @property
    def row(self) -> dict[str, Any]:
        """Its index row."""
        (row,) = self.index.slice(self.place, 1).to_pylist()
        return dict(row)

    def read(self) -> tuple[bytes, bytes]:
        """The sidecar's and the mp4's bytes."""
        with self.tar.open("rb") as handle:
            return tuple(os.pread(handle.fileno(), length, offset) for offset, length in (self.sidecar, self.video))  # type: ignore[return-value]


@dataclass(frozen=True, eq=False)
class Carried:
    """`tars` are taken over whole, with their index `rows`; `moves` are the clips in use of the `compacted` tars, which are
    given up. `first_number` is the next free one."""

    tars: tuple[Path, ...] = ()
    rows: pa.Table = field(default_factory=schemas.SHARD_INDEX.empty_table)
    moves: dict[str, Move] = field(default_factory=dict)
    compacted: int = 0
    first_number: int = 0


def carry(
    parts: Parts, base: Path | None, live: set[str], tombstones: Tombstones, config: ShardConfig, workers: int, report: Callable[..., None]
) -> Carried:
    """Sort the tars of `base` by what becomes of them, after reading them against their index; `live` clips are in use.

    The decision is a part: a writer that goes on does not read the tars again, and decides as before.
    """
    if base is None:
        return Carried()
    try:
        tars = expected_tars(base)
        sound = index_is_sealed(base)
    except (StoreError, OSError, ValueError) as error:
        logger.warning("the shards in %s cannot be carried over, all clips are cut again: %s", base, error)
        return Carried()
    if not sound:
        logger.warning("the shards in %s cannot be carried over, all clips are cut again: their index is not the one that was sealed", base)
        return Carried()

    def decide(_folder: Path) -> dict[str, Any]:
        damaged = _damaged(base, tars, workers, report)
        for name, words in damaged.items():
            logger.warning("%s is damaged and not carried over; its clips are cut again: %s. %s", base / name, ", ".join(sorted(tars[name].rows)), "; ".join(words[:3]))
        good = [name for name in tars if name not in damaged]
        return {"kept": [name for name in good if _worth_keeping(tars[name], live, tombstones, config)], "damaged": sorted(damaged)}

    decision = parts.part("carried", decide).summary
    compacted = [name for name in tars if name not in {*decision["kept"], *decision["damaged"]}]
    moves: dict[str, Move] = {}
    for name in compacted:
        index, redacted = tars[name].table, tars[name].redacted
        wanted = [(place, clip) for place, clip in enumerate(index.column("clip_id").to_pylist()) if clip in live and clip not in redacted]
        places = member_places(base / name) if wanted else {}
        moves |= {clip: Move(base / name, places[f"{clip}.json"], places[f"{clip}.mp4"], index, place) for place, clip in wanted}
    rows = pa.concat_tables([schemas.SHARD_INDEX.empty_table(), *(tars[name].table for name in decision["kept"])])
    return Carried(tuple(base / name for name in decision["kept"]), rows, moves, len(compacted), 1 + max((shard_number(name) for name in tars), default=-1))


def _damaged(base: Path, tars: dict[str, Expected], workers: int, report: Callable[..., None]) -> dict[str, list[str]]:
    """Tars that are not as their index says, each with what is wrong."""
    with ThreadPoolExecutor(workers, thread_name_prefix="carry") as pool:
        found = {}
        for done, (name, problems) in enumerate(zip(tars, pool.map(lambda name: tar_problems(base / name, tars[name], packets=False), tars), strict=True)):
            report(0, None, f"{done + 1} of {len(tars)} earlier shards read")
            if problems:
                found[name] = problems
        return found


def _worth_keeping(tar: Expected, live: set[str], tombstones: Tombstones, config: ShardConfig) -> bool:
    """Whether a tar goes over whole: nothing taken down is in it, or was, and enough of its bytes are in use."""
    clips, videos, lengths = (tar.table.column(name).to_pylist() for name in ("clip_id", "video_id", "length"))
    if tar.redacted or any(map(tombstones.covers, clips, videos)):
        return False
    used = sum(length for clip, length in zip(clips, lengths, strict=True) if clip in live)
    return used > 0 and used >= config.compact_below * sum(lengths)


def place(source: Path, target: Path) -> None:
    """`source` under another name too: a hard link, or a copy where the file systems have no such. Nothing is replaced."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with source.open("rb") as read, target.open("xb") as write:
            shutil.copyfileobj(read, write, 1 << 20)
