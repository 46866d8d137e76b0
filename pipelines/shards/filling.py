"""Clips into tars, shard by shard: cut or copied side by side, written in order, each shard a part that outlives a kill."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa

from pipelines import schemas
from pipelines.parts import Part, Parts
from pipelines.shards.carrying import Move
from pipelines.shards.cutting import cut_clip
from pipelines.shards.form import CutClip, CutFailure, ShardConfig
from pipelines.shards.index import INDEX_FILE
from pipelines.shards.tars import TarFile, pair_of, shard_name, sidecar_text
from pipelines.video.media import media_stat

logger = logging.getLogger("tubelet.shards")

QUARANTINE_FILE = "quarantine.parquet"
AHEAD = 4  # clips a worker may be ahead of the one that is written
SIDECAR = (
    "clip_id", "video_id", "source", "licence", "uploader", "label", "start_pts", "end_pts", "time_base_num",
    "time_base_den", "start_s", "end_s", "splitter",
)  # fmt: skip


Job: TypeAlias = dict[str, Any] | Move
"""A row of `clips` to cut, or a clip to copy from an earlier tar."""


@dataclass(frozen=True, eq=False)
class Jobs(Sequence[Job]):
    """What is to be stored, in order: rows of `clips`, each made when it is asked for, or the `moves` of the same clips."""

    clips: pa.Table
    moves: dict[str, Move]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, place: Any) -> Any:
        (clip,) = self.clips.slice(place, 1).to_pylist()
        return self.moves.get(clip["clip_id"]) or clip


@dataclass(frozen=True)
class Stored:
    """A clip as it goes into a tar. `row` is its index row but for shard and offset."""

    row: dict[str, Any]
    sidecar: bytes
    video: bytes


def _store(job: Job, scratch: Path, config: ShardConfig) -> Stored | dict[str, Any]:
    """The clip of a job, or its quarantine row."""
    if isinstance(job, Move):
        return Stored(job.row, *job.read())
    target = scratch / f"{job['clip_id']}.mp4"
    try:
        cut = cut_clip(job, target, config)
    finally:
        target.unlink(missing_ok=True)
    if isinstance(cut, CutFailure):
        logger.warning("clip %s of %s was not cut: %s: %s", job["clip_id"], job["path"], cut.code, cut.detail)
        return _quarantine_row(job, cut)
    row = _index_row(job, cut)
    fields = {name: job[name] for name in SIDECAR} | {name: row[name] for name in ("frames", "frame_rate", "sha256")}
    return Stored(row, sidecar_text(fields), cut.data)


class Ahead:
    """Outcomes of `jobs` by position, worked out side by side and a little ahead, also past the end of a shard.

    Threads are enough: each waits for an ffmpeg process of its own.
    """

    def __init__(self, jobs: Sequence[Job], work: Callable[[Job], Stored | dict[str, Any]], pool: ThreadPoolExecutor, ahead: int) -> None:
        self._jobs, self._work, self._pool, self._ahead = jobs, work, pool, ahead
        self._waiting: dict[int, Future[Stored | dict[str, Any]]] = {}

    def at(self, position: int) -> Stored | dict[str, Any]:
        """The outcome of one job; outcomes before it are let go."""
        for passed in [number for number in self._waiting if number < position]:
            del self._waiting[passed]
        for number in range(position, min(position + self._ahead, len(self._jobs))):
            if number not in self._waiting:
                self._waiting[number] = self._pool.submit(self._work, self._jobs[number])
        return self._waiting[position].result()


def write_shards(
    parts: Parts, jobs: Sequence[Job], first_number: int, config: ShardConfig, workers: int, report: Callable[..., None]
) -> list[Part]:
    """One part a shard: its tar, index rows and quarantine rows. Shards that are there are not made again."""
    for stale in parts.root.glob(".cuts-*"):  # of a writer that was killed: this one holds the folder alone
        shutil.rmtree(stale, ignore_errors=True)
    shards: list[Part] = []
    done = 0
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=parts.root, prefix=".cuts-", ignore_cleanup_errors=True)))
        pool = ThreadPoolExecutor(max(workers, 1), thread_name_prefix="cut")
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        outcomes = Ahead(jobs, lambda job: _store(job, scratch, config), pool, AHEAD * max(workers, 1))
        while done < len(jobs):
            name = shard_name(first_number + len(shards))
            start = done
            part = parts.part(Path(name).stem, lambda into, name=name, start=start: _fill(into / name, outcomes, start, len(jobs), config, report))  # type: ignore[misc]
            shards.append(part)
            done += part.summary["jobs"]
            report(done, len(jobs))
    return shards


def _fill(tar: Path, outcomes: Ahead, start: int, end: int, config: ShardConfig, report: Callable[..., None]) -> dict[str, Any]:
    """Write one shard from the outcomes from `start` on, until the next clip would pass `shard_bytes`; {jobs used}."""
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    position = start
    with contextlib.ExitStack() as stack:
        archive: TarFile | None = None
        while position < end:
            outcome = outcomes.at(position)
            if isinstance(outcome, Stored):
                name = outcome.row["clip_id"]
                if archive is None:
                    archive = stack.enter_context(contextlib.closing(TarFile(tar)))
                elif archive.size + len(pair_of(name, outcome.sidecar, outcome.video)) > config.shard_bytes:
                    break
                rows.append({**outcome.row, "shard": tar.name, "offset": archive.add(name, outcome.sidecar, outcome.video)})
            else:
                failures.append(outcome)
            position += 1
            report(position, end)
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, rows), tar.with_name(INDEX_FILE), schemas.SHARD_INDEX)
    schemas.write_table(schemas.table_of(schemas.QUARANTINE, failures), tar.with_name(QUARANTINE_FILE), schemas.QUARANTINE)
    return {"jobs": position - start}


def _index_row(clip: dict[str, Any], cut: CutClip) -> dict[str, Any]:
    return {
        "clip_id": clip["clip_id"], "video_id": clip["video_id"], "length": len(cut.data), "sha256": hashlib.sha256(cut.data).hexdigest(),
        "frames": cut.frames, "first_pts_s": cut.first_pts_s, "last_pts_s": cut.last_pts_s, "frame_rate": cut.frame_rate,
        "weight": clip["weight"], "source": clip["source"], "licence": clip["licence"], "source_start_s": clip["start_s"],
        "source_end_s": clip["end_s"], "width": cut.width, "height": cut.height, "form": cut.form, "uploader": clip["uploader"],
    }  # fmt: skip


def _quarantine_row(clip: dict[str, Any], failure: CutFailure) -> dict[str, Any]:
    try:
        size = media_stat(clip["path"]).bytes
    except OSError:
        size = 0
    return {
        "path": clip["path"], "batch": clip["batch"], "source": clip["source"], "bytes": size, "code": failure.code.value,
        "detail": f"clip {clip['clip_id']}: {failure.detail}", "attempts": failure.attempts, "poison": False,
    }  # fmt: skip
