"""Scrub, the batches: videos, clips and their vectors against one another and against the arithmetic that made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.identity import clip_id
from pipelines.lineage.scrub.finding import Finding, Kind, Told, several, words_of
from pipelines.lineage.scrub.rows import Comparison, insist_on_unique, missing_from
from pipelines.lineage.scrub.shelf import Item, Shelf
from pipelines.schemas import CLIPS, QUARANTINE, VIDEOS
from pipelines.sources import registry
from pipelines.store import Store

TOLERANCE_S = 1e-6
UNIT_TOLERANCE = 1e-4
ROWS_AT_ONCE = 65_536
VIDEO_FILE, CLIP_FILE, QUARANTINE_FILE = "videos.parquet", "clips.parquet", "quarantine.parquet"
IDS, VECTORS, LOOKS, ENCODER = "clip_ids.json", "embeddings.npy", "looks.npy", "encoder.json"


def check_batch_files(shelf: Shelf, item: Item) -> Told:
    """Each file of the batch's record is one row of the probe, a video or a reject, and the probe is of that record."""
    file = f"batches/{item.partition}.json"
    record = "restore that record, or give its files a new batch"
    try:
        batch = registry.read_batch(Store(shelf.root), item.partition)
    except Exception as error:  # a damaged record raises whatever its content leads to
        yield Finding(Kind.UNREADABLE, item.name, file, f"the record of ingest batch {item.partition}", words_of(error), record)
        return
    if item.manifest.config.get("batch") != batch.digest:
        yield Finding(Kind.BATCH, item.name, file, f"batch {item.manifest.config.get('batch')}", batch.digest, record)
        return
    insist_on_unique(shelf.table(item, VIDEO_FILE, VIDEOS, ["path"]), item, VIDEO_FILE, ("path",))
    paths = [path for name, schema in ((VIDEO_FILE, VIDEOS), (QUARANTINE_FILE, QUARANTINE)) for path in shelf.table(item, name, schema, ["path"]).column("path").to_pylist()]
    rows, files = Counter(paths), Counter(one.path for one in batch.files)
    if rows != files:
        yield item.finding(Kind.BATCH, VIDEO_FILE, f"a row for each of {len(batch.files)} files", f"no row for {several(files - rows)}, too many for {several(rows - files)}")


def check_videos_known(shelf: Shelf, item: Item) -> Told:
    """Every clip is of a video of its batch."""
    videos = shelf.table(shelf.input(item, "videos"), VIDEO_FILE, VIDEOS, ["video_id"])
    unknown = missing_from(shelf.table(item, CLIP_FILE, CLIPS, ["video_id"]).column("video_id"), videos.column("video_id"))
    if unknown:
        yield item.finding(Kind.UNKNOWN_VIDEO, CLIP_FILE, "clips of the batch's videos", f"clips of videos that it does not have: {several(unknown)}")


def check_clip_ids(shelf: Shelf, item: Item) -> Told:
    """Every clip_id is the digest of the span that the clip's row names."""
    columns = ["clip_id", "video_id", "start_pts", "end_pts", "time_base_num", "time_base_den", "splitter"]
    table = shelf.table(item, CLIP_FILE, CLIPS, columns)
    wrong = [
        found for found, video, start, end, numerator, denominator, splitter in _rows(table)
        if found != clip_id(video, start, end, (numerator, denominator), splitter)
    ]  # fmt: skip
    if wrong:
        yield item.finding(Kind.CLIP_ID, CLIP_FILE, "clip_id: the digest of video, span, time base and splitter", f"another in {several(wrong)}")


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(table), ROWS_AT_ONCE):
        yield from zip(*(column.to_pylist() for column in table.slice(start, ROWS_AT_ONCE).columns), strict=True)


def check_clip_times(shelf: Shelf, item: Item) -> Told:
    """Seconds are the time stamps in seconds, counted from the video's first frame (known for clips, not for targets)."""
    table = shelf.table(item, CLIP_FILE, CLIPS, ["clip_id", "path", "start_pts", "end_pts", "time_base_num", "time_base_den", "start_s", "end_s"])
    start, end, numerator, denominator, start_s, end_s = (table.column(name).to_numpy().astype(np.float64) for name in table.column_names[2:])
    tick = numerator / denominator
    first = start_s
    if item.asset == "clips":
        videos = shelf.table(shelf.input(item, "videos"), VIDEO_FILE, VIDEOS, ["path", "start_pts"])
        zero = videos.column("start_pts").take(pc.index_in(table.column("path"), value_set=videos.column("path").combine_chunks()))
        zero_pts = zero.to_numpy().astype(np.float64)  # null, and so not a number, where the video is not known: a finding of its own
        first = np.where(np.isnan(zero_pts), start_s, (start - zero_pts) * tick)
    off = ~((np.abs(start_s - first) <= TOLERANCE_S) & (np.abs(end_s - first - (end - start) * tick) <= TOLERANCE_S) & (end > start))
    if off.any():
        names = table.column("clip_id").filter(pa.array(off)).to_pylist()
        yield item.finding(Kind.CLIP_TIMES, CLIP_FILE, "start_s and end_s that are start_pts and end_pts in seconds", f"others in {several(names)}")


