"""One side of a comparison: a selection with its pool, its codebook, and what became of the clips that it does not draw."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipelines.curation.codebook import NOTE, Codebook
from pipelines.curation.report.chain import Chain, chain_of, created, folders
from pipelines.curation.report.pool import Pool, read_pool
from pipelines.errors import MissingArtefact
from pipelines.schemas import CLIPS, REMOVALS, SELECTION, VIDEOS, read_table
from pipelines.store import Artefact, Store

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Side:
    """One of two curations that are compared: its chain, its folders, and the pool with its weights."""

    chain: Chain
    distinct: Path
    selection: Path
    pool: Pool

    @classmethod
    def of(cls, store: Store, selection: Artefact) -> Side:
        """Raises `MissingArtefact` when the clips that it selects from are not in the store."""
        chain = chain_of(store, selection)
        if chain.distinct is None:
            raise MissingArtefact(
                f"the clips of {selection.key} {selection.digest} are not in the store", expected="its distinct_clips", found="none",
                remedy="restore that artefact: the selection cannot be told without it",
            )  # fmt: skip
        path = chain.distinct.path
        return cls(chain, path, selection.path, read_pool(path, chain.clusters.path if chain.clusters else None, selection.path))

    @cached_property
    def clusters(self) -> Path | None:
        return self.chain.clusters.path if self.chain.clusters else None

    @cached_property
    def codebook(self) -> Codebook | None:
        found = self.clusters is not None and (self.clusters / NOTE).is_file()
        return Codebook.load(self.clusters) if found and self.clusters is not None else None

    @cached_property
    def encoder(self) -> str:
        return str(json.loads((self.distinct / "encoder.json").read_text())["digest"])

    def weight(self, ids: pa.Array) -> Vector:
        """(len(ids),) share of the draws, 0 for clips that are not drawn or not known."""
        assert self.pool.weight is not None
        return self._taken(self.pool.weight, ids, 0.0)

    def _taken(self, values: NDArray[Any], ids: pa.Array, missing: float) -> NDArray[Any]:
        places = pc.fill_null(pc.index_in(ids, value_set=self.pool.ids), -1).to_numpy()
        return np.where(places >= 0, values[places], missing) if len(values) else np.full(len(ids), missing)

    def cluster(self, ids: pa.Array) -> NDArray[np.int64]:
        """(len(ids),) leaf of each clip, -1 for clips that it does not know."""
        return self._taken(self.pool.cluster, ids, -1).astype(np.int64)

    def fates(self, ids: list[str], videos: list[str], drawn_by_other: str) -> list[str]:
        """Why this side does not draw these clips, which the other side does."""
        table = read_table(self.distinct / "removals.parquet", REMOVALS, ["clip_id", "reason", "twin_id"])
        wanted = table.filter(pc.is_in(table.column("clip_id"), value_set=pa.array(ids, pa.string()))).to_pylist()
        removed = {row["clip_id"]: row for row in wanted}
        known = set(self.pool.ids.filter(pc.is_in(self.pool.ids, value_set=pa.array(ids, pa.string()))).to_pylist())
        cut = self._among(self.chain.clips, "clips.parquet", CLIPS, "clip_id", ids)
        seen = self._among(self.chain.videos, "videos.parquet", VIDEOS, "video_id", videos)
        words = []
        for clip_id, video in zip(ids, videos, strict=True):
            if clip_id in known:
                words.append("in the pool, not chosen")
            elif clip_id in removed:
                words.append(f"removed: {removed[clip_id]['reason'].replace('_', ' ')}")
            elif clip_id in cut:
                words.append("its file had changed")
            else:
                words.append("its video was cut in other places" if video in seen else f"its video is only in {drawn_by_other}")
        return words

    @staticmethod
    def _among(stage: Mapping[str, Artefact], name: str, schema: pa.Schema, column: str, wanted: list[str]) -> set[str]:
        values = pa.array(sorted(set(wanted)), pa.string())
        found: set[str] = set()
        for folder in folders(dict(stage)):
            have = read_table(folder / name, schema, [column]).column(column)
            found |= set(have.filter(pc.is_in(have, value_set=values)).to_pylist())
        return found


def common_clusters(a: Side, b: Side, ids: pa.Array) -> tuple[NDArray[np.int64], str, tuple[str, ...]]:
    """The clusters of `ids` by the newer codebook (-1: not known), what that codebook is called, and what to keep in mind."""
    if a.chain.clusters is None or b.chain.clusters is None:
        return np.full(len(ids), -1, np.int64), "none", ("one of the two has no clusters in the store",)
    newer, older = (b, a) if created(b.chain.clusters) >= created(a.chain.clusters) else (a, b)
    assert newer.chain.clusters is not None and older.chain.clusters is not None
    found, book = newer.cluster(ids), newer.codebook
    name = f"codebook {book.version}" if book is not None else f"clip_clusters {newer.chain.clusters.digest}"
    missing = np.flatnonzero(found < 0)
    if len(missing) == 0:
        return found, name, ()
    if older.chain.clusters.digest == newer.chain.clusters.digest or (older.codebook and book and older.codebook.version == book.version):
        found[missing] = older.cluster(ids.take(pa.array(missing)))
        return found, name, ()
    if book is None or older.encoder != book.encoder_digest:
        why = "it is of another encoder" if book is not None else "its version kept no codebook"
        return found, name, (f"{len(missing):,} clips of the other curation have no cluster here: {name} cannot place them ({why})",)
    from pipelines.curation.assignment import nearest_leaf

    places = pc.index_in(ids.take(pa.array(missing)), value_set=older.pool.ids).to_numpy()
    vectors = np.load(older.distinct / "embeddings.npy", mmap_mode="r", allow_pickle=False)
    found[missing] = nearest_leaf(np.asarray(vectors[places]), book.leaves).leaf
    return found, name, (f"{len(missing):,} clips of the other curation were placed at the nearest leaf of {name}",)


def credits_of(selection: Path) -> dict[str, tuple[float, int]]:
    """For each target its share of the draws, and the clips it pays something for."""
    table = read_table(selection / "selection.parquet", SELECTION, ["weight", "target", "credit_targets", "credit_shares"])
    weight = table.column("weight").to_numpy()
    credited = table.column("credit_targets").combine_chunks()
    rows, names, shares = pc.list_parent_indices(credited).to_numpy(), pc.list_flatten(credited), pc.list_flatten(table.column("credit_shares").combine_chunks()).to_numpy()
    plain = np.flatnonzero(pc.is_null(credited).to_numpy(zero_copy_only=False))
    words = np.concatenate([np.array(names.to_pylist(), object), np.array(table.column("target").take(plain).to_pylist(), object)])
    mass = np.concatenate([weight[rows] * shares, weight[plain]])
    found: dict[str, tuple[float, int]] = {}
    for name in sorted(set(words.tolist())):
        own = (words == name) & (mass > 0)
        found[str(name)] = (float(mass[own].sum()), int(own.sum()))
    return found


def videos_of(a: Side, b: Side, ids: pa.Array) -> list[str]:
    """The video of each of `ids`, whichever side knows it."""
    found = np.full(len(ids), "", object)
    for side in (a, b):
        places = pc.fill_null(pc.index_in(ids, value_set=side.pool.ids), -1).to_numpy()
        names = np.array(side.pool.videos.names, object)
        found = np.where(places >= 0, names[side.pool.videos.codes[places]], found)
    return found.tolist()
