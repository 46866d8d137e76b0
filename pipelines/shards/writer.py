"""Selected clips into WebDataset tars and their Parquet index: equal inputs and equal ffmpeg give equal bytes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schemas
from pipelines.checks import Check
from pipelines.parts import Part, open_parts
from pipelines.reporting import Progress
from pipelines.shards.carrying import Carried, carry, place
from pipelines.shards.filling import QUARANTINE_FILE, Jobs, write_shards
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
    folder.mkdir(parents=True, exist_ok=True)  # now and not later: a folder that is taken away under way must not come back
    with open_parts(work) as parts, one_writer(parts.root):
        carried = carry(parts, base, set(chosen.column("clip_id").to_pylist()), tombstones, config, workers, report)
        there = pc.is_in(chosen.column("clip_id"), value_set=carried.rows.column("clip_id").combine_chunks())
        jobs = Jobs(chosen.filter(pc.invert(there)), carried.moves)
        shards = write_shards(parts, jobs, carried.first_number, config, workers, report)
        written, failures = (_joined(shards, *table) for table in ((INDEX_FILE, schemas.SHARD_INDEX), (QUARANTINE_FILE, schemas.QUARANTINE)))
        index = _current(pa.concat_tables([carried.rows, written]), chosen)
        if not pc.any(pc.greater(index.column("weight"), 0)).as_py():
            for part in shards:  # nothing worth keeping: the sources may be back when this is asked again
                shutil.rmtree(part.folder)
            raise ShardError(
                "no selected clip could be cut", expected="at least one clip", found=f"{len(failures)} failures; first: {failures['detail'][0]}",
                remedy="check that the source files are still where they were when they were probed",
            )  # fmt: skip
        delta = [tar for part in shards for tar in sorted(part.folder.glob("*.tar"))]
        for tar in (*carried.tars, *delta):
            place(tar, folder / tar.name)
        schemas.write_table(index, folder / INDEX_FILE, schemas.SHARD_INDEX)
        schemas.write_table(failures, folder / QUARANTINE_FILE, schemas.QUARANTINE)
        moved = len(carried.moves)
        return {
            **_counts(index, chosen, len(failures)), **_origins(carried, len(delta), len(written) - moved, moved),
            "weight_taken_down": weight_taken_down, "short_side": config.short_side, "frame_rate": config.frame_rate,
            "cost": parts.cost(len(jobs), "clips"),
        }  # fmt: skip


def check_shards(folder: Path, max_failure_share: float = 0.02, tombstones: Tombstones | None = None) -> dict[str, Check]:
    """Blocking checks of `training_shards`, from its files and what has been taken down by now."""
    forbidden = tombstones or Tombstones()
    index = schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX, ["clip_id", "video_id", "weight"])
    drawn = index.filter(pc.greater(index.column("weight"), 0))
    returned = drawn.column("clip_id").filter(pa.array(forbidden.among(drawn.column("clip_id"), drawn.column("video_id")))).to_pylist()
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


def _chosen_clips(distinct_folder: Path, selection_folder: Path, tombstones: Tombstones) -> tuple[pa.Table, float]:
    """The rows of `clips` with a positive weight, by clip_id, with their `weight`; and the weight that was taken down."""
    clips = schemas.read_table(distinct_folder / "clips.parquet", schemas.CLIPS)
    selection = schemas.read_table(selection_folder / "selection.parquet", schemas.SELECTION, ["clip_id", "video_id", "weight"])
    selection = selection.filter(pc.greater(selection.column("weight"), 0)).sort_by("clip_id")
    place = pc.index_in(selection.column("clip_id"), value_set=clips.column("clip_id").combine_chunks())
    taken = pa.array(tombstones.among(selection.column("clip_id"), selection.column("video_id")))
    unknown, mine = pc.is_null(place), pc.and_(pc.is_valid(place), pc.invert(taken))
    chosen = clips.take(place.filter(mine)).append_column("weight", selection.column("weight").filter(mine))
    if len(chosen) == 0 or pc.any(unknown).as_py():
        names = selection.column("clip_id").filter(unknown).to_pylist()
        raise ShardError(
            "the selection does not fit the distinct clips", expected="at least one clip, all of them known and one not taken down",
            found=f"{len(selection)} selected, {len(names)} unknown ({', '.join(names[:3])}), {pc.sum(taken).as_py() or 0} taken down",
            remedy="materialize curated_clips again",
        )  # fmt: skip
    return chosen, float(pc.sum(selection.column("weight").filter(taken)).as_py() or 0.0)


def _joined(parts: list[Part], name: str, schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(schemas.read_table(part.folder / name, schema) for part in parts)]).combine_chunks()


def _current(index: pa.Table, chosen: pa.Table) -> pa.Table:
    """The index by clip_id as the selection of today has it: weight 0 for what it does not hold."""
    place = pc.index_in(index.column("clip_id"), value_set=chosen.column("clip_id").combine_chunks())
    index = index.set_column(index.schema.get_field_index("weight"), "weight", pa.array(np.zeros(len(index))))
    for name in CURRENT:
        values = pc.if_else(pc.is_valid(place), chosen.column(name).take(place), index.column(name))
        index = index.set_column(index.schema.get_field_index(name), name, values)
    return index.sort_by("clip_id").combine_chunks()


def _counts(index: pa.Table, chosen: pa.Table, failed: int) -> dict[str, Any]:
    """What the set holds: of the clips that are drawn from, but where it says otherwise."""
    drawn = index.filter(pc.greater(index.column("weight"), 0))
    stored_bytes, drawn_bytes = (pc.sum(some.column("length")).as_py() or 0 for some in (index, drawn))
    seconds = pc.subtract(drawn.column("source_end_s"), drawn.column("source_start_s"))
    return {
        "clips": len(drawn), "clips_stored": len(index), "clips_copied": pc.sum(pc.equal(drawn.column("form"), COPIED)).as_py() or 0, "failed": failed,
        "failed_share": failed / len(chosen), "shards": pc.count_distinct(index.column("shard")).as_py(), "megabytes": round(drawn_bytes / 1e6, 3),
        "dead_megabytes": round((stored_bytes - drawn_bytes) / 1e6, 3), "frames": pc.sum(drawn.column("frames")).as_py() or 0,
        "seconds": pc.sum(seconds).as_py() or 0.0, "source_videos": pc.count_distinct(drawn.column("video_id")).as_py(),
        "weight_lost": float(chosen.column("weight").to_numpy().sum() - drawn.column("weight").to_numpy().sum()),
    }  # fmt: skip


def _origins(carried: Carried, delta: int, cut: int, moved: int) -> dict[str, int]:
    """Where tars and clips come from: an earlier set as they were, an earlier set clip by clip, or the source files."""
    return {
        "carried_shards": len(carried.tars), "delta_shards": delta, "compacted_shards": carried.compacted, "clips_cut": cut, "clips_moved": moved,
    }  # fmt: skip
