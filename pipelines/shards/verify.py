"""Reading a folder of shards against its index, byte by byte."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipelines import schemas
from pipelines.shards.index import INDEX_FILE


def verify_shards(folder: Path) -> list[str]:
    """Every disagreement between the tars and the index, in words (empty when there is none). Reads every byte."""
    expected: dict[str, dict[str, dict[str, Any]]] = {}
    for row in schemas.read_table(folder / INDEX_FILE, schemas.SHARD_INDEX).to_pylist():
        expected.setdefault(row["shard"], {})[row["clip_id"]] = row
    problems = [f"{path.name}: not in the index" for path in sorted(folder.glob("shard-*.tar")) if path.name not in expected]
    for shard, rows in sorted(expected.items()):
        path = folder / shard
        problems += _verify_shard(path, rows) if path.is_file() else [f"{shard}: missing"]
    return problems


def _verify_shard(path: Path, rows: dict[str, dict[str, Any]]) -> list[str]:
    problems: list[str] = []
    seen: set[str] = set()
    try:
        for name, offset, data in read_members(path):
            clip_id, _, kind = name.partition(".")
            row, where = rows.get(clip_id), f"{path.name}: {name}"
            if row is None:
                problems.append(f"{where}: not in the index")
            elif kind == "json":
                problems += _verify_sidecar(where, data, row)
            elif kind == "mp4":
                seen.add(clip_id)
                if (offset, len(data)) != (row["offset"], row["length"]):
                    problems.append(f"{where}: at {offset} with {len(data)} bytes, index says {row['offset']} with {row['length']}")
                if hashlib.sha256(data).hexdigest() != row["sha256"]:
                    problems.append(f"{where}: sha256 differs from the index")
            else:
                problems.append(f"{where}: unknown kind of member")
    except (tarfile.TarError, OSError) as error:
        problems.append(f"{path.name}: not readable as a tar: {error}")
    return problems + [f"{path.name}: {clip_id}.mp4: missing" for clip_id in rows if clip_id not in seen]


def _verify_sidecar(where: str, data: bytes, row: dict[str, Any]) -> list[str]:
    try:
        sidecar = json.loads(data)
    except ValueError as error:
        return [f"{where}: not JSON: {error}"]
    pairs = {"clip_id": "clip_id", "video_id": "video_id", "frames": "frames", "start_s": "source_start_s", "end_s": "source_end_s"}
    return [
        f"{where}: {inner} is {sidecar.get(inner)}, index says {row[outer]}"
        for inner, outer in pairs.items()
        if sidecar.get(inner) != row[outer]
    ]


def read_members(path: Path) -> Iterator[tuple[str, int, bytes]]:
    """(name, offset of the data, data) of every member of a tar."""
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            handle = archive.extractfile(member)
            yield member.name, member.offset_data, handle.read() if handle else b""