def check_looks(shelf: Shelf, item: Item) -> Told:
    """There is one look for each clip."""
    if LOOKS in item.manifest.files:
        clips, looks = len(shelf.table(item, CLIP_FILE, CLIPS, ["clip_id"])), len(shelf.array(item, LOOKS))
        if clips != looks:
            yield item.finding(Kind.ROWS, LOOKS, f"{clips} looks, one for each clip", f"{looks}")


def check_vector_rows(shelf: Shelf, item: Item) -> Told:
    """Vectors, their ids and the clips they are of have the same rows; only clips in the quarantine have no vector."""
    ids, vectors = shelf.json(item, IDS, list), shelf.array(item, VECTORS)
    if len(ids) != len(vectors):
        yield item.finding(Kind.ROWS, VECTORS, f"{len(ids)} vectors, one for each id in {IDS}", f"{len(vectors)}")
        return
    source = item if item.asset == "distinct_clips" else shelf.input(item, "clips" if item.asset == "clip_embeddings" else "target_videos")
    clips = shelf.table(source, CLIP_FILE, CLIPS, ["clip_id", "path"])
    without = clips_without_vector(shelf, item)
    wanted = [row[0] for row in _rows(clips) if row not in without]
    if wanted != ids:
        lost, strange = Counter(wanted) - Counter(ids), Counter(ids) - Counter(wanted)
        found = f"none for {several(lost)}, and some for {several(strange)}" if lost or strange else "the same in another order"
        yield item.finding(Kind.ROWS, IDS, f"vectors of the {len(wanted)} clips of {source.name}, in their order", found)


def clips_without_vector(shelf: Shelf, embeddings: Item) -> set[tuple[str, str]]:
    """(clip_id, path) of the clips that an embeddings artefact quarantined: the detail begins with the id."""
    if QUARANTINE_FILE not in embeddings.manifest.files:
        return set()
    table = shelf.table(embeddings, QUARANTINE_FILE, QUARANTINE, ["path", "detail"])
    return {(detail.partition(":")[0], path) for path, detail in _rows(table)}


def check_vectors(shelf: Shelf, item: Item) -> Told:
    """Every vector is finite and of unit length."""
    vectors, bad = shelf.array(item, VECTORS), 0
    for start in range(0, len(vectors), ROWS_AT_ONCE):
        lengths = np.linalg.norm(vectors[start : start + ROWS_AT_ONCE].astype(np.float64), axis=1)
        bad += int((~(np.abs(lengths - 1) <= UNIT_TOLERANCE)).sum())
    if bad:
        yield item.finding(Kind.VECTORS, VECTORS, "finite vectors of length 1", f"{bad} of {len(vectors)} are not")


def check_encoder(shelf: Shelf, item: Item) -> Told:
    """The encoder is named, and is the one that was asked for."""
    digest = shelf.json(item, ENCODER, dict).get("digest")
    asked = item.manifest.config.get("encoder_digest", digest)
    if not isinstance(digest, str) or digest != asked:
        yield item.finding(Kind.ENCODER, ENCODER, f"the digest of the encoder that was asked for{f', {asked}' if asked else ''}", str(digest))


EMBEDDED = ("clip_embeddings", "target_embeddings", "distinct_clips")
COMPARISONS = (
    Comparison("files of the batch", ("videos",), check_batch_files),
    Comparison("videos of the clips", ("clips",), check_videos_known),
    Comparison("ids of the clips", ("clips", "target_videos"), check_clip_ids),
    Comparison("times of the clips", ("clips", "target_videos"), check_clip_times),
    Comparison("looks of the clips", ("clips", "target_videos", "distinct_clips"), check_looks),
    Comparison("rows of the vectors", EMBEDDED, check_vector_rows),
    Comparison("encoder of the vectors", EMBEDDED[:2], check_encoder),
    Comparison("lengths of the vectors", EMBEDDED, check_vectors, reads_bytes=True),
)
