"""Spherical k-means on FAISS: seeds by k-means++, Lloyd passes over blocks of rows, empty clusters repaired.

Rows are unit vectors, centroids are unit vectors, the objective is the sum of squared distances, 2 (1 - cosine) each.
Everything goes in the order of the rows that it is given (a caller orders them by clip id) and on a recorded number of
threads, so equal sets of clips give equal bytes. A pass reads rows block by block: memory-mapped files may be larger
than memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from pipelines.curation.neighbours import faiss_threads
from pipelines.errors import InputError
from pipelines.identity import stable_seed
from pipelines.recipes import Part

BLOCK_ROWS = 4096  # FAISS multiplies 4096 queries at a time
SEEDING_ROWS, SEEDING_SHARE = 262_144, 32  # seeds are drawn from so many rows at most, and from so many for each cluster
WARM_SHARE = 128  # rows for each cluster on which Lloyd starts when there are four times as many
TABLE = 1 << 21  # cosines that seeding computes at a time (8 MiB: they stay in a processor's cache)
SAME = 1e-6  # mean squared distance at which float32 cannot tell rows from their centroid

Device = Literal["auto", "cpu", "gpu"]


class KMeansConfig(Part):
    """How every single k-means is run. `tolerance` is the relative change of the objective at which Lloyd stops.

    `threads` of FAISS: one thread gives equal bytes on one machine; more threads give labels that agree but for ties.
    """

    iterations: int = pydantic.Field(default=25, ge=1)
    tolerance: float = pydantic.Field(default=1e-4, ge=0)
    starts: int = pydantic.Field(default=1, ge=1)
    threads: int = pydantic.Field(default=1, ge=1)
    device: Device = "auto"


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a (possibly memory-mapped) matrix (M, D) float32 in a fixed order, read in blocks. `order` None: all as they lie."""

    vectors: NDArray[np.float32]
    order: NDArray[np.int64] | None = None

    @classmethod
    def by_id(cls, vectors: NDArray[np.float32], ids: Sequence[str]) -> Rows:
        """All rows in the order of their ids, whatever order they lie in."""
        if list(ids) == sorted(ids):
            return cls(vectors)
        return cls(vectors, np.argsort(np.asarray(ids), kind="stable"))

    def __len__(self) -> int:
        return len(self.vectors) if self.order is None else len(self.order)

    def block(self, start: int, stop: int) -> NDArray[np.float32]:
        part = self.vectors[start:stop] if self.order is None else self.vectors[self.order[start:stop]]
        return np.ascontiguousarray(part, np.float32)

    def take(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.vectors[places if self.order is None else self.order[places]], np.float32)

    def subset(self, places: NDArray[np.int64]) -> Rows:
        """The rows at `places` (of this view), in that order; nothing is copied."""
        return Rows(self.vectors, places if self.order is None else self.order[places])


def device_of(wanted: Device) -> Literal["cpu", "gpu"]:
    """Where FAISS searches: a GPU when it is wanted or `auto`, and there is one that this build of FAISS can use.

    The GPU path is FAISS's own flat index moved to device 0, for the passes; seeds are drawn on the CPU. It was written to
    FAISS's documentation and has not been run on a GPU.
    """
    import faiss

    return "gpu" if wanted != "cpu" and faiss.get_num_gpus() > 0 else "cpu"


def flat_index(centroids: NDArray[np.float32], device: Device) -> Any:
    """A FAISS index that finds the centroid with the largest inner product."""
    import faiss

    index: Any = faiss.IndexFlatIP(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids))
    if device_of(device) == "gpu":
        index = faiss.index_cpu_to_gpu(_gpu_resources(), 0, index)
    return index


@cache
def _gpu_resources() -> Any:
    """One for the process: every one sets aside scratch memory on the GPU."""
    import faiss

    return faiss.StandardGpuResources()


