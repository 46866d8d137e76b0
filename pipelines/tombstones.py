"""What was taken down: clips and whole videos that no stage may use from now on.

Every takedown leaves one table in the store, `tombstones/<takedown>.parquet`, written once and never changed; what is
forbidden is their union. Nothing else is needed to tell whether a clip may be used.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines import schemas
from pipelines.errors import StoreError
from pipelines.identity import digest_of
from pipelines.store import NO_LINKS

FOLDER = "tombstones"


@dataclass(frozen=True)
class Tombstones:
    """`clip_ids` by name and every clip of `video_ids`. `takedowns` names the tables, in the order of their names."""

    takedowns: tuple[str, ...] = ()
    clip_ids: frozenset[str] = frozenset()
    video_ids: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.clip_ids or self.video_ids)

    def covers(self, clip_id: str, video_id: str) -> bool:
        return clip_id in self.clip_ids or video_id in self.video_ids

    def among(self, clip_ids: pa.ChunkedArray, video_ids: pa.ChunkedArray) -> NDArray[np.bool_]:
        """(N,) which of N clips are covered, of their two columns."""
        own = pc.is_in(clip_ids, value_set=pa.array(sorted(self.clip_ids), pa.string()))
        whole = pc.is_in(video_ids, value_set=pa.array(sorted(self.video_ids), pa.string()))
        return np.asarray(pc.or_(own, whole), bool)

    @property
    def digest(self) -> str:
        """Of what is forbidden; "" when nothing is, so that it can stand in a config."""
        return digest_of([sorted(self.clip_ids), sorted(self.video_ids)]) if self else ""


def takedown_names(root: Path) -> tuple[str, ...]:
    """Names of the store's takedowns, sorted: one look into a folder, cheap enough for every step of a training."""
    try:
        return tuple(sorted(name.removesuffix(".parquet") for name in os.listdir(root / FOLDER) if name.endswith(".parquet") and name[0] != "."))
    except FileNotFoundError:
        return ()


def read_tombstones(root: Path, takedowns: Iterable[str] | None = None) -> Tombstones:
    """The union of the store's takedowns, or of the named ones; raises `StoreError` when one of those is gone."""
    names = takedown_names(root) if takedowns is None else tuple(sorted(takedowns))
    tables = [_read(root, name) for name in names]
    rows = [row for table in tables for row in table.select(["clip_id", "video_id"]).to_pylist()]
    return Tombstones(
        names, frozenset(row["clip_id"] for row in rows if row["clip_id"]), frozenset(row["video_id"] for row in rows if not row["clip_id"])
    )  # fmt: skip


def tombstone_rows(root: Path) -> pa.Table:
    """Every row of every takedown, in the order of their names."""
    return pa.concat_tables([schemas.TOMBSTONES.empty_table(), *(_read(root, name) for name in takedown_names(root))])


def write_tombstones(root: Path, takedown: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Write one takedown's table whole or not at all; raises `StoreError` when there is one of that name."""
    path = root / FOLDER / f"{takedown}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{takedown}.{uuid.uuid4().hex[:8]}")
    schemas.write_table(schemas.table_of(schemas.TOMBSTONES, list(rows)), temporary, schemas.TOMBSTONES)
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    try:
        os.link(temporary, path)  # unlike a rename, a link does not replace what is there
    except OSError as error:
        if error.errno in NO_LINKS and not path.exists():
            os.rename(temporary, path)
        elif error.errno in (*NO_LINKS, errno.EEXIST):
            raise StoreError(f"takedown {takedown} has been made before", expected="a new name", found=str(path), remedy="ask again") from error
        else:
            raise
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _read(root: Path, name: str) -> pa.Table:
    path = root / FOLDER / f"{name}.parquet"
    if not path.is_file():
        raise StoreError(
            f"the tombstones of takedown {name} are gone from the store", expected=str(path), found="no such file",
            remedy="restore that file: without it what was taken down would be used again",
        )  # fmt: skip
    return schemas.read_table(path, schemas.TOMBSTONES)
