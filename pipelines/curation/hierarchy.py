"""Hierarchical k-means with resampling: the codebook that clips are assigned to, level by level.

Plain k-means puts centroids where data are dense, so a pool's most common footage takes most clusters. After a first fit
every level is therefore fitted again, several times, on the few rows nearest to each centroid: a set in which frequent and
rare footage weigh more alike (Vo et al., "Automatic Data Curation for Self-Supervised Learning", 2024). Level l + 1
clusters the centroids of level l. Vectors and centroids are of unit length on every level; distances are 2 (1 - cosine).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from pipelines.curation.codebook import Codebook
from pipelines.curation.kmeans import Fit, KMeansConfig, Rows, assign, device_of, spherical_kmeans, squared_distances
from pipelines.errors import InputError
from pipelines.identity import stable_seed
from pipelines.parts import Part as StagePart
from pipelines.parts import Parts

LEAST_ROUND_ROWS = 4
SMALL_CLUSTER = 4  # clips of a leaf in a small pool
SMALL_SIZES = 48, 6  # leaves and coarse clusters that a small pool has at most


class ClustersConfig(KMeansConfig):
    """Without `levels` there are two, which grow with the pool: a leaf for `clips_per_cluster` clips, at most `max_clusters`,
    and `coarse_clusters` above them. None of the first: a leaf for 4 clips up to 48 leaves, then sqrt(8 N) for N clips,
    so that the work of a pass grows as N^1.5 (632 leaves of 79 clips for 5e4, 2,828 of 354 for 1e6); of the second: no
    limit; of the third: the root of the number of leaves, at least 6. `levels` says how many clusters each level has,
    leaves first; no level has more than there are clips.

    `rounds` of resampling and `round_rows` nearest rows of every cluster are told for each level, the last entry holds
    for the levels above it. 0 rows: half the mean size of a cluster, and no rounds where that is below 4, which would
    say too little of where a centroid belongs. From `split_from` clusters on, a level is made in two steps, coarse
    clusters first and each split on its own. The best of `starts` is taken for a level's first fit; a round starts once.
    """

    starts: int = pydantic.Field(default=3, ge=1)
    levels: tuple[PositiveInt, ...] = ()
    clips_per_cluster: PositiveInt | None = None
    max_clusters: PositiveInt | None = None
    coarse_clusters: PositiveInt | None = None
    rounds: tuple[NonNegativeInt, ...] = pydantic.Field(default=(10,), min_length=1)
    round_rows: tuple[NonNegativeInt, ...] = pydantic.Field(default=(0,), min_length=1)
    split_from: PositiveInt = 100_000
    seed: int = 0

    @pydantic.field_validator("levels")
    @classmethod
    def _hierarchy(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if any(upper > lower for lower, upper in itertools.pairwise(levels)):
            raise ValueError(f"no level should be larger than the one before it, leaves first; {levels} are no hierarchy")
        return levels

    def sizes(self, clips: int) -> tuple[int, ...]:
        """Clusters of every level, leaves first, for a pool of `clips`."""
        if self.levels:
            return tuple(min(level, clips) for level in self.levels)
        few, few_coarse = SMALL_SIZES
        if self.clips_per_cluster is not None:
            leaves = clips // self.clips_per_cluster
        else:
            leaves = min(clips // SMALL_CLUSTER, max(few, math.isqrt(8 * clips)))
        leaves = max(1, min(leaves, self.max_clusters or leaves))
        return leaves, min(leaves, self.coarse_clusters or max(few_coarse, math.isqrt(leaves)))

    def resampling(self, level: int, rows: int, count: int) -> tuple[int, int]:
        """(rounds, rows of each cluster in a round) for `count` clusters of `rows` rows on `level`."""
        rounds, told = (entries[min(level, len(entries) - 1)] for entries in (self.rounds, self.round_rows))
        nearest = told or rows // (2 * count)
        return (rounds if told or nearest >= LEAST_ROUND_ROWS else 0), nearest


@dataclass(frozen=True)
class RoundReport:
    """One k-means of a level: on how many `rows`, the `objectives` (sum of squared distances) of its passes, the empty
    clusters `repaired` after each, and the objective over all rows of the level that its centroids give. Of a level in
    two steps the passes are the first step's."""

    rows: int
    objectives: list[float]
    repaired: list[int]
    objective: float


