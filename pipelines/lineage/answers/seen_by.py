"""Which checkpoints of a store saw some clips, how often and how long, and what stands on those checkpoints."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import InputError
from pipelines.lineage.answers.artefact import takedowns_of
from pipelines.lineage.shown import UNKNOWN, Shown, Videos, join, shown_in, video_rows
from pipelines.lineage.spans import merge_by_group
from pipelines.lineage.trainings import Trainings, borrowed_weights
from pipelines.lineage.tree import current_paths, descendants, every_artefact
from pipelines.store import Artefact, Store

Group = Literal["source", "licence", "uploader"]


def seen_by(store: Store, trainings: Trainings, videos: Videos, pick: Callable[[pa.Table], pa.ChunkedArray]) -> tuple[dict[str, Any], Shown]:
    """The checkpoints whose shards held the clips that `pick` (a mask over columns of `shown.clips_of`) takes; and what all trainings
    showed of them, each counted once.

    `checkpoints`, most seconds first: phases {phase: samples} of the whole way to that checkpoint, videos, clips, samples, seconds,
    distinct_seconds, share_of_samples (of all it saw). `stands_on_them`: what was made from one that saw a sample. `untold`: checkpoints
    whose shards are gone, with the reason. `borrowed`: weights from elsewhere that checkpoints of the store went on from.
    """
    known, untold = trainings.of_store()
    current = current_paths(store)
    parts: dict[str, Shown] = {}
    checkpoints: list[tuple[Artefact, dict[str, Any]]] = []
    for checkpoint, behind in known:
        for one in behind:
            if str(one.checkpoint.path) not in parts:
                whole = shown_in(one, videos)
                parts[str(one.checkpoint.path)] = whole.where(np.asarray(pick(whole.clips)))
        own = join([parts[str(one.checkpoint.path)] for one in behind])
        if len(own):
            checkpoints.append((checkpoint, _row(checkpoint, own, sum(one.samples for one in behind), checkpoint.path in current)))
    saw = [checkpoint for checkpoint, row in checkpoints if row["samples"]]
    names = {checkpoint.path for checkpoint, _ in known}
    standing = [item for item in descendants(store, saw) if item.path not in names]
    return {
        "checkpoints": sorted((row for _, row in checkpoints), key=lambda row: (-row["seconds"], row["checkpoint"], row["digest"])),
        "stands_on_them": [{"artefact": item.key, "digest": item.digest, "current": item.path in current} for item in standing],
        "untold": [{"checkpoint": name, "why": why} for name, why in untold.items()],
        "borrowed": borrowed_weights(store, every_artefact(store)),
    }, join(list(parts.values()))  # fmt: skip


def _row(checkpoint: Artefact, own: Shown, samples: int, current: bool) -> dict[str, Any]:
    counts = {row["name"]: row["samples"] for row in own.by("phase")}
    total = own.total
    return {
        "checkpoint": checkpoint.key, "digest": checkpoint.digest, "current": current, "phases": counts, **total,
        "share_of_samples": total["samples"] / samples if samples else 0.0,
    }  # fmt: skip


def spans_of(shown: Shown) -> list[list[float]]:
    """The distinct spans of the source, in s; for clips of one video."""
    return merge_by_group(np.zeros(len(shown.spans), np.int64), shown.spans)[1].tolist()


def about_group(store: Store, column: Group, value: str, trainings: Trainings | None = None) -> dict[str, Any]:
    """Which checkpoints saw clips of one source, licence or uploader ("unknown", or nothing, for those without), and which videos.

    Raises `InputError` with the nearest names when no video and no shards carry that one.
    """
    trainings = trainings or Trainings(store)
    videos = Videos.of(every_artefact(store))
    unknown = value in ("", UNKNOWN)

    def carries(table: pa.Table) -> pa.ChunkedArray:
        own = pc.fill_null(table[column], "")
        return pc.equal(own, "" if unknown else value)

    listed = videos.table.filter(carries(videos.table))

    def pick(clips: pa.Table) -> pa.ChunkedArray:
        # By the shards or by the batches: what was corrected in one of them must not be lost by the other.
        return pc.or_(carries(clips), pc.is_in(clips["video_id"], value_set=listed["video_id"].combine_chunks()))

    answer, shown = seen_by(store, trainings, videos, pick)
    if not len(listed) and not len(shown):
        drawn = (name for one in trainings.opened for name in one.pool.column(column))
        names = sorted({name for name in (*videos.table[column].unique().to_pylist(), *drawn) if name})
        close = difflib.get_close_matches(value, names, 5, 0.3) or names[:5]
        raise InputError(
            f"no video of this store has the {column} {value}", expected=f"the {column} of a video",
            found=f"nearest: {', '.join(close) or 'none'}" + (f"; and {len(answer['untold'])} checkpoints whose shards cannot be told" if answer["untold"] else ""),
            remedy="names are compared letter by letter",
        )  # fmt: skip
    return {
        "subject": {"kind": column, "name": value or UNKNOWN}, "notes": [f"{len(listed)} videos carry it in the batches' tables"], **answer,
        "total": shown.total, "videos": sorted(video_rows(shown, videos), key=lambda row: (-row["seconds"], row["path"], row["video_id"])),
        "takedowns": takedowns_of(store, shown),
    }  # fmt: skip
