"""The pool as an increment sees it: clips that the frozen codebook knows keep what it said of them, new ones are assigned."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.curation.assignment import nearest_leaf
from pipelines.curation.codebook import Codebook
from pipelines.curation.drift import DriftConfig, Side
from pipelines.curation.frozen import Frozen
from pipelines.curation.leaf_statistics import LeafStatistics
from pipelines.errors import InputError
from pipelines.parts import Parts
from pipelines.schemas import CLIPS, read_table

ASSIGN_ROWS = 32_768  # new clips in one part: what a kill can cost
ROUNDED = 6  # decimals of a similarity in the tables

Rows = NDArray[np.int64]


@dataclass(eq=False)
class Pool:
    """Distinct clips in their order with numbers of their videos (N,): `leaf` (N,), `similarity` (N,), `distance` (N,),
    `novel` (N,); `new` are the rows that the codebook had not assigned before, `known` the others, and `gone` the rows of
    the former table that are no longer there."""

    clip_ids: list[str]
    vectors: NDArray[np.float32]
    video: Rows
    leaf: Rows
    similarity: NDArray[np.float32]
    distance: NDArray[np.float32]
    novel: NDArray[np.bool_]
    new: Rows
    known: Rows
    gone: Rows


def open_vectors(folder: Path) -> tuple[list[str], NDArray[np.float32], str]:
    """(clip ids, vectors (N, D) as a memory map, encoder digest) of a folder with embeddings."""
    clip_ids = json.loads((folder / "clip_ids.json").read_text())
    vectors = np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    if len(clip_ids) != len(vectors):
        raise InputError(f"{folder} is damaged", expected=f"{len(clip_ids)} vectors", found=f"{len(vectors)}", remedy="materialize it again")
    return clip_ids, vectors, str(json.loads((folder / "encoder.json").read_text())["digest"])


def videos_of(distinct_folder: Path, clip_ids: list[str]) -> Rows:
    """(N,) number of every clip's video; raises `InputError` when the folder's vectors are of other clips than its rows.

    Videos are numbered by their ids, which are digests: the first so many are a random sample that all batches agree on.
    """
    table = read_table(distinct_folder / "clips.parquet", CLIPS, columns=["clip_id", "video_id"])
    if not table.column("clip_id").combine_chunks().equals(pa.array(clip_ids, pa.string())):
        raise InputError(
            f"{distinct_folder} has vectors of other clips", expected=f"{len(table)} vectors in the clips' order", found=f"{len(clip_ids)} others",
            remedy="materialize distinct_clips again",
        )  # fmt: skip
    coded = table.column("video_id").combine_chunks().dictionary_encode()
    place = np.empty(len(coded.dictionary), np.int64)
    place[pc.sort_indices(coded.dictionary).to_numpy()] = np.arange(len(coded.dictionary))
    return place[coded.indices.to_numpy()]


def carry_over(frozen: Frozen, clip_ids: list[str], vectors: NDArray[np.float32], video: Rows) -> Pool:
    """The pool with the known clips' entries copied from the former tables; those of new clips wait for `assign_new`."""
    former = frozen.assignments
    place = pc.index_in(pa.array(clip_ids, pa.string()), value_set=former.column("clip_id").combine_chunks())
    row = place.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    known, new = np.flatnonzero(row >= 0), np.flatnonzero(row < 0)
    stays = np.zeros(len(former), bool)
    stays[row[known]] = True
    pool = Pool(
        clip_ids, vectors, video, np.full(len(row), -1, np.int64), np.zeros(len(row), np.float32), np.zeros(len(row), np.float32),
        np.zeros(len(row), bool), new, known, np.flatnonzero(~stays),
    )  # fmt: skip
    pool.leaf[known] = former.column("cluster").to_numpy()[row[known]]
    pool.similarity[known] = former.column("similarity").to_numpy()[row[known]]
    pool.novel[known] = former.column("novel").to_numpy(zero_copy_only=False)[row[known]]
    pool.distance[known] = frozen.distances[row[known]]
    return pool