@dataclass(frozen=True)
class LevelReport:
    """`rounds[0]` is the first fit, the others are resampled."""

    clusters: int
    rows: int
    rounds: list[RoundReport]


@dataclass(frozen=True)
class FitReport:
    """How a codebook was fitted."""

    levels: list[LevelReport]
    threads: int
    device: str

    def as_dict(self) -> dict[str, Any]:
        """What objective.json holds."""
        return {
            "distance": "2 (1 - cosine); vectors and the centroids of every level are unit vectors", "threads": self.threads,
            "device": self.device, "levels": [asdict(level) for level in self.levels],
        }  # fmt: skip


def fit_codebook(
    vectors: NDArray[np.float32],
    clip_ids: Sequence[str],
    encoder_digest: str,
    config: ClustersConfig,
    parts: Parts,
    progress: Callable[..., None] | None = None,
) -> tuple[Codebook, FitReport]:
    """A codebook of unit `vectors` (N, D; may be memory-mapped) named by `clip_ids` (N,).

    Only ids and vectors count, not the order they come in. Every first fit and every round is a part of `parts`. Raises
    `InputError` when there is no clip, or ids that do not match the vectors.
    """
    if len(vectors) == 0 or len(clip_ids) != len(vectors):
        raise InputError(
            "there is nothing to cluster, or ids and vectors do not belong together", expected="at least one clip, an id for every vector",
            found=f"{len(vectors)} vectors, {len(clip_ids)} ids", remedy="add videos to the pool, or materialize distinct_clips again",
        )  # fmt: skip
    rows = Rows.by_id(vectors, clip_ids)
    sizes = config.sizes(len(rows))
    total = sum(1 + config.resampling(level, below, count)[0] for level, (below, count) in enumerate(zip((len(rows), *sizes), sizes, strict=False)))
    centroids: list[NDArray[np.float32]] = []
    parents: list[NDArray[np.int32]] = []  # of every level's rows; those of level 0 are the clips
    reports: list[LevelReport] = []
    done = 0

    def say(what: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, what)

    for level, count in enumerate(sizes):
        state, report = _fit_level(rows, count, level, config, parts, say)
        parents.append(state.cluster.astype(np.int32))
        centroids.append(state.centroids)
        reports.append(report)
        rows = Rows(state.centroids)
    codebook = Codebook(tuple(centroids), tuple(parents[1:]), encoder_digest)
    return codebook, FitReport(reports, config.threads, device_of(config.device))


@dataclass(frozen=True, eq=False)
class _State:
    """Centroids of a level (K, D) and every row's cluster (M,) and cosine (M,) under them: what a part keeps."""

    centroids: NDArray[np.float32]
    cluster: NDArray[np.int64]
    cosine: NDArray[np.float32]

    @classmethod
    def of(cls, part: StagePart) -> _State:
        names = ("centroids", "cluster", "cosine")
        return cls(*(np.load(part.folder / f"{name}.npy", allow_pickle=False) for name in names))

    def save(self, folder: Path, rows: int, objectives: list[float], repaired: list[int]) -> dict[str, Any]:
        for name in ("centroids", "cluster", "cosine"):
            np.save(folder / f"{name}.npy", getattr(self, name))
        objective = float(squared_distances(self.cosine).sum())
        return asdict(RoundReport(rows, objectives, repaired, objective))


def _fit_level(
    rows: Rows, count: int, level: int, config: ClustersConfig, parts: Parts, say: Callable[[str], None]
) -> tuple[_State, LevelReport]:
    """First fit and resampling rounds of one level."""

    def first(folder: Path) -> dict[str, Any]:
        return _fit_on(rows, None, count, stable_seed("level", config.seed, level), config, folder)

    part = parts.part(f"level-{level}-round-000", first)
    state, reports = _State.of(part), [RoundReport(**part.summary)]
    say(f"level {level}: {count} clusters")
    rounds, nearest = config.resampling(level, len(rows), count)
    for number in range(1, rounds + 1):
        chosen = nearest_places(state.cluster, state.cosine, nearest)

        def again(folder: Path, chosen: NDArray[np.int64] = chosen, number: int = number) -> dict[str, Any]:
            return _fit_on(rows, chosen, count, stable_seed("round", config.seed, level, number), config, folder)

        if len(chosen) >= count:  # fewer only when rows repeat and clusters are empty
            part = parts.part(f"level-{level}-round-{number:03d}", again)
            state = _State.of(part)
            reports.append(RoundReport(**part.summary))
        say(f"level {level}: round {number} of {rounds}")
    return state, LevelReport(count, len(rows), reports)


