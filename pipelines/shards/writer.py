"""Selected clips into WebDataset tars and their Parquet index: equal inputs and equal ffmpeg give equal bytes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import tarfile
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.parquet as pq

from pipelines import schemas
from pipelines.checks import Check
from pipelines.reporting import Progress
from pipelines.shards.cutting import CutClip, CutFailure, ShardConfig, cut_clip
from pipelines.shards.index import INDEX_FILE, ShardError
from pipelines.shards.verify import verify_shards
from pipelines.video.media import media_stat

logger = logging.getLogger("tubelet.shards")

QUARANTINE_FILE = "quarantine.parquet"
BLOCK = tarfile.BLOCKSIZE
SIDECAR = (
    "clip_id", "video_id", "source", "licence", "uploader", "label", "start_pts", "end_pts", "time_base_num",
    "time_base_den", "start_s", "end_s", "frame_rate", "splitter",
)  # fmt: skip


def build_shards(
    folder: Path,
    distinct_folder: Path,
    selection_folder: Path,
    *,
    config: ShardConfig | None = None,
    workers: int = 2,
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Fill `folder` with shard-NNNNNN.tar, shard_index.parquet and quarantine.parquet; returns the summary.

    Every clip with a weight above 0 in `selection_folder`'s selection is cut by `workers` ffmpeg processes at a time. A
    clip that cannot be cut becomes a quarantine row. Raises ShardError when the selection names unknown clips, is
    empty, or nothing could be cut.
    """
    config = config or ShardConfig()
    chosen = _chosen_clips(distinct_folder, selection_folder)
    report = progress or Progress("training_shards", len(chosen), "clips")
    index_rows: list[dict[str, Any]] = []
    failures: list[dict[str, Any]] = []
    with (
        contextlib.closing(_ShardFiles(folder, config.shard_bytes)) as shards,
        tempfile.TemporaryDirectory(dir=folder, prefix=".cuts-") as scratch,
    ):
        for done, (clip, cut) in enumerate(_cut_all(chosen, Path(scratch), config, workers), start=1):
            if isinstance(cut, CutFailure):
                logger.warning("clip %s of %s was not cut: %s: %s", clip["clip_id"], clip["path"], cut.code, cut.detail)
                failures.append(_quarantine_row(clip, cut))
            else:
                index_rows.append(_index_row(clip, cut, *shards.add(_sidecar(clip, cut), cut.data)))
            report(done, len(chosen))
    if not index_rows:
        raise ShardError(
            "no selected clip could be cut", expected="at least one clip", found=f"{len(failures)} failures; first: {failures[0]['detail']}",
            remedy="check that the source files are still where they were when they were probed",
        )  # fmt: skip
    schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, index_rows), folder / INDEX_FILE, schemas.SHARD_INDEX)
    schemas.write_table(schemas.table_of(schemas.QUARANTINE, failures), folder / QUARANTINE_FILE, schemas.QUARANTINE)
    return {
        "clips": len(index_rows),
        "failed": len(failures),
        "failed_share": len(failures) / len(chosen),
        "shards": shards.count,
        "megabytes": round(sum(row["length"] for row in index_rows) / 1e6, 3),
        "frames": sum(row["frames"] for row in index_rows),
        "seconds": sum(row["source_end_s"] - row["source_start_s"] for row in index_rows),
        "source_videos": len({row["video_id"] for row in index_rows}),
        "weight_lost": sum(clip["weight"] for clip in chosen) - sum(row["weight"] for row in index_rows),
        "short_side": config.short_side,
    }


def check_shards(folder: Path, max_failure_share: float = 0.02) -> dict[str, Check]:
    """Blocking checks of `training_shards`, from its files alone."""
    clips = pq.read_metadata(folder / INDEX_FILE).num_rows
    failures = pq.read_metadata(folder / QUARANTINE_FILE).num_rows
    problems = verify_shards(folder)
    return {
        "not_empty": Check(
            passed=clips > 0, expected="at least one training clip", found=str(clips), remedy="select more clips",
        ),
        "bytes_agree": Check(
            passed=not problems, expected="every byte of every tar as the index says",
            found="; ".join(problems[:5]) or "all agree", remedy="delete this artefact and materialize training_shards again",
        ),
        "clips_were_cut": Check(
            passed=failures <= max_failure_share * (clips + failures),
            expected=f"at most {max_failure_share:.1%} of the selected clips failed", found=f"{failures} of {clips + failures}",
            remedy="quarantine.parquet in the artefact names each clip and why",
        ),
    }  # fmt: skip


