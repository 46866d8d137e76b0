"""Versioned Parquet schemas of every table that one stage hands to another.

Each file carries its table's name and version; reading anything else is an error, never a guess.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import StoreError

VERSION = "1"


def _table(name: str, *fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(
        [pa.field(column, kind) for column, kind in fields],
        metadata={"tubelet.table": name, "tubelet.version": VERSION},
    )


S, I32, I64, F32, F64, B = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()

VIDEOS = _table(
    "videos",
    ("video_id", S), ("batch", S), ("source", S), ("path", S), ("bytes", I64), ("sha256", S),
    ("container", S), ("codec", S), ("pixel_format", S), ("width", I32), ("height", I32), ("rotation", I32),
    ("declared_frames", I64), ("frames", I64), ("duration_s", F64), ("frame_rate", F64), ("variable_frame_rate", B),
    ("time_base_num", I32), ("time_base_den", I32), ("start_pts", I64), ("licence", S), ("uploader", S),
)  # fmt: skip
QUARANTINE = _table(
    "quarantine",
    ("path", S), ("batch", S), ("source", S), ("bytes", I64), ("code", S), ("detail", S), ("attempts", I32),
    ("poison", B),
)  # fmt: skip
CLIPS = _table(
    "clips",
    ("clip_id", S), ("video_id", S), ("batch", S), ("path", S), ("start_pts", I64), ("end_pts", I64),
    ("time_base_num", I32), ("time_base_den", I32), ("start_s", F64), ("end_s", F64), ("frames", I32),
    ("width", I32), ("height", I32), ("frame_rate", F64), ("splitter", S), ("motion", F32), ("brightness", F32),
    ("fingerprint", S), ("source", S), ("licence", S), ("uploader", S), ("label", S),
)  # fmt: skip
REMOVALS = _table("removals", ("clip_id", S), ("video_id", S), ("reason", S), ("twin_id", S), ("similarity", F32))
ASSIGNMENTS = _table("assignments", ("clip_id", S), ("cluster", I32), ("coarse_cluster", I32), ("similarity", F32))
SELECTION = _table(
    "selection",
    ("clip_id", S), ("video_id", S), ("cluster", I32), ("weight", F64), ("target", S), ("uniform_weight", F64),
)  # fmt: skip
SHARD_INDEX = _table(
    "shard_index",
    ("clip_id", S), ("video_id", S), ("shard", S), ("offset", I64), ("length", I64), ("sha256", S), ("frames", I32),
    ("first_pts_s", F64), ("last_pts_s", F64), ("frame_rate", F64), ("weight", F64), ("source", S), ("licence", S),
    ("source_start_s", F64), ("source_end_s", F64),
)  # fmt: skip
EXPOSURES = _table("exposures", ("clip_id", S), ("video_id", S), ("samples", I64), ("seconds", F64))
TOMBSTONES = _table("tombstones", ("clip_id", S), ("video_id", S), ("reason", S), ("added", S))
CHECKPOINTS = _table(
    "checkpoints",
    ("digest", S), ("asset", S), ("partition", S), ("step", I64), ("parents", S), ("shards_digest", S), ("path", S),
)  # fmt: skip
EPISODES = _table(
    "episodes",
    ("episode_id", S), ("source", S), ("steps", I32), ("step_s", F64), ("video", S), ("sha256", S), ("licence", S),
)  # fmt: skip
STEPS = _table(
    "steps",
    ("episode_id", S), ("step", I32), ("t_s", F64), ("x", F64), ("y", F64), ("z", F64), ("roll", F64), ("pitch", F64),
    ("yaw", F64), ("gripper", F64), ("cube_x", F64), ("cube_y", F64),
)  # fmt: skip


def table_of(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    """Rows (dicts with exactly the schema's columns; missing ones become null, unknown ones are an error) as a table."""
    unknown = {key for row in rows for key in row} - set(schema.names)
    if unknown:
        raise StoreError(
            f"rows do not fit table {table_name(schema)}",
            expected=", ".join(schema.names), found=", ".join(sorted(unknown)), remedy="name columns as in pipelines/schemas.py",
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema)


def table_name(schema: pa.Schema) -> str:
    """Name a schema carries."""
    return (schema.metadata or {})[b"tubelet.table"].decode()


def write_table(table: pa.Table, path: Path, schema: pa.Schema) -> None:
    """Write `table` as one Parquet file with exactly `schema` (byte-identical for equal tables)."""
    pq.write_table(table.select(schema.names).cast(schema).replace_schema_metadata(schema.metadata), path, compression="zstd")


def read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Read one Parquet file and insist on the schema's name, version and columns."""
    table = pq.read_table(path)
    found = table.schema.metadata or {}
    name, version = found.get(b"tubelet.table", b"").decode(), found.get(b"tubelet.version", b"").decode()
    if name != table_name(schema) or version != VERSION or not table.schema.equals(schema):
        raise StoreError(
            f"{path} is not the table that was asked for",
            expected=f"{table_name(schema)} version {VERSION}", found=f"{name or 'no table name'} version {version or '?'}",
            remedy="make the artefact again with this version of Tubelet",
        )  # fmt: skip
    return table
