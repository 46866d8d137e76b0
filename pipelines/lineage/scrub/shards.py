"""Scrub, the shards: their index against the selection, the clips and the tars, and what was taken down against both."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import schemas
from pipelines.lineage.scrub.batches import CLIP_FILE, QUARANTINE_FILE
from pipelines.lineage.scrub.finding import Finding, Kind, Told, several, words_of
from pipelines.lineage.scrub.graph import current_items
from pipelines.lineage.scrub.pool import SELECTION_FILE
from pipelines.lineage.scrub.rows import Comparison, insist_on_unique, missing_from, rows_at, unequal
from pipelines.lineage.scrub.shelf import Item, Shelf, Unjudged
from pipelines.schemas import CLIPS, QUARANTINE, SELECTION, SHARD_INDEX
from pipelines.shards.index import INDEX_FILE
from pipelines.shards.verify import verify_shards
from pipelines.store import REDACTIONS, redactions
from pipelines.tombstones import FOLDER, Tombstones, read_tombstones, takedown_names

RATIO_TOLERANCE = 1e-6
SPANS = {"video_id": "video_id", "source_start_s": "start_s", "source_end_s": "end_s"}
"""Column of the index -> the column of the clip that it repeats."""
TERMS = ("source", "licence", "uploader")
"""Columns that follow the clip's row of today, as long as it is drawn."""


def check_shard_clips(shelf: Shelf, item: Item) -> Told:
    """What is drawn was selected, and what was selected is drawn, unless it could not be cut or was taken down."""
    index, weight, chosen, wanted = _weights(shelf, item)
    if _bad(weight).any():
        raise Unjudged("its weights are none")
    drawn = index.column("clip_id").filter(pa.array(weight > 0))
    strange = missing_from(drawn, chosen)
    if strange:
        yield item.finding(Kind.SHARD_CLIPS, INDEX_FILE, "weight 0 for clips that were not selected", f"more than 0 for {several(strange)}")
    quarantine = shelf.table(item, QUARANTINE_FILE, QUARANTINE, ["detail"]).column("detail").to_pylist()
    failed = {detail.partition(":")[0].removeprefix("clip ") for detail in quarantine}
    lost = set(missing_from(chosen.filter(pa.array(wanted > 0)), drawn)) - failed
    if lost:
        distinct = shelf.table(shelf.input(item, "distinct_clips"), CLIP_FILE, CLIPS, ["clip_id", "video_id"])
        distinct = distinct.filter(pc.is_in(distinct.column("clip_id"), value_set=pa.array(sorted(lost), pa.string())))
        taken = distinct.column("clip_id").filter(pa.array(_union(shelf).among(distinct.column("clip_id"), distinct.column("video_id"))))
        lost -= set(taken.to_pylist())
    if lost:
        yield item.finding(Kind.SHARD_CLIPS, INDEX_FILE, "every selected clip, but for what the quarantine or a takedown names", f"no weight for {several(sorted(lost))}")


def check_shard_weights(shelf: Shelf, item: Item) -> Told:
    """Clips are drawn as the selection weighs them: all weights in one ratio to it, whatever was lost on the way."""
    index, weight, chosen, wanted = _weights(shelf, item)
    place = pc.index_in(index.column("clip_id"), value_set=chosen.combine_chunks()).fill_null(-1).to_numpy()
    selected = np.append(wanted, 0.0)[place]
    both = (weight > 0) & (selected > 0)
    bad = _bad(weight)
    if bad.any() or not both.any():
        yield item.finding(Kind.SHARD_WEIGHTS, INDEX_FILE, "finite weights, none negative, some above 0", f"others for {several(index.column('clip_id').filter(pa.array(bad | ~both.any())))}")
        return
    ratio = weight[both] / selected[both]
    off = ~(np.abs(ratio / np.median(ratio) - 1) <= RATIO_TOLERANCE)
    if off.any():
        names = several(index.column("clip_id").filter(pa.array(both)).filter(pa.array(off)))
        yield item.finding(Kind.SHARD_WEIGHTS, INDEX_FILE, f"{np.median(ratio):.6g} times the weights of the selection", f"others for {names}")


def _bad(weight: NDArray[np.float64]) -> NDArray[np.bool_]:
    return ~(np.isfinite(weight) & (weight >= 0))


def _weights(shelf: Shelf, item: Item) -> tuple[pa.Table, NDArray[np.float64], pa.ChunkedArray, NDArray[np.float64]]:
    """The index and its weights, the ids of the selected clips and their weights. Raises `Unjudged` when these cannot be told apart."""
    index = shelf.table(item, INDEX_FILE, SHARD_INDEX, ["clip_id", "weight"])
    insist_on_unique(index, item, INDEX_FILE)
    source = shelf.input(item, "curated_clips")
    selection = shelf.table(source, SELECTION_FILE, SELECTION, ["clip_id", "weight"])
    insist_on_unique(selection, source, SELECTION_FILE)
    return index, index.column("weight").to_numpy(), selection.column("clip_id"), selection.column("weight").to_numpy()


def check_shard_rows(shelf: Shelf, item: Item) -> Told:
    """The index repeats what the clips say of themselves; a clip of an earlier pool, which is not drawn, has nothing to be compared with."""
    yield from _other_rows(shelf, item)