def nearest_places(cluster: NDArray[np.int64], cosine: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Places, ascending, of the `count` rows of each cluster with the largest cosine (the earlier row of equals)."""
    order = np.lexsort((np.arange(len(cluster)), -cosine, cluster))
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.sort(order[rank < count])


def _fit_on(
    rows: Rows, chosen: NDArray[np.int64] | None, count: int, seed: int, config: ClustersConfig, folder: Path
) -> dict[str, Any]:
    """k-means on the `chosen` places of `rows` (None: on all), then all rows assigned: what a part's folder gets."""
    used = rows if chosen is None else rows.subset(chosen)
    config = config if chosen is None else config.model_copy(update={"starts": 1})
    if count >= config.split_from:
        centroids, first = split_kmeans(used, count, seed, config)
        objectives, repaired = first.objectives, first.repaired
    else:
        fit = spherical_kmeans(used, count, seed=seed, config=config)
        centroids, objectives, repaired = fit.centroids, fit.objectives, fit.repaired
        if chosen is None:
            return _State(centroids, fit.cluster, fit.cosine).save(folder, len(used), objectives, repaired)
    cluster, cosine = assign(rows, centroids, threads=config.threads, device=config.device)
    return _State(centroids, cluster, cosine).save(folder, len(used), objectives, repaired)


def split_kmeans(rows: Rows, count: int, seed: int, config: KMeansConfig) -> tuple[NDArray[np.float32], Fit]:
    """`count` centroids (K, D) in two steps: about sqrt(K) clusters (also returned), each then split on its own. That
    costs N sqrt(K) distances a pass, not N K.

    A cluster of n rows with a sum of squares s is split in proportion to sqrt(n s), and never into more than n.
    """
    if count > len(rows):
        raise InputError(
            f"{count} clusters cannot be made of {len(rows)} vectors", expected=f"1 to {len(rows)} clusters", found=str(count),
            remedy="ask for fewer clusters or add videos",
        )  # fmt: skip
    coarse = spherical_kmeans(rows, max(1, round(count**0.5)), seed=seed, config=config)
    number = len(coarse.centroids)
    sizes = np.bincount(coarse.cluster, minlength=number)
    spread = np.bincount(coarse.cluster, weights=squared_distances(coarse.cosine), minlength=number)
    order = np.argsort(coarse.cluster, kind="stable")
    found: list[NDArray[np.float32]] = []
    for cluster, (members, parts) in enumerate(
        zip(np.split(order, np.cumsum(sizes)[:-1]), allot_centroids(np.sqrt(sizes * spread), sizes, count), strict=True)
    ):
        if parts:
            found.append(spherical_kmeans(rows.subset(members), int(parts), seed=stable_seed("split", seed, cluster), config=config).centroids)
    return np.concatenate(found), coarse


def allot_centroids(weights: NDArray[np.float64], sizes: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """(K,) whole numbers that add up to `total`: 1 to n for a cluster of n rows (0 for none), in proportion to `weights` as
    far as that allows. `total` is at most the sum of `sizes`, and at least as many as clusters that have rows."""
    pull = np.maximum(weights, 1e-12 * max(1.0, float(weights.max())))
    low, high = 0.0, float((sizes / pull).max())  # by bisection: the scale at which shares between 1 and n add up to the total
    for _ in range(100):
        scale = (low + high) / 2
        low, high = (scale, high) if np.clip(scale * pull, np.minimum(sizes, 1), sizes).sum() < total else (low, scale)
    wanted = np.clip(high * pull, np.minimum(sizes, 1), sizes)
    parts = np.floor(wanted + 1e-9).astype(np.int64)
    order = np.lexsort((np.arange(len(sizes)), parts - wanted))
    parts[order[parts[order] < sizes[order]][: total - int(parts.sum())]] += 1
    return parts
