"""The distinct clips of one curation as columns: cluster, weight and what is known of each, in a few bytes a clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.schemas import ASSIGNMENTS, CLIPS, SELECTION, read_table

GROUPS = ("source", "licence", "uploader", "language", "label")
UNKNOWN = "not known"


@dataclass(frozen=True, eq=False)
class Column:
    """A column of words: `codes` (N,) int32 into `names`."""

    codes: NDArray[np.int32]
    names: tuple[str, ...]

    def sums(self, values: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """(len(names),) sum of `values` (N,) over the rows of each name, or how many rows it has."""
        return np.bincount(self.codes, values, minlength=len(self.names)).astype(np.float64)


@dataclass(frozen=True, eq=False)
class Pool:
    """N clips: `ids`, `videos`, `cluster` and `coarse` (N,) int64 (-1: not assigned), `weight` (N,) float64 that sums to 1
    (0: not chosen; None before there is a selection), `target` who earned it, and a `Column` for each of GROUPS."""

    ids: pa.Array
    videos: Column
    cluster: NDArray[np.int64]
    coarse: NDArray[np.int64]
    weight: NDArray[np.float64] | None
    target: Column | None
    groups: dict[str, Column]
    seconds: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.ids)


def read_pool(distinct: Path, clusters: Path | None = None, selection: Path | None = None) -> Pool:
    """The distinct clips of a folder, with clusters and weights from the stages' folders where there are any."""
    table = read_table(distinct / "clips.parquet", CLIPS, ["clip_id", "video_id", "start_s", "end_s", *GROUPS])
    ids = table.column("clip_id").combine_chunks()
    cluster, coarse = np.full(len(ids), -1, np.int64), np.full(len(ids), -1, np.int64)
    if clusters is not None:
        assigned = read_table(clusters / "assignments.parquet", ASSIGNMENTS, ["clip_id", "cluster", "coarse_cluster"])
        cluster, coarse = (taken(assigned, name, ids, -1).astype(np.int64) for name in ("cluster", "coarse_cluster"))
    weight = target = None
    if selection is not None:
        chosen = read_table(selection / "selection.parquet", SELECTION, ["clip_id", "weight", "target", "cluster"])
        weight = taken(chosen, "weight", ids, 0.0).astype(np.float64)
        if clusters is None:
            cluster = taken(chosen, "cluster", ids, -1).astype(np.int64)
        target = words(chosen.column("target").take(pc.index_in(ids, value_set=chosen.column("clip_id").combine_chunks())))
    seconds = pc.subtract(table.column("end_s"), table.column("start_s")).to_numpy()
    groups = {name: words(table.column(name)) for name in GROUPS}
    return Pool(ids, words(table.column("video_id")), cluster, coarse, weight, target, groups, seconds)


def words(column: pa.ChunkedArray) -> Column:
    """A column of strings by numbers; empty and missing ones are `UNKNOWN`."""
    filled = pc.if_else(pc.equal(pc.fill_null(column, ""), ""), UNKNOWN, column)
    coded = filled.combine_chunks().dictionary_encode() if len(filled) else pa.array([], pa.string()).dictionary_encode()
    return Column(np.asarray(coded.indices.to_numpy(zero_copy_only=False), np.int32), tuple(coded.dictionary.to_pylist()))


def taken(table: pa.Table, name: str, ids: pa.Array, missing: float) -> NDArray[Any]:
    """Values of column `name` for the clips `ids`, in their order; `missing` where the table has no such clip."""
    places = pc.index_in(ids, value_set=table.column("clip_id").combine_chunks())
    return pc.fill_null(table.column(name).take(places), missing).to_numpy()


def shares(pool: Pool, name: str) -> list[dict[str, Any]]:
    """How the values of group `name` share the clips (`uniform`) and the draws (`achieved`, None before a selection),
    largest first."""
    column = pool.groups[name]
    clips = column.sums()
    achieved = column.sums(pool.weight) if pool.weight is not None else None
    order = sorted(range(len(column.names)), key=lambda code: (-(achieved[code] if achieved is not None else clips[code]), column.names[code]))
    return [
        {"name": column.names[code], "clips": int(clips[code]), "uniform": float(clips[code] / max(1, len(pool))),
         "achieved": float(achieved[code]) if achieved is not None else None}
        for code in order
    ]  # fmt: skip


def spread_over_clusters(pool: Pool, rows: Sequence[int] | NDArray[np.int64], count: int) -> list[int]:
    """The first `count` of `rows` that are each from another cluster; then from used ones, when there are too few."""
    seen: set[int] = set()
    first: list[int] = []
    rest: list[int] = []
    for row in rows:
        cluster = int(pool.cluster[row])
        if len(first) == count:
            break
        if cluster in seen:
            rest.append(int(row))
        else:
            seen.add(cluster)
            first.append(int(row))
    return (first + rest)[:count]


def drawn_most_and_least(pool: Pool, count: int) -> tuple[list[str], list[str]]:
    """Ids of the clips drawn most and of those drawn least, each from another cluster; before a selection the first clips."""
    if pool.weight is None:
        chosen = spread_over_clusters(pool, range(len(pool)), count)
        return pool.ids.take(chosen).to_pylist(), []
    drawn = np.flatnonzero(pool.weight > 0)
    order = drawn[np.argsort(-pool.weight[drawn], kind="stable")]
    # "Most" is no less often than all alike, within rounding.
    often = pool.weight[order] * len(pool) > 1 - 1e-9
    most, least = spread_over_clusters(pool, order[often], count), spread_over_clusters(pool, order[~often][::-1], count)
    return pool.ids.take(most).to_pylist(), pool.ids.take(least).to_pylist()