def search(index: Any, block: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(nearest (n,), cosine (n,)) of the rows of `block` (n, D); the first of equals."""
    cosine, nearest = index.search(block, 1)
    return nearest[:, 0], cosine[:, 0]


def squared_distances(cosine: NDArray[np.float32]) -> NDArray[np.float64]:
    """2 (1 - cosine), which rounding does not take below 0."""
    return np.maximum(0.0, 2.0 - 2.0 * cosine.astype(np.float64))


def assign(
    vectors: NDArray[np.float32] | Rows, centroids: NDArray[np.float32], *, threads: int = 1, device: Device = "cpu"
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(cluster (N,), cosine (N,)): the centroid with the largest cosine in float32, as the passes of k-means see it.

    Between centroids that float32 cannot tell apart the answer may depend on which other rows came along; where batches
    must agree with the whole, as clips of a codebook, `assignment.nearest_leaf` decides.
    """
    rows = vectors if isinstance(vectors, Rows) else Rows(vectors)
    cluster, cosine = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    if len(rows) == 0:
        return cluster, cosine
    with faiss_threads(threads):
        index = flat_index(centroids, device)
        for start in range(0, len(rows), BLOCK_ROWS):
            inside = slice(start, min(len(rows), start + BLOCK_ROWS))
            cluster[inside], cosine[inside] = search(index, rows.block(inside.start, inside.stop))
    return cluster, cosine


def seeds(rows: Rows, count: int, seed: int) -> NDArray[np.float32]:
    """`count` rows (count, D) drawn by greedy k-means++ from a sample of 32 rows a seed, at most 262,144.

    Greedy: of 2 + ln(count) candidates the one that lowers the objective most is taken, 3 % better after Lloyd than one
    candidate; the sample costs no quality and makes this cheaper than one pass of Lloyd over 200 rows a cluster.
    """
    random = np.random.default_rng(seed)
    size = min(len(rows), max(count, min(SEEDING_ROWS, SEEDING_SHARE * count)))
    sample = rows.block(0, len(rows)) if size == len(rows) else rows.take(np.sort(random.choice(len(rows), size, replace=False)))
    return sample[plus_plus(sample, count, random)]


def plus_plus(sample: NDArray[np.float32], count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Places of `count` different rows of `sample` (n, D), drawn by greedy k-means++.

    Candidates are drawn many at a time from the distances as they are before, and each is then let in with probability
    (distance now) / (distance then). That is the law of drawing them one after the other, while all their distances
    come from one matrix product that the processor's caches like.
    """
    trials = 2 + int(np.log(count))
    width = max(4 * trials, min(512, TABLE // len(sample)))
    chosen = [int(random.integers(len(sample)))]
    nearest = sample @ sample[chosen[0]]  # (n,) cosine to the nearest seed
    nearest[chosen] = 1.0
    while len(chosen) < count:
        gap = np.maximum(0.0, 1.0 - nearest)  # half the squared distance
        reach = np.cumsum(gap, dtype=np.float64)
        if reach[-1] <= SAME * len(sample):  # fewer different rows than seeds: fill up with rows that were not taken
            free = np.setdiff1d(np.arange(len(sample)), chosen)
            return np.concatenate([np.array(chosen, np.int64), free[: count - len(chosen)]])
        batch = min(width, trials * (1 + len(chosen)))  # the distances change fast at first
        drawn = np.searchsorted(reach, random.random(batch) * reach[-1], side="right").clip(0, len(sample) - 1)
        bar = 1.0 - random.random(batch) * gap[drawn]
        cosine = sample[drawn] @ sample.T  # (batch, n)
        tried: list[int] = []
        for number in range(batch):
            if nearest[drawn[number]] < bar[number]:
                tried.append(number)
            if len(tried) == trials:
                raised = np.maximum(nearest, cosine[tried])
                best = int(raised.sum(axis=1).argmax())
                nearest = raised[best]
                chosen.append(int(drawn[tried[best]]))
                nearest[chosen[-1]] = 1.0
                tried = []
                if len(chosen) == count:
                    break
    return np.array(chosen, np.int64)


@dataclass(frozen=True, eq=False)
class Fit:
    """Centroids (K, D) with the rows' clusters (M,) and cosines (M,) under them, and how Lloyd came there.

    `objectives[t]` is the sum of squared distances after t updates; `repaired[t]` how many empty clusters the update
    after it filled (the next objective need not be lower for it).
    """

    centroids: NDArray[np.float32]
    cluster: NDArray[np.int64]
    cosine: NDArray[np.float32]
    objectives: list[float]
    repaired: list[int]
    converged: bool


def lloyd(rows: Rows, centroids: NDArray[np.float32], config: KMeansConfig) -> Fit:
    """Lloyd's passes from `centroids` (K, D) until the objective changes by less than the tolerance."""
    cluster, cosine = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    objectives: list[float] = []
    repaired: list[int] = []
    with faiss_threads(config.threads):
        while True:
            sums, counts = _pass(rows, centroids, cluster, cosine, config.device)
            objectives.append(float(squared_distances(cosine).sum()))
            change = objectives[-2] - objectives[-1] if len(objectives) > 1 else np.inf
            spent = len(objectives) > config.iterations
            fills = 0 if spent or counts.all() else _fill_empty(rows, cluster, cosine, sums, counts)
            converged = fills == 0 and change <= config.tolerance * objectives[-1]
            if spent or converged:
                return Fit(centroids, cluster, cosine, objectives, repaired, converged)
            repaired.append(fills)
            centroids = _means(sums, centroids)


def _means(sums: NDArray[np.float64], former: NDArray[np.float32]) -> NDArray[np.float32]:
    """Directions of the sums (K, D); a cluster whose rows cancel out, or without rows, keeps its former centroid."""
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return np.where(lengths > 1e-9, sums / np.maximum(lengths, 1e-9), former).astype(np.float32)


def _pass(
    rows: Rows, centroids: NDArray[np.float32], cluster: NDArray[np.int64], cosine: NDArray[np.float32], device: Device
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Write every row's `cluster` and `cosine` (M,); returns the sums (K, D) and numbers (K,) of the clusters' rows."""
    index = flat_index(centroids, device)
    sums, counts = np.zeros(centroids.shape, np.float64), np.zeros(len(centroids), np.int64)
    for start in range(0, len(rows), BLOCK_ROWS):
        inside = slice(start, min(len(rows), start + BLOCK_ROWS))
        block = rows.block(inside.start, inside.stop)
        cluster[inside], cosine[inside] = search(index, block)
        _add_rows(sums, counts, cluster[inside], block)
    return sums, counts


def _add_rows(sums: NDArray[np.float64], counts: NDArray[np.int64], cluster: NDArray[np.int64], block: NDArray[np.float32]) -> None:
    """Add the rows of `block` (n, D) to the sums of their clusters: in their order within the block, the block in float64."""
    from scipy.sparse import csr_array

    numbers, places = (np.arange(len(sums)), cluster) if len(sums) <= len(block) else np.unique(cluster, return_inverse=True)
    one_hot = csr_array((np.ones(len(block), np.float32), places, np.arange(len(block) + 1)), shape=(len(block), len(numbers)))
    sums[numbers] += one_hot.T @ block
    counts += np.bincount(cluster, minlength=len(counts))


def _fill_empty(
    rows: Rows, cluster: NDArray[np.int64], cosine: NDArray[np.float32], sums: NDArray[np.float64], counts: NDArray[np.int64]
) -> int:
    """Give every empty cluster a part of the cluster with the largest sum of squares, in place; how many were filled.

    The part is the rows that are nearer to the cluster's farthest row than to its centroid.
    """
    spread = np.bincount(cluster, weights=squared_distances(cosine), minlength=len(counts))
    filled = 0
    for empty in np.flatnonzero(counts == 0):
        donor = int(spread.argmax())
        members = np.flatnonzero(cluster == donor)
        if len(members) < 2 or spread[donor] <= SAME * len(members):
            break  # nothing is left to split: the other rows all lie on their centroids
        far = members[[int(cosine[members].argmin())]]
        _, near = assign(rows.subset(members), rows.take(far))
        leave = near > cosine[members]
        if leave.all() or not leave.any():
            leave = members == far[0]
        gone = members[leave]
        cluster[gone], cosine[gone] = empty, near[leave]
        for number in (donor, empty):
            inside = np.flatnonzero(cluster == number)
            sums[number] = rows.take(inside).sum(axis=0, dtype=np.float64)
            counts[number] = len(inside)
            spread[number] = squared_distances(cosine[inside]).sum()
        filled += 1
    return filled


def spherical_kmeans(rows: Rows, count: int, *, seed: int, config: KMeansConfig | None = None) -> Fit:
    """The best of `starts` runs of k-means over unit `rows`. Raises `InputError` when `count` exceeds their number.

    When there are many rows a cluster, Lloyd runs on a sample of them first and needs fewer passes over all.
    """
    config = config or KMeansConfig()
    if not 1 <= count <= len(rows):
        raise InputError(
            f"{count} clusters cannot be made of {len(rows)} vectors", expected=f"1 to {len(rows)} clusters", found=str(count),
            remedy="ask for fewer clusters or add videos",
        )  # fmt: skip
    best: Fit | None = None
    for start in range(config.starts):
        run = stable_seed("k-means", seed, start)
        with threadpool_limits(config.threads, user_api="blas"):
            centroids = seeds(rows, count, run)
        if len(rows) >= 4 * WARM_SHARE * count:
            drawn = np.random.default_rng(run).choice(len(rows), WARM_SHARE * count, replace=False)
            centroids = lloyd(rows.subset(np.sort(drawn)), centroids, config).centroids
        found = lloyd(rows, centroids, config)
        if best is None or found.objectives[-1] < best.objectives[-1]:
            best = found
    assert best is not None, "starts is at least 1"
    return best
