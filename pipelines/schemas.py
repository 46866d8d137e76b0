"""Versioned Parquet schemas of every table that one stage hands to another.

Each file carries its table's name and version. An older version is brought up to date while it is read, by the steps
in `MIGRATIONS`; reading anything else is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import StoreError


def _table(name: str, version: int, *fields: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema(
        [pa.field(column, kind) for column, kind in fields],
        metadata={"tubelet.table": name, "tubelet.version": str(version)},
    )


S, I32, I64, F32, F64, B = pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()

VIDEOS = _table(
    "videos", 2,
    ("video_id", S), ("batch", S), ("source", S), ("path", S), ("bytes", I64), ("sha256", S),
    ("container", S), ("codec", S), ("pixel_format", S), ("width", I32), ("height", I32), ("rotation", I32),
    ("declared_frames", I64), ("frames", I64), ("duration_s", F64), ("frame_rate", F64), ("variable_frame_rate", B),
    ("time_base_num", I32), ("time_base_den", I32), ("start_pts", I64), ("licence", S), ("uploader", S),
    # 2: where the first frame lies on the container's clock, key frames, and what a manifest knows of the file
    ("start_offset_s", F64), ("keyframes", I64), ("url", S), ("language", S), ("label", S),
)  # fmt: skip
QUARANTINE = _table(
    "quarantine", 2,
    ("path", S), ("batch", S), ("source", S), ("bytes", I64), ("code", S), ("detail", S), ("attempts", I32),
    ("poison", B), ("sha256", S),
)  # fmt: skip
CLIPS = _table(
    "clips", 2,
    ("clip_id", S), ("video_id", S), ("batch", S), ("path", S), ("start_pts", I64), ("end_pts", I64),
    ("time_base_num", I32), ("time_base_den", I32), ("start_s", F64), ("end_s", F64), ("frames", I32),
    ("width", I32), ("height", I32), ("frame_rate", F64), ("splitter", S), ("motion", F32), ("brightness", F32),
    ("fingerprint", S), ("source", S), ("licence", S), ("uploader", S), ("label", S),
    # 2: shares of the clip's frames (0..1) that stand still and that are black, and the language of the video
    ("static", F32), ("black", F32), ("language", S),
)  # fmt: skip
REMOVALS = _table(
    "removals", 2, ("clip_id", S), ("video_id", S), ("reason", S), ("twin_id", S), ("similarity", F32),
    # 2: distance between the two clips' pictures (0: equal), and one sentence for a reader
    ("distance", F32), ("detail", S),
)  # fmt: skip
PAIRS = _table(
    "pairs", 1,  # clips that show the same footage; `batch` brought the first; `strict`: by the rule for duplicates, not only that for leaks
    ("batch", S), ("first_id", S), ("second_id", S), ("evaluation", B), ("strict", B), ("mirrored", B), ("cosine", F32), ("distance", F32),
    ("picture", F32), ("motion", F32), ("bits", I32),
)  # fmt: skip
ASSIGNMENTS = _table(
    "assignments", 2, ("clip_id", S), ("cluster", I32), ("coarse_cluster", I32), ("similarity", F32),
    ("novel", B),  # 2: farther from its centroid than the codebook's clips are
)  # fmt: skip
SELECTION = _table(
    "selection", 2,
    ("clip_id", S), ("video_id", S), ("cluster", I32), ("weight", F64), ("target", S), ("uniform_weight", F64),
    # 2: whole draws in an epoch of as many draws as the pool has clips, and which targets pay for them (shares sum to 1)
    ("repeats", I32), ("credit_targets", pa.list_(S)), ("credit_shares", pa.list_(F32)),
)  # fmt: skip
SHARD_INDEX = _table(
    "shard_index", 2,
    ("clip_id", S), ("video_id", S), ("shard", S), ("offset", I64), ("length", I64), ("sha256", S), ("frames", I32),
    ("first_pts_s", F64), ("last_pts_s", F64), ("frame_rate", F64), ("weight", F64), ("source", S), ("licence", S),
    ("source_start_s", F64), ("source_end_s", F64),
    # 2: size of the stored picture (px), how the bytes came about ("encoded", "copied", "found"), and the uploader
    ("width", I32), ("height", I32), ("form", S), ("uploader", S),
)  # fmt: skip
COSTS = _table(
    "costs", 1,
    ("stage", S), ("batch", S), ("digest", S), ("items", I64), ("unit", S), ("wall_s", F64), ("cpu_s", F64), ("build_s", F64),
    ("items_per_s", F64), ("items_per_cpu_s", F64), ("parts", I32), ("parts_found", I32),
)  # fmt: skip
EXPOSURES = _table("exposures", 1, ("clip_id", S), ("video_id", S), ("samples", I64), ("seconds", F64))
EXPOSURE_LOG = _table(
    "exposure_log", 1,  # a row a sample, told by the bytes that were decoded: the tar member's name, its digest, the pts of its frames
    ("step", I64), ("global_sample", I64), ("salt", I32), ("shards", S), ("clip_id", S), ("sha256", S), ("time_base_num", I32), ("time_base_den", I32),
    ("pts", pa.list_(I64)), ("top", I32), ("left", I32), ("height", I32), ("width", I32), ("flip", B),
)  # fmt: skip
TOMBSTONES = _table(
    "tombstones", 2, ("clip_id", S), ("video_id", S), ("reason", S), ("added", S),
    # 2: no clip_id means every clip of the video, those to come too. `rule` is what was asked (video, source, uploader, licence)
    # with its `value`, or "twin" of the clip `twin_of`, by the removals table, with their similarity.
    ("takedown", S), ("rule", S), ("value", S), ("twin_of", S), ("similarity", F32),
)  # fmt: skip
CHECKPOINTS = _table(
    "checkpoints", 1,
    ("digest", S), ("asset", S), ("partition", S), ("step", I64), ("parents", S), ("shards_digest", S), ("path", S),
)  # fmt: skip
EPISODES = _table(
    "episodes", 1,
    ("episode_id", S), ("source", S), ("steps", I32), ("step_s", F64), ("video", S), ("sha256", S), ("licence", S),
)  # fmt: skip
STEPS = _table(
    "steps", 1,
    ("episode_id", S), ("step", I32), ("t_s", F64), ("x", F64), ("y", F64), ("z", F64), ("roll", F64), ("pitch", F64),
    ("yaw", F64), ("gripper", F64), ("cube_x", F64), ("cube_y", F64),
)  # fmt: skip


def _with_columns(**defaults: Any) -> Callable[[pa.Table], pa.Table]:
    """A migration that adds columns, each with one value for all rows."""

    def migrate(table: pa.Table) -> pa.Table:
        for name, value in defaults.items():
            table = table.append_column(name, pa.array([value] * len(table)))
        return table

    return migrate


MIGRATIONS: dict[tuple[str, int], Callable[[pa.Table], pa.Table]] = {
    ("videos", 1): _with_columns(start_offset_s=None, keyframes=None, url="", language="", label=""),
    ("quarantine", 1): _with_columns(sha256=""),
    ("clips", 1): _with_columns(static=None, black=None, language=""),
    ("removals", 1): _with_columns(distance=None, detail=""),
    ("assignments", 1): _with_columns(novel=False),
    ("selection", 1): _with_columns(repeats=None, credit_targets=None, credit_shares=None),
    ("shard_index", 1): _with_columns(width=None, height=None, form="encoded", uploader=None),
    ("tombstones", 1): _with_columns(takedown="", rule="video", value="", twin_of=None, similarity=None),
}
"""(table, version it is in) -> the step to the next version. Values that an older file cannot tell are null."""


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


def table_version(schema: pa.Schema) -> int:
    """Version a schema carries."""
    return int((schema.metadata or {})[b"tubelet.version"])


def write_table(table: pa.Table, path: Path, schema: pa.Schema) -> None:
    """Write `table` as one Parquet file with exactly `schema` (byte-identical for equal tables)."""
    pq.write_table(table.select(schema.names).cast(schema).replace_schema_metadata(schema.metadata), path, compression="zstd")


def read_table(source: Path | BinaryIO, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Read one Parquet file, or some `columns` of it, and insist on the schema's name, version and columns.

    A file of an older version is migrated; one of a newer version, another table, or a damaged one is a `StoreError`.
    """
    try:
        return _read_table(source, schema, columns)
    except (ValueError, OSError) as error:  # Arrow's own; those of the system have a number and speak for themselves
        if not isinstance(source, Path) or getattr(error, "errno", None) is not None:
            raise
        raise StoreError(
            f"{source} is damaged", expected=f"table {table_name(schema)}", found=" ".join(str(error).split())[:200],
            remedy="restore that file, or delete the folder it is in and make it again; `tubelet scrub` names all that is damaged",
        ) from error  # fmt: skip


def _read_table(source: Path | BinaryIO, schema: pa.Schema, columns: list[str] | None) -> pa.Table:
    wanted = table_version(schema)
    with pq.ParquetFile(source) as file:
        found = file.schema_arrow.metadata or {}
        name, version = found.get(b"tubelet.table", b"").decode(), found.get(b"tubelet.version", b"").decode()
        steps = [(name, step) for step in range(int(version), wanted)] if version.isdigit() else []
        if name == table_name(schema) and version.isdigit() and int(version) <= wanted and all(step in MIGRATIONS for step in steps):
            table = file.read(columns=None if steps else columns)
            for step in steps:
                table = MIGRATIONS[step](table)
            if steps and set(table.schema.names) == set(schema.names):
                table = table.select(schema.names).cast(schema).replace_schema_metadata(schema.metadata)
            if columns is not None:
                return table.select(columns)
            if table.schema.equals(schema):
                return table
    raise StoreError(
        f"{source if isinstance(source, Path) else getattr(source, 'name', 'a file')} is not the table that was asked for",
        expected=f"{table_name(schema)} version {wanted}", found=f"{name or 'no table name'} version {version or '?'}",
        remedy="make the artefact again with this version of Tubelet",
    )  # fmt: skip