def _chosen_clips(distinct_folder: Path, selection_folder: Path) -> list[dict[str, Any]]:
    """Rows of `clips` with a positive weight, each with its `weight`, by clip_id."""
    clips = {row["clip_id"]: row for row in schemas.read_table(distinct_folder / "clips.parquet", schemas.CLIPS).to_pylist()}
    selection = schemas.read_table(selection_folder / "selection.parquet", schemas.SELECTION).to_pylist()
    wanted = sorted((row["clip_id"], row["weight"]) for row in selection if row["weight"] > 0)
    unknown = [name for name, _ in wanted if name not in clips]
    if unknown or not wanted:
        raise ShardError(
            "the selection does not fit the distinct clips", expected="at least one clip, all of them known",
            found=f"{len(wanted)} selected, {len(unknown)} unknown ({', '.join(unknown[:3])})",
            remedy="materialize curated_clips again",
        )  # fmt: skip
    return [{**clips[name], "weight": weight} for name, weight in wanted]


def _cut_all(
    clips: list[dict[str, Any]], scratch: Path, config: ShardConfig, workers: int
) -> Iterator[tuple[dict[str, Any], CutClip | CutFailure]]:
    """Cut clips side by side and hand them on in order, with a bounded number of finished ones waiting.

    Threads are enough: each waits for an ffmpeg process of its own.
    """

    def cut(clip: dict[str, Any]) -> CutClip | CutFailure:
        target = scratch / f"{clip['clip_id']}.mp4"
        try:
            return cut_clip(clip, target, config)
        finally:
            target.unlink(missing_ok=True)

    with ThreadPoolExecutor(max(workers, 1), thread_name_prefix="cut") as pool:
        waiting: deque[tuple[dict[str, Any], Future[CutClip | CutFailure]]] = deque()
        try:
            for clip in clips:
                waiting.append((clip, pool.submit(cut, clip)))
                if len(waiting) > 4 * workers:
                    oldest, future = waiting.popleft()
                    yield oldest, future.result()
            while waiting:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class _ShardFiles:
    """Tars written one after another, a new one when the next clip would pass `shard_bytes`."""

    def __init__(self, folder: Path, shard_bytes: int) -> None:
        self.folder, self.shard_bytes, self.count = folder, shard_bytes, 0
        self._handle: BinaryIO | None = None
        self._name = ""

    def add(self, sidecar: dict[str, Any], video: bytes) -> tuple[str, int]:
        """Append `<clip_id>.json` and `<clip_id>.mp4`; returns the shard's name and the offset of the mp4's first byte."""
        text = json.dumps(sidecar, sort_keys=True, indent=1).encode()
        if self._handle is not None and self._handle.tell() + len(text) + len(video) + 2 * BLOCK > self.shard_bytes:
            self.close()
        if self._handle is None:
            self._name = f"shard-{self.count:06d}.tar"
            self._handle = (self.folder / self._name).open("wb")
            self.count += 1
        self._member(f"{sidecar['clip_id']}.json", text)
        return self._name, self._member(f"{sidecar['clip_id']}.mp4", video)

    def _member(self, name: str, data: bytes) -> int:
        assert self._handle is not None
        member = tarfile.TarInfo(name)  # mtime, owner and group stay 0: nothing but the content decides the bytes
        member.size = len(data)
        member.mode = 0o644
        self._handle.write(member.tobuf(tarfile.USTAR_FORMAT))
        offset = self._handle.tell()
        self._handle.write(data + bytes(-len(data) % BLOCK))
        return offset

    def close(self) -> None:
        if self._handle is not None:
            self._handle.write(bytes(2 * BLOCK))
            self._handle.write(bytes(-self._handle.tell() % tarfile.RECORDSIZE))
            self._handle.close()
            self._handle = None


def _sidecar(clip: dict[str, Any], cut: CutClip) -> dict[str, Any]:
    return {name: clip[name] for name in SIDECAR} | {"frames": cut.frames}


def _index_row(clip: dict[str, Any], cut: CutClip, shard: str, offset: int) -> dict[str, Any]:
    return {
        "clip_id": clip["clip_id"], "video_id": clip["video_id"], "shard": shard, "offset": offset, "length": len(cut.data),
        "sha256": hashlib.sha256(cut.data).hexdigest(), "frames": cut.frames, "first_pts_s": cut.first_pts_s,
        "last_pts_s": cut.last_pts_s, "frame_rate": clip["frame_rate"], "weight": clip["weight"], "source": clip["source"],
        "licence": clip["licence"], "source_start_s": clip["start_s"], "source_end_s": clip["end_s"],
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
