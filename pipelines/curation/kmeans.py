"""Spherical k-means on FAISS: own k-means++ seeds, fixed thread count, best of several starts, so that bytes repeat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.curation.embedding import unit_rows
from pipelines.curation.neighbours import faiss_threads
from pipelines.errors import InputError
from pipelines.identity import stable_seed

SEEDING_ROWS = 65_536


@dataclass(frozen=True)
class Codebook:
    """`centroids` (K, D) float32 of unit length; `objective` is the mean cosine of a row to its centroid."""

    centroids: NDArray[np.float32]
    objective: float


def plus_plus_rows(vectors: NDArray[np.float32], count: int, seed: int) -> NDArray[np.int64]:
    """`count` row numbers of unit `vectors` (N, D), spread by k-means++ on a subsample of at most 65,536 rows."""
    random = np.random.default_rng(seed)
    sample = np.arange(len(vectors))
    if len(sample) > SEEDING_ROWS:
        sample = np.sort(random.choice(len(vectors), SEEDING_ROWS, replace=False))
    rows = vectors[sample].astype(np.float64)
    chosen = [int(random.integers(len(rows)))]
    gap = np.maximum(0.0, 1.0 - rows @ rows[chosen[0]])  # half the squared distance of unit vectors
    while len(chosen) < count:
        total = gap.sum()
        if total > 1e-12:
            chosen.append(int(np.searchsorted(np.cumsum(gap), random.random() * total, side="right").clip(0, len(rows) - 1)))
        else:  # fewer different rows than centroids: take rows not taken yet
            chosen.append(int(np.setdiff1d(np.arange(len(rows)), chosen)[0]))
        gap = np.minimum(gap, np.maximum(0.0, 1.0 - rows @ rows[chosen[-1]]))
    return sample[chosen]


def spherical_kmeans(vectors: NDArray[np.float32], count: int, *, seed: int, iterations: int = 25, starts: int = 3) -> Codebook:
    """The best of `starts` k-means runs over unit `vectors` (N, D). Raises `InputError` when `count` exceeds N."""
    if not 1 <= count <= len(vectors):
        raise InputError(
            f"{count} clusters cannot be made of {len(vectors)} vectors", expected=f"1 to {len(vectors)} clusters", found=str(count),
            remedy="ask for fewer clusters or add videos",
        )  # fmt: skip
    import faiss

    best: Codebook | None = None
    with faiss_threads(1):
        for start in range(starts):
            run = stable_seed("k-means", seed, start) % 2**31
            kmeans: Any = faiss.Kmeans(
                vectors.shape[1], count, niter=iterations, spherical=True, seed=run, min_points_per_centroid=1,
                max_points_per_centroid=max(1, len(vectors)),
            )  # fmt: skip
            kmeans.train(vectors, init_centroids=vectors[plus_plus_rows(vectors, count, run)])
            centroids = unit_rows(np.asarray(kmeans.centroids, np.float32))
            objective = float(assign(vectors, centroids)[1].mean(dtype=np.float64))
            if best is None or objective > best.objective:
                best = Codebook(centroids, objective)
    assert best is not None, "starts is at least 1"
    return best


def assign(vectors: NDArray[np.float32], centroids: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(cluster (N,), cosine (N,)): the centroid with the largest cosine, the first of equals. Rows are independent."""
    import faiss

    if len(vectors) == 0:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    with faiss_threads(1):
        index = faiss.IndexFlatIP(centroids.shape[1])
        index.add(centroids)
        cosine, cluster = index.search(np.ascontiguousarray(vectors), 1)
    return cluster[:, 0].astype(np.int64), cosine[:, 0]