def assign_rows(
    vectors: NDArray[np.float32], rows: Rows, codebook: Codebook, parts: Parts, name: str, progress: Callable[..., None] | None = None
) -> tuple[Rows, NDArray[np.float64]]:
    """(leaf, cosine) of `rows` of `vectors`, each part of them kept: a kill loses at most one part."""

    def build(folder: Path, batch: Sequence[int]) -> dict[str, Any]:
        found = nearest_leaf(np.asarray(vectors[np.asarray(batch)]), codebook.leaves)
        np.save(folder / "leaf.npy", found.leaf)
        np.save(folder / "cosine.npy", found.cosine)
        return {"clips": len(batch)}

    made = parts.map(name, rows, ASSIGN_ROWS, build, progress)  # type: ignore[arg-type]  # an array is sliced as a sequence is
    leaf = [np.load(part.folder / "leaf.npy") for part in made]
    cosine = [np.load(part.folder / "cosine.npy") for part in made]
    return np.concatenate([np.empty(0, np.int64), *leaf]), np.concatenate([np.empty(0), *cosine])


def assign_new(pool: Pool, frozen: Frozen, parts: Parts, progress: Callable[..., None] | None = None) -> None:
    """Put the pool's new clips into their nearest leaves, and mark those beyond the leaves' thresholds as novel."""
    leaf, cosine = assign_rows(pool.vectors, pool.new, frozen.codebook, parts, "assign", progress)
    pool.leaf[pool.new] = leaf
    pool.similarity[pool.new] = np.round(cosine, ROUNDED)
    pool.distance[pool.new] = np.clip(1.0 - cosine, 0.0, 2.0)
    pool.novel[pool.new] = pool.distance[pool.new] > frozen.basis.thresholds[leaf]


def known_statistics(pool: Pool, frozen: Frozen) -> LeafStatistics:
    """Statistics of the known clips alone: the former ones, with the leaves that lost a clip counted again.

    The vectors of clips that are gone are no longer there to be subtracted; those that are left in their leaves are.
    """
    former = frozen.statistics
    found = LeafStatistics(former.counts.copy(), former.sums.copy(), former.squares.copy(), former.digests.copy())
    if len(pool.gone) == 0:
        return found
    touched = np.unique(frozen.assignments.column("cluster").to_numpy()[pool.gone]).astype(np.int64)
    found.clear(touched)
    inside = np.zeros(len(former.counts), bool)
    inside[touched] = True
    rows = pool.known[inside[pool.leaf[pool.known]]]
    found.add_rows(pool.vectors, rows, pool.leaf, pool.distance)
    return found


def sides(pool: Pool, cluster: Rows, thresholds: NDArray[np.float32], config: DriftConfig) -> tuple[Side, Side]:
    """Known and new clips as the two sides of a drift measurement; `cluster` (N,) is the level that is compared.

    Novel is here what lies beyond the `thresholds` (K,), the fit's own clips included, which never enter the buffer.
    """
    novel = pool.distance > thresholds[pool.leaf]
    return _side(pool, pool.known, cluster, novel, config), _side(pool, pool.new, cluster, novel, config)


def _side(pool: Pool, rows: Rows, cluster: Rows, novel: NDArray[np.bool_], config: DriftConfig) -> Side:
    number = np.cumsum(np.bincount(pool.video[rows]) > 0) - 1  # without the videos of the other side
    own = number[pool.video[rows]]
    if config.exchange == "videos":  # whole videos, or those of one side would have more clips each than the other's
        clips = np.cumsum(np.bincount(own))
        taken = np.flatnonzero(own <= np.searchsorted(clips, config.kernel_clips))
        sampled = own[taken]
    else:
        taken = np.arange(min(len(rows), config.kernel_clips))
        sampled = taken
    return Side(cluster[rows], pool.distance[rows], novel[rows], own, np.asarray(pool.vectors[rows[taken]]), sampled)
