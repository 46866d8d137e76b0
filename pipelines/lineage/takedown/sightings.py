"""Every table of a store that names videos or clips, read one after another: current artefacts and all earlier ones.

A video whose source rows are gone is still found by a shard index that names it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schemas
from pipelines.lineage.tree import every_artefact
from pipelines.shards.index import INDEX_FILE
from pipelines.store import Artefact, Store

VIDEO_TABLES = {
    "videos": ("videos.parquet", schemas.VIDEOS), "clips": ("clips.parquet", schemas.CLIPS), "distinct_clips": ("clips.parquet", schemas.CLIPS),
    "target_videos": ("clips.parquet", schemas.CLIPS), "training_shards": (INDEX_FILE, schemas.SHARD_INDEX),
}  # fmt: skip
"""The tables that know a clip or a video by name; any of them may outlive the others."""
FACTS = ("video_id", "path", "source", "licence", "uploader")
SPAN = ("clip_id", "video_id", "path", "start_s", "end_s")
SPAN_SCHEMA = pa.schema([pa.field(name, pa.float64() if name.endswith("_s") else pa.string()) for name in SPAN])
SHARD_SPAN = {"start_s": "source_start_s", "end_s": "source_end_s"}
"""What a shard index calls them."""


@dataclass(frozen=True, eq=False)
class Sighting:
    """What one artefact says: `facts` of videos, one row for each different one (FACTS; null where it does not tell)."""

    artefact: Artefact
    facts: pa.Table


def sightings(store: Store) -> Iterator[Sighting]:
    """The facts on videos of every artefact that has any, in the order the artefacts were made."""
    for artefact in every_artefact(store):
        name, schema = VIDEO_TABLES.get(artefact.asset, ("", None))
        if schema is None or not (artefact.path / name).is_file():
            continue
        own = [column for column in FACTS if column in schema.names]
        table = schemas.read_table(artefact.path / name, schema, own)
        for column in FACTS:
            if column not in own:
                table = table.append_column(column, pa.nulls(len(table), pa.string()))
        yield Sighting(artefact, table.select(list(FACTS)).group_by(list(FACTS)).aggregate([]))


def clips_of_videos(store: Store, video_ids: Collection[str]) -> pa.Table:
    """Every clip of these videos that any table knows (SPAN; `path` is null for what only a shard index knows), by clip_id.

    Clips of target sets are not among them: they are measured with, never served.
    """
    return _spans(store, "video_id", video_ids)


def clips_by_id(store: Store, clip_ids: Collection[str]) -> pa.Table:
    """As `clips_of_videos`, for clips by their ids."""
    return _spans(store, "clip_id", clip_ids)


def _spans(store: Store, column: str, values: Collection[str]) -> pa.Table:
    wanted, found = pa.array(sorted(values), pa.string()), [SPAN_SCHEMA.empty_table()]
    for artefact in every_artefact(store) if len(wanted) else []:
        name, schema = VIDEO_TABLES.get(artefact.asset, ("", None))
        if schema is None or "clip_id" not in schema.names or artefact.asset == "target_videos" or not (artefact.path / name).is_file():
            continue
        own = [SHARD_SPAN.get(field, field) if schema is schemas.SHARD_INDEX else field for field in SPAN]
        table = schemas.read_table(artefact.path / name, schema, [field for field in own if field in schema.names])
        table = table.filter(pc.is_in(table.column(column), value_set=wanted))
        if "path" not in table.schema.names:
            table = table.append_column("path", pa.nulls(len(table), pa.string()))
        table = table.select([field if field in table.schema.names else "path" for field in own]).rename_columns(list(SPAN))
        found.append(table.cast(SPAN_SCHEMA))
    # One row a clip: the first path by its name, which comes before none.
    order = [("clip_id", "ascending"), ("path", "ascending")]
    whole = pa.concat_tables(found).sort_by(order).combine_chunks()
    ids = whole.column("clip_id")
    first = pc.not_equal(ids[1:], ids[:-1]) if len(whole) else pa.chunked_array([], pa.bool_())
    return whole.filter(pa.chunked_array([pa.array([True] if len(whole) else [], pa.bool_()), *first.chunks]))