def _other_rows(shelf: Shelf, item: Item) -> Iterator[Finding]:
    index = shelf.table(item, INDEX_FILE, SHARD_INDEX)
    clips = shelf.table(shelf.input(item, "distinct_clips"), CLIP_FILE, CLIPS, ["clip_id", *SPANS.values(), *TERMS])
    index = index.filter(pc.is_in(index.column("clip_id"), value_set=clips.column("clip_id").combine_chunks()))
    came = rows_at(clips, "clip_id", index.column("clip_id"))
    terms = pa.array(np.zeros(len(index), bool))
    for name in TERMS if _tells_form(index) else TERMS[:2]:
        terms = pc.or_(terms, unequal(index.column(name), came.column(name)))
    differ = pc.and_(terms, pc.greater(index.column("weight"), 0))
    for mine, theirs in SPANS.items():
        differ = pc.or_(differ, unequal(index.column(mine), came.column(theirs)))
    if pc.any(differ).as_py():
        names = several(index.column("clip_id").filter(differ))
        yield item.finding(Kind.SHARD_ROWS, INDEX_FILE, "video, seconds, source, licence and uploader of the clips", f"others for {names}")


def _tells_form(index: pa.Table) -> bool:
    """Whether an index tells the form of its clips and who uploaded them: one of version 1 does not."""
    return index.column("width").null_count < max(1, len(index))


def check_shard_bytes(shelf: Shelf, item: Item) -> Told:
    """Every clip's bytes in the tars are those that the index names."""
    hurt = sorted(where for where in shelf.damaged if where.startswith(item.place + "/"))
    if hurt:
        raise Unjudged(f"{several(hurt)} of it damaged or gone")
    index = shelf.table(item, INDEX_FILE, SHARD_INDEX, ["clip_id", "weight"])
    insist_on_unique(index, item, INDEX_FILE)
    if _bad(index.column("weight").to_numpy()).any() or any(True for _ in _other_rows(shelf, item)):
        raise Unjudged("its index does not agree with the selection and the clips")
    problems = verify_shards(item.folder)
    if problems:
        yield item.finding(Kind.SHARD_BYTES, INDEX_FILE, "tars that hold what the index says", "; ".join(problems[:3]) + (f" and {len(problems) - 3} more" if len(problems) > 3 else ""))


def check_tombstones(shelf: Shelf) -> Told:
    """Tombstones can be read, and every takedown has its own."""
    for name in takedown_names(shelf.root):
        file = f"{FOLDER}/{name}.parquet"
        try:
            schemas.read_table(shelf.root / file, schemas.TOMBSTONES)
        except Exception as error:  # readers of damaged files raise all kinds of errors
            yield Finding(Kind.UNREADABLE, "", file, "table tombstones", words_of(error), "restore that file: without it what was taken down would be used again")
    reports = {path.name for path in (shelf.root / "takedowns").glob("[!.]*") if path.is_dir()}
    for name in sorted(reports - set(takedown_names(shelf.root))):
        yield Finding(
            Kind.TAKEDOWN, "", f"takedowns/{name}", f"{FOLDER}/{name}.parquet", "no such file",
            "restore that file, or take the same down again: what its report names is used until then",
        )  # fmt: skip


def _union(shelf: Shelf) -> Tombstones:
    """What is taken down; raises `Unjudged` when a table of it cannot be read, which is a finding of `check_tombstones`."""
    try:
        return read_tombstones(shelf.root)
    except Exception as error:  # readers of damaged files raise all kinds of errors
        raise Unjudged(f"{FOLDER} cannot be read: {words_of(error)}") from error


def check_served(shelf: Shelf, item: Item) -> Told:
    """Nothing that was taken down is drawn from the current shards, and no bytes were overwritten but those."""
    index = shelf.table(item, INDEX_FILE, SHARD_INDEX, ["clip_id", "video_id", "weight"])
    forbidden = _union(shelf).among(index.column("clip_id"), index.column("video_id"))
    gone = _overwritten(item)
    missing = sorted(gone & set(index.column("clip_id").filter(pa.array(~forbidden)).to_pylist()))
    if missing:
        yield item.finding(Kind.REDACTION, REDACTIONS, "clips that a takedown names", f"overwritten without one: {several(missing)}", "restore the tombstones, or materialize it again")
    if item not in current_items(shelf, item.asset):
        return
    served = forbidden & (index.column("weight").to_numpy() > 0)
    names = sorted(set(index.column("clip_id").filter(pa.array(served)).to_pylist()) - gone)
    if names:
        yield item.finding(Kind.SERVED, INDEX_FILE, "weight 0 for what was taken down", f"weight for {several(names)}", "materialize training_shards again, or run the takedown with --compact")


def _overwritten(item: Item) -> set[str]:
    """Clips whose bytes a takedown has overwritten."""
    try:
        return {clip for entry in redactions(item.folder).values() for clip in entry["clips"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise Unjudged("its REDACTIONS.json cannot be read") from None


COMPARISONS = (
    Comparison("clips of the shards", ("training_shards",), check_shard_clips),
    Comparison("weights of the shards", ("training_shards",), check_shard_weights),
    Comparison("rows of the shard index", ("training_shards",), check_shard_rows),
    Comparison("bytes of the shards", ("training_shards",), check_shard_bytes, reads_bytes=True),
    Comparison("takedowns and the shards", ("training_shards",), check_served),
)
