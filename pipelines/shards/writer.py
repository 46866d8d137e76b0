"""Selected clips into WebDataset tars and their Parquet index: equal inputs and equal ffmpeg give equal bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pipelines import schemas
from pipelines.checks import Check
from pipelines.parts import Part, open_parts
from pipelines.reporting import Progress
from pipelines.shards.carrying import Carried, Move, carry, place
from pipelines.shards.filling import QUARANTINE_FILE, write_shards
from pipelines.shards.form import COPIED, ShardConfig
from pipelines.shards.index import INDEX_FILE, ShardError
from pipelines.shards.one_writer import one_writer
from pipelines.shards.verify import verify_shards
from pipelines.tombstones import Tombstones

CURRENT = ("weight", "source", "licence", "uploader")
"""Columns of the index that follow the selection and the clips table of today, also for clips cut long ago."""


def build_shards(
    folder: Path,
    distinct_folder: Path,
    selection_folder: Path,
    *,
    config: ShardConfig | None = None,
    base: Path | None = None,
    tombstones: Tombstones | None = None,
    workers: int = 2,
    progress: Callable[..., None] | None = None,
    work: Path | None = None,
) -> dict[str, Any]:
    """Fill `folder` with shard-NNNNNN.tar, shard_index.parquet and quarantine.parquet; returns the summary.

    Every clip with a weight above 0 in `selection_folder`'s selection, but for those that `tombstones` cover, is drawn
    from the tars of `base` (made with the same `config.clip_form`) or cut by `workers` ffmpeg processes at a time. A clip
    that cannot be cut becomes a quarantine row. Clips in the tars that the selection does not hold have weight 0.
    Finished shards are parts in `work`. Raises ShardError when the selection names unknown clips, is empty, or nothing
    could be cut, and when another writer is at work there; `OSError` when the disk is full.
    """
    config, tombstones = config or ShardConfig(), tombstones or Tombstones()
    chosen, weight_taken_down = _chosen_clips(distinct_folder, selection_folder, tombstones)
    report = progress or Progress("training_shards", len(chosen), "clips")
    with open_parts(work) as parts, one_writer(parts.root):
        carried = carry(parts, base, set(chosen), tombstones, config, workers, report)
        there = {row["clip_id"] for row in carried.rows}
        jobs = [carried.moves.get(name) or clip for name, clip in chosen.items() if name not in there]
        shards = write_shards(parts, jobs, carried.first_number, config, workers, report)
        written = [row for part in shards for row in _rows(part, INDEX_FILE, schemas.SHARD_INDEX)]
        failures = [row for part in shards for row in _rows(part, QUARANTINE_FILE, schemas.QUARANTINE)]
        rows = [_current(row, chosen.get(row["clip_id"])) for row in (*carried.rows, *written)]
        if not any(row["weight"] > 0 for row in rows):
            for part in shards:  # nothing worth keeping: the sources may be back when this is asked again
                shutil.rmtree(part.folder)
            raise ShardError(
                "no selected clip could be cut", expected="at least one clip", found=f"{len(failures)} failures; first: {failures[0]['detail']}",
                remedy="check that the source files are still where they were when they were probed",
            )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)  # a second writer, refused by now, may have cleared the empty draft away
        delta = [tar for part in shards for tar in sorted(part.folder.glob("*.tar"))]
        for tar in (*carried.tars, *delta):
            place(tar, folder / tar.name)
        rows.sort(key=lambda row: row["clip_id"])
        schemas.write_table(schemas.table_of(schemas.SHARD_INDEX, rows), folder / INDEX_FILE, schemas.SHARD_INDEX)
        schemas.write_table(schemas.table_of(schemas.QUARANTINE, failures), folder / QUARANTINE_FILE, schemas.QUARANTINE)
        moved = sum(isinstance(job, Move) for job in jobs)
        return {
            **_counts(rows, chosen, failures), **_origins(carried, len(delta), len(written) - moved, moved),
            "weight_taken_down": weight_taken_down, "short_side": config.short_side, "frame_rate": config.frame_rate,
            "cost": parts.cost(len(jobs), "clips"),
        }  # fmt: skip


def check_shards(folder: Path, max_failure_share: float = 0.02, tombstones: Tombstones | None = None) -> dict[str, Check]:
    """Blocking checks of `training_shards`, from its files and what has been taken down by now."""
    forbidden = tombstones or Tombstones()
    index = schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX, ["clip_id", "video_id", "weight"]).to_pylist()
    drawn = [row for row in index if row["weight"] > 0]
    returned = [row["clip_id"] for row in drawn if forbidden.covers(row["clip_id"], row["video_id"])]
    failures = len(schemas.read_table(folder / QUARANTINE_FILE, schemas.QUARANTINE))
    problems = verify_shards(folder)
    return {
        "not_empty": Check(
            passed=len(drawn) > 0, expected="at least one training clip", found=str(len(drawn)), remedy="select more clips",
        ),
        "bytes_agree": Check(
            passed=not problems, expected="every byte of every tar as the index says",
            found="; ".join(problems[:5]) or "all agree", remedy="materialize training_shards again with rewrite",
        ),
        "clips_were_cut": Check(
            passed=failures <= max_failure_share * (len(drawn) + failures),
            expected=f"at most {max_failure_share:.1%} of the selected clips failed", found=f"{failures} of {len(drawn) + failures}",
            remedy="quarantine.parquet in the artefact names each clip and why",
        ),
        "nothing_taken_down": Check(
            passed=not returned, expected="no clip that was taken down is drawn", found=", ".join(returned[:5]) or "none",
            remedy="materialize training_shards again: it leaves out what has been taken down by then",
        ),
    }  # fmt: skip


def _chosen_clips(distinct_folder: Path, selection_folder: Path, tombstones: Tombstones) -> tuple[dict[str, dict[str, Any]], float]:
    """Rows of `clips` with a positive weight by clip_id, in its order, each with its `weight`; and the weight taken down."""
    clips = {row["clip_id"]: row for row in schemas.read_table(distinct_folder / "clips.parquet", schemas.CLIPS).to_pylist()}
    selection = schemas.read_table(selection_folder / "selection.parquet", schemas.SELECTION, ["clip_id", "video_id", "weight"]).to_pylist()
    wanted = sorted((row["clip_id"], row["video_id"], row["weight"]) for row in selection if row["weight"] > 0)
    unknown = [name for name, _, _ in wanted if name not in clips]
    chosen = {name: {**clips[name], "weight": weight} for name, video, weight in wanted if name in clips and not tombstones.covers(name, video)}
    if unknown or not chosen:
        raise ShardError(
            "the selection does not fit the distinct clips", expected="at least one clip, all of them known and one not taken down",
            found=f"{len(wanted)} selected, {len(unknown)} unknown ({', '.join(unknown[:3])})",
            remedy="materialize curated_clips again",
        )  # fmt: skip
    return chosen, float(sum(weight for name, _, weight in wanted if name not in chosen))


def _rows(part: Part, name: str, schema: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = schemas.read_table(part.folder / name, schema).to_pylist()
    return rows


def _current(row: dict[str, Any], clip: dict[str, Any] | None) -> dict[str, Any]:
    """An index row as the selection of today has it: weight 0 for what it does not hold."""
    return {**row, "weight": 0.0} if clip is None else {**row, **{name: clip[name] for name in CURRENT}}


def _counts(rows: list[dict[str, Any]], chosen: dict[str, dict[str, Any]], failures: list[dict[str, Any]]) -> dict[str, Any]:
    """What the set holds: of the clips that are drawn from, but where it says otherwise."""
    drawn = [row for row in rows if row["weight"] > 0]
    stored_bytes, drawn_bytes = (sum(row["length"] for row in some) for some in (rows, drawn))
    return {
        "clips": len(drawn), "clips_stored": len(rows), "clips_copied": sum(row["form"] == COPIED for row in drawn), "failed": len(failures),
        "failed_share": len(failures) / len(chosen), "shards": len({row["shard"] for row in rows}), "megabytes": round(drawn_bytes / 1e6, 3),
        "dead_megabytes": round((stored_bytes - drawn_bytes) / 1e6, 3), "frames": sum(row["frames"] for row in drawn),
        "seconds": sum(row["source_end_s"] - row["source_start_s"] for row in drawn), "source_videos": len({row["video_id"] for row in drawn}),
        "weight_lost": float(np.sum([clip["weight"] for clip in chosen.values()]) - np.sum([row["weight"] for row in drawn])),
    }  # fmt: skip


def _origins(carried: Carried, delta: int, cut: int, moved: int) -> dict[str, int]:
    """Where tars and clips come from: an earlier set as they were, an earlier set clip by clip, or the source files."""
    return {
        "carried_shards": len(carried.tars), "delta_shards": delta, "compacted_shards": carried.compacted, "clips_cut": cut, "clips_moved": moved,
    }  # fmt: skip
