"""Scrub, the tables: what every comparison of tables needs, and that each table can be read as what it says it is."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines import schemas
from pipelines.errors import Reject, Removal
from pipelines.lineage.scrub.finding import Kind, Told, several, words_of
from pipelines.lineage.scrub.shelf import Item, Shelf, Unjudged

TABLES: dict[str, pa.Schema] = {
    "videos.parquet": schemas.VIDEOS, "quarantine.parquet": schemas.QUARANTINE, "clips.parquet": schemas.CLIPS, "removals.parquet": schemas.REMOVALS,
    "pairs.parquet": schemas.PAIRS, "assignments.parquet": schemas.ASSIGNMENTS, "target_assignments.parquet": schemas.ASSIGNMENTS,
    "selection.parquet": schemas.SELECTION, "shard_index.parquet": schemas.SHARD_INDEX, "episodes.parquet": schemas.EPISODES, "steps.parquet": schemas.STEPS,
    "exposure_log.parquet": schemas.EXPOSURE_LOG,
}  # fmt: skip
"""Member of an artefact -> the table in it."""
WRITTEN = {
    "videos": ("videos.parquet", "quarantine.parquet"), "clips": ("clips.parquet",), "target_videos": ("clips.parquet",),
    "distinct_clips": ("clips.parquet", "removals.parquet"), "clip_clusters": ("assignments.parquet", "target_assignments.parquet"),
    "curated_clips": ("selection.parquet",), "training_shards": ("shard_index.parquet", "quarantine.parquet"),
    "robot_episodes": ("episodes.parquet", "steps.parquet"),
}  # fmt: skip
"""Asset -> the tables that others read from it."""
KEYS = {
    ("videos", "videos.parquet"): ("video_id", "path"),
    ("clips", "clips.parquet"): ("clip_id", "path"),  # copies of a file in one batch have equal clips
    ("distinct_clips", "clips.parquet"): ("clip_id",), ("clip_clusters", "assignments.parquet"): ("clip_id",),
    ("curated_clips", "selection.parquet"): ("clip_id",), ("training_shards", "shard_index.parquet"): ("clip_id",),
    ("robot_episodes", "episodes.parquet"): ("episode_id",), ("robot_episodes", "steps.parquet"): ("episode_id", "step"),
}  # fmt: skip
CODES: dict[str, tuple[str, type[enum.StrEnum]]] = {"quarantine.parquet": ("code", Reject), "removals.parquet": ("reason", Removal)}


@dataclass(frozen=True)
class Comparison:
    """One comparison, made on every artefact of `assets` (of all, when there are none). `reads_bytes`: not in a quick scrub."""

    name: str
    assets: tuple[str, ...]
    run: Callable[[Shelf, Item], Told]
    reads_bytes: bool = False


def check_tables(shelf: Shelf, item: Item) -> Told:
    """Every table that the artefact has, or that others read from it, can be read as that table in its version, whole."""
    written = WRITTEN.get(item.asset, ())
    for name in sorted({*written, *(name for name in item.manifest.files if name.endswith(".parquet"))}):
        if name not in item.manifest.files and not (item.folder / name).exists():
            yield item.finding(Kind.TABLE_MISSING, name, f"{name}, which others read from {item.asset}", "neither in the manifest nor in the folder")
            continue
        if item.where(name) in shelf.damaged:
            continue  # a finding of the files
        try:
            table = schemas.read_table(item.folder / name, TABLES[name]) if name in TABLES else pq.read_table(item.folder / name)
        except Exception as error:  # readers of damaged files raise all kinds of errors
            shelf.damaged.add(item.where(name))
            yield item.finding(Kind.UNREADABLE, name, f"table {schemas.table_name(TABLES[name])}" if name in TABLES else "a Parquet file", words_of(error))
            continue
        yield from _keys(item, name, table)
        yield from _codes(item, name, table)


def _keys(item: Item, name: str, table: pa.Table) -> Told:
    key = KEYS.get((item.asset, name))
    if key and (twice := duplicates(table, key)):
        yield item.finding(Kind.DUPLICATE_KEY, name, f"one row for each {' and '.join(key)}", f"several rows for {several(twice)}")


def _codes(item: Item, name: str, table: pa.Table) -> Told:
    if name not in CODES:
        return
    column, known = CODES[name]
    strange = sorted(set(map(str, pc.unique(table.column(column)).to_pylist())) - {code.value for code in known})
    if strange:
        yield item.finding(Kind.CODE, name, f"{column}: one of {', '.join(known)}", several(strange), "materialize it again with the version of Tubelet that knows these codes")


def duplicates(table: pa.Table, key: tuple[str, ...]) -> list[str]:
    """Values of the first key column (sorted) that stand in several rows with equal keys."""
    counted = table.select(list(key)).group_by(list(key)).aggregate([([], "count_all")])
    return sorted(map(str, counted.filter(pc.greater(counted.column("count_all"), 1)).column(key[0]).to_pylist()))


def insist_on_unique(table: pa.Table, item: Item, name: str, key: tuple[str, ...] = ("clip_id",)) -> None:
    """Raise `Unjudged` when rows share a key, which is a finding of its own: rows cannot be told apart then."""
    if duplicates(table, key):
        raise Unjudged(f"{item.where(name)} has several rows for one {key[0]}")


def missing_from(values: Any, known: Any) -> list[str]:
    """Those of `values` that `known` does not hold (both columns of text), each once, sorted."""
    values, known = (column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column for column in (values, known))
    return sorted(map(str, pc.unique(values.filter(pc.invert(pc.is_in(values, value_set=known)))).to_pylist()))


def rows_at(table: pa.Table, column: str, values: pa.ChunkedArray) -> pa.Table:
    """The row of `table` for each of `values` in its key `column`; all of them must be there."""
    return table.take(pc.index_in(values, value_set=table.column(column).combine_chunks()))


def unequal(one: pa.ChunkedArray, two: pa.ChunkedArray) -> Any:
    """(N,) whether two columns differ in a row; null and the empty text are equal."""
    if pa.types.is_string(one.type):
        one, two = pc.fill_null(one, ""), pc.fill_null(two, "")
    return pc.or_(pc.fill_null(pc.not_equal(one, two), False), pc.not_equal(pc.is_null(one), pc.is_null(two)))
